"""Pictures of what steering does with one recording, readable on a phone.

Shapes: S frames, L steered places, N experts of a place.
"""

import io
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from scipy.signal import spectrogram

from steermoe.analysis.plots import evenly
from steermoe.asr.transcript import Word
from steermoe.audio.waveform import RATE
from steermoe.demo.inference import Seen

WIDTH = 4.1  # inches: on a phone, whose page is about 360 pixels wide, letters of FONT have 11
DOTS = 200  # an inch
FONT = 9
FLOOR = 70.0  # dB that are shown below the loudest
APART = 0.035  # of the width: words that begin nearer to the one before are left out
LEGEND = 16  # experts that have an entry
LAYERS = 12  # that are numbered


def steering_picture(seen: Seen, words: Sequence[Word], place: int) -> bytes:
    """Spectrogram, strongest expert of every place, and gates of one place, over the same seconds.

    Args:
        seen: the recording and its gates.
        words: what is said in it.
        place: number (not name) of the place whose gates are shown.

    Returns:
        a PNG.
    """
    count = seen.gates[place].shape[1]
    most = max(gates.shape[1] for gates in seen.gates)
    heights = [1.1, 0.25 + min(0.26 * len(seen.gates), 3.2), 0.25 + min(0.19 * count, 3.2)]
    figure = Figure((WIDTH, sum(heights) + 1.7), layout="constrained")
    sound, layers, experts = figure.subplots(3, 1, sharex=True, height_ratios=heights)
    _sound(sound, seen, words)
    colours = expert_colours(most)
    _strongest(layers, seen, colours, place)
    image = _gates(experts, seen, place)
    experts.set_xlabel("seconds", fontsize=FONT)
    bar = figure.colorbar(image, ax=experts, location="bottom", shrink=0.6, aspect=30)
    bar.set_label("gate", fontsize=FONT)
    bar.ax.tick_params(labelsize=FONT - 1)
    if most <= LEGEND:
        entries = [Patch(color=colour, label=str(expert)) for expert, colour in enumerate(colours)]
        layers.legend(
            handles=entries, title="expert", loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=8,
            frameon=False, fontsize=FONT - 1, title_fontsize=FONT - 1, handlelength=0.9, columnspacing=0.8,
            handletextpad=0.4, borderpad=0.1,
        )  # fmt: skip
    for axes in (sound, layers, experts):
        axes.tick_params(labelsize=FONT - 1)
    return png(figure)


def expert_colours(count: int) -> list[tuple[float, float, float]]:
    """A colour an expert: as different as so many can be."""
    tables = [matplotlib.colormaps[name] for name in ("tab10", "tab20")]
    ten, twenty = ([to_rgb(table(number)) for number in range(table.N)] for table in tables)
    del ten[7]  # grey looks like nothing
    if count <= len(twenty):
        return (ten if count <= len(ten) else twenty)[:count]
    return [to_rgb(matplotlib.colormaps["hsv"](number / count)) for number in range(count)]


def strongest(gates_SN: np.ndarray, colours: Sequence[tuple[float, float, float]]) -> np.ndarray:
    """(S, 3) colours: of the expert with the largest gate, the paler the smaller it is; white where gates are NaN."""
    shown = np.ones((len(gates_SN), 3))
    heard = ~np.isnan(gates_SN).any(1)
    largest_S = gates_SN[heard].max(1, keepdims=True) if heard.any() else np.zeros((0, 1))
    chosen = np.array(colours)[gates_SN[heard].argmax(1)] if heard.any() else np.zeros((0, 3))
    shown[heard] = 1 - np.clip(largest_S, 0, 1) * (1 - chosen)
    return shown


def _sound(axes: Axes, seen: Seen, words: Sequence[Word]) -> None:
    samples = np.pad(seen.samples, (0, max(0, 400 - len(seen.samples))))
    hertz, seconds, power = spectrogram(samples, RATE, nperseg=400, noverlap=240)
    level = 10 * np.log10(power + 1e-12)
    reach = (float(seconds[0]), float(seconds[-1]), 0, float(hertz[-1]) / 1000)
    axes.imshow(
        level, cmap="Greys", vmin=level.max() - FLOOR, vmax=level.max(), aspect="auto", extent=reach,
        origin="lower", interpolation="none",
    )  # fmt: skip
    axes.set_xlim(0, seen.seconds)
    axes.set_ylabel("kHz", fontsize=FONT)
    after = -1.0
    for word in words:
        if word.start >= after:
            axes.annotate(
                word.word, (word.start, 1.02), xycoords=("data", "axes fraction"), rotation=55,
                rotation_mode="anchor", fontsize=FONT - 1, ha="left", va="bottom",
            )  # fmt: skip
            after = word.start + APART * seen.seconds


def _strongest(axes: Axes, seen: Seen, colours: Sequence[tuple[float, float, float]], place: int) -> None:
    picture = np.stack([strongest(gates, colours) for gates in seen.gates])
    rows = len(seen.gates)
    axes.imshow(picture, aspect="auto", extent=(0, seen.seconds, rows - 0.5, -0.5), interpolation="none")
    axes.set_ylabel("layer", fontsize=FONT)
    shown = evenly(rows, LAYERS)
    axes.set_yticks(shown, [seen.places[row] for row in shown])
    for label, row in zip(axes.get_yticklabels(), shown, strict=True):
        label.set_fontweight("bold" if row == place else "normal")
    for line in range(1, rows):
        axes.axhline(line - 0.5, color="white", linewidth=1)


def _gates(axes: Axes, seen: Seen, place: int):
    gates = seen.gates[place].T
    reach = (0, seen.seconds, len(gates) - 0.5, -0.5)
    image = axes.imshow(
        gates, cmap="cividis", vmin=0, vmax=1, aspect="auto", extent=reach, interpolation="none"
    )
    axes.set_ylabel(f"layer {seen.places[place]}: expert", fontsize=FONT)
    axes.set_yticks(evenly(len(gates), LEGEND))
    return image


def png(figure: Figure) -> bytes:
    """A figure as a PNG without the name of the program that made it."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=DOTS, metadata={"Software": None})
    return file.getvalue()

"""The demo's picture: spectrogram with the words, strongest expert of each layer, and gates of one layer.

Shapes: S frames, N experts of a hook point.
"""

import io
from collections.abc import Sequence

import librosa
import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from steermoe.asr.transcript import Word
from steermoe.audio.io import RATE
from steermoe.demo.inference import Gates

WIDTH, DPI, FONT = 4.1, 200, 9  # inches; readable on a phone, whose page is about 360 pixels wide
FRAME, HOP = 400, 160  # samples of the spectrogram
FLOOR = 70.0  # dB shown below the loudest
MIN_DISTANCE = 0.035  # of the width; a word closer to the one before has no label
MAX_LEGEND, MAX_TICKS = 16, 12


def gates_picture(found: Gates, words: Sequence[Word], place: int) -> bytes:
    """Draw spectrogram, strongest experts, and the gates of one hook point.

    Args:
        found: the recording and its gates.
        words: its words with their times.
        place: index of the hook point.

    Returns:
        a PNG.
    """
    count, most = found.gates[place].shape[1], max(gates.shape[1] for gates in found.gates)
    heights = [1.1, 0.25 + min(0.26 * len(found.gates), 3.2), 0.25 + min(0.19 * count, 3.2)]
    figure = Figure((WIDTH, sum(heights) + 1.7), layout="constrained")
    sound, layers, experts = figure.subplots(3, 1, sharex=True, height_ratios=heights)
    _draw_sound(sound, found, words)
    colours = expert_colours(most)
    picture = np.stack([strongest(gates, colours) for gates in found.gates])
    _draw_rows(layers, picture, found.seconds, "layer", found.names)
    numbers = [str(expert) for expert in range(count)]
    label = f"layer {found.names[place]}: expert"
    image = _draw_rows(experts, found.gates[place].T, found.seconds, label, numbers)
    experts.set_xlabel("seconds", fontsize=FONT)
    figure.colorbar(image, ax=experts, location="bottom", shrink=0.6, aspect=30).set_label(
        "gate", fontsize=FONT
    )
    if most <= MAX_LEGEND:
        entries = [Patch(color=colour, label=str(expert)) for expert, colour in enumerate(colours)]
        layers.legend(handles=entries, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=8, frameon=False,
                      fontsize=FONT - 1, handlelength=0.9, columnspacing=0.8, handletextpad=0.4)  # fmt: skip
    for axes in (sound, layers, experts):
        axes.tick_params(labelsize=FONT - 1)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=DPI, metadata={"Software": None})
    return file.getvalue()


def expert_colours(count: int) -> list[tuple[float, float, float]]:
    """Return a colour for each expert, as different as possible."""
    tables = [matplotlib.colormaps[name] for name in ("tab10", "tab20")]
    ten, twenty = ([to_rgb(table(number)) for number in range(table.N)] for table in tables)
    del ten[7]  # grey
    if count <= len(twenty):
        return (ten if count <= len(ten) else twenty)[:count]
    return [to_rgb(matplotlib.colormaps["hsv"](number / count)) for number in range(count)]


def strongest(gates_SN: np.ndarray, colours: Sequence[tuple[float, float, float]]) -> np.ndarray:
    """Return (S, 3) colours of the expert with the largest gate, paler where it is smaller; white where NaN."""
    shown = np.ones((len(gates_SN), 3))
    speech_S = ~np.isnan(gates_SN).any(1)
    if speech_S.any():
        largest_S = gates_SN[speech_S].max(1, keepdims=True)
        chosen = np.array(colours)[gates_SN[speech_S].argmax(1)]
        shown[speech_S] = 1 - np.clip(largest_S, 0, 1) * (1 - chosen)
    return shown


def _draw_sound(axes: Axes, found: Gates, words: Sequence[Word]) -> None:
    samples = np.pad(found.samples, (0, max(0, FRAME - len(found.samples))))
    mel = librosa.feature.melspectrogram(y=samples, sr=RATE, n_fft=FRAME, hop_length=HOP, n_mels=80)
    decibels = librosa.power_to_db(mel, ref=np.max, top_db=FLOOR)
    librosa.display.specshow(
        decibels, sr=RATE, hop_length=HOP, x_axis="time", y_axis="mel", ax=axes, cmap="Greys", vmin=-FLOOR, vmax=0
    )  # fmt: skip
    axes.set(xlim=(0, found.seconds), xlabel="")
    axes.set_ylabel("Hz", fontsize=FONT)
    after = -1.0
    for word in words:
        if word.start >= after:
            axes.annotate(
                word.word, (word.start, 1.02), xycoords=("data", "axes fraction"), rotation=55,
                rotation_mode="anchor", fontsize=FONT - 1, ha="left", va="bottom",
            )  # fmt: skip
            after = word.start + MIN_DISTANCE * found.seconds


def _draw_rows(axes: Axes, rows: np.ndarray, seconds: float, label: str, names: Sequence[str]):
    extent = (0, seconds, len(rows) - 0.5, -0.5)
    image = axes.imshow(
        rows, cmap="cividis", vmin=0, vmax=1, aspect="auto", extent=extent, interpolation="none"
    )
    axes.set_ylabel(label, fontsize=FONT)
    shown = range(0, len(rows), -(-len(rows) // MAX_TICKS))
    axes.set_yticks(shown, [names[row] for row in shown])
    return image

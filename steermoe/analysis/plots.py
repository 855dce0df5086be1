"""Pictures of the comparison as PNG, in Okabe and Ito's colours; the same data gives the same bytes."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text

from steermoe.analysis.comparison import Comparison, Row, Set
from steermoe.atomic_io import written_whole
from steermoe.evaluation.metrics import METRICS

MARKERS = "os^vDPX*"
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
STYLES = ["-", "--", "-.", ":"]
GREY = "#8C8C8C"
WIDTH = 8.0  # inches; at 150 dots an inch text stays readable where a README shows it
FONT = 10
CURVES = {  # column of a history -> label of its axis
    "dev_loss": "loss on dev",
    "dev_token_accuracy": "right tokens on dev (%)",
    "dev_wer": "WER on dev (%)",
}


def draw_all(
    comparison: Comparison, histories: Mapping[str, pl.DataFrame], uses: Mapping[str, dict], folder: Path
) -> dict[str, str]:
    """Draw every picture that there is data for into `folder`; returns what each file shows, by name."""
    captions = {
        "learning_curves.png": "Development loss and token accuracy against optimizer steps",
        "error_rates.png": "Error rate of every variant on every test split, with intervals",
    }
    learning_curves(histories, folder / "learning_curves.png")
    error_rates(comparison, folder / "error_rates.png")
    if uses:
        captions["expert_use.png"] = "Mean gate of every expert in every steered layer"
        captions["layer_scales.png"] = "Learned layer scales, and steering beside what it is added to"
        expert_use(uses, folder / "expert_use.png")
        layer_scales(uses, folder / "layer_scales.png")
    return captions


def learning_curves(histories: Mapping[str, pl.DataFrame], path: Path) -> None:
    """What was measured on the development splits against optimizer steps, a line a variant.

    A history has the column step and some of CURVES; rows between evaluations hold nulls there.
    """
    present = [name for name in CURVES if any(name in frame.columns for frame in histories.values())]
    figure = Figure((WIDTH, 3.4), layout="constrained")
    panels = figure.subplots(1, max(1, len(present)), squeeze=False)[0]
    for axes, column in zip(panels, present, strict=False):
        for place, (variant, history) in enumerate(histories.items()):
            if column not in history.columns:
                continue
            points = history.select("step", column).drop_nulls()
            if points.is_empty():
                continue
            axes.plot(
                points["step"].to_numpy(),
                points[column].to_numpy() * (1 if column == "dev_loss" else 100),
                color=COLOURS[place % len(COLOURS)],
                linestyle=STYLES[place // len(COLOURS) % len(STYLES)],
                marker="o",
                markersize=3,
                label=variant,
            )
        axes.set(xlabel="optimizer steps", ylabel=CURVES[column])
        axes.set_xlim(left=0)
        axes.set_ylim(0, 1.05 * axes.dataLim.ymax if axes.lines else None)
        bare(axes)
    if present:
        entries = panels[0].get_legend_handles_labels()
        figure.legend(*entries, loc="outside upper center", ncols=min(6, len(histories)), frameon=False)
    save(figure, path)


def error_rates(comparison: Comparison, path: Path) -> None:
    """Bars of each set's own error rate, with intervals, a panel a set: variants, and in grey the encoder's own decoder.

    What does not listen is left to the table: its rates are so high that the variants could not be told apart.
    """
    places = [p for p in comparison.sets_of("transcribe") if comparison.own_metric(p)]
    rows = [
        r
        for r in comparison.rows
        if r.kind in ("variant", "decoder")
        and any(comparison.cell(r, p, comparison.own_metric(p) or "") for p in places)
    ]
    columns = min(2, max(1, len(places)))
    lines = max(1, -(-len(places) // columns))
    figure = Figure((WIDTH, lines * (0.9 + 0.3 * max(1, len(rows)))), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False, sharey=True).flatten()
    for axes, place in zip(panels, places, strict=False):
        bars(axes, comparison, rows, place, comparison.own_metric(place) or "")
    for axes in panels[len(places) :]:
        axes.set_visible(False)
    save(figure, path)


def bars(axes: Axes, comparison: Comparison, rows: Sequence[Row], place: Set, metric: str) -> None:
    """One panel of `error_rates`."""
    reach = 0.0
    for height, row in enumerate(rows):
        cell = comparison.cell(row, place, metric)
        if cell is None:
            continue
        value, low, high = (100 * number for number in (cell.value, cell.low, cell.high))
        reach = max(reach, high)
        axes.barh(height, value, height=0.6, color=COLOURS[0] if row.kind == "variant" else GREY)
        whiskers = [[max(0.0, value - low)], [max(0.0, high - value)]]
        axes.errorbar(value, height, xerr=whiskers, color="black", capsize=3, linewidth=1)
        text = f"{value:.1f}, n = {cell.n}" if comparison.is_partial(cell) else f"{value:.1f}"
        axes.annotate(text, (high, height), (4, 0), textcoords="offset points", va="center", fontsize=FONT)
    axes.set_yticks(range(len(rows)), [row.title for row in rows])
    axes.set(xlim=(0, 1.15 * reach or 1), ylim=(len(rows) - 0.5, -0.5), xlabel=f"{METRICS[metric].title} (%)")
    axes.set_title(f"{place.title}, n = {place.n}", loc="left", fontsize=FONT)
    axes.tick_params(axis="y", length=0)
    bare(axes)


def expert_use(uses: Mapping[str, dict], path: Path) -> None:
    """Mean gate of every expert in every steered layer, a panel a variant; even use is 1 / experts."""
    columns = min(2, len(uses))
    lines = -(-len(uses) // columns)
    layers = max(len(use["layers"]) for use in uses.values())
    figure = Figure((WIDTH, lines * (1.3 + 0.32 * min(layers, 16))), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).flatten()
    for axes, (variant, use) in zip(panels, uses.items(), strict=False):
        gates = np.full((len(use["layers"]), max(use["experts"])), np.nan)
        for line, row in zip(gates, use["mean_gates"], strict=True):
            line[: len(row)] = row
        image = axes.imshow(
            gates, cmap="cividis", vmin=0, vmax=max(np.nanmax(gates), 2 / gates.shape[1]), aspect="auto"
        )
        axes.set_yticks(range(len(use["layers"])), use["layers"])
        axes.set_xticks(range(gates.shape[1]), range(gates.shape[1]))
        axes.set(xlabel="expert", ylabel="encoder layer")
        axes.set_title(variant, loc="left", fontsize=FONT)
        thin(axes.get_xticklabels(), 8 * 2 // columns)
        thin(axes.get_yticklabels(), 16)
        figure.colorbar(image, ax=axes, label="mean gate")
    for axes in panels[len(uses) :]:
        axes.set_visible(False)
    save(figure, path)


def layer_scales(uses: Mapping[str, dict], path: Path) -> None:
    """Scale of every steered place, and how large the steering is beside what it is added to."""
    figure = Figure((WIDTH, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    names = {name for use in uses.values() for name in use["layers"]}
    order = sorted(names, key=lambda name: (not name.isdecimal(), name.zfill(4)))
    for number, (variant, use) in enumerate(uses.items()):
        at = [order.index(name) for name in use["layers"]]
        marker, colour = MARKERS[number % len(MARKERS)], COLOURS[number % len(COLOURS)]
        for axes, column in ((left, "scales"), (right, "steer_to_residual")):
            axes.plot(at, use[column], marker=marker, color=colour, label=variant)
    left.set(xlabel="encoder layer", ylabel="layer scale")
    right.set(xlabel="encoder layer", ylabel="steering / layer output (rms)")
    for axes in (left, right):
        axes.axhline(0, color="black", linewidth=0.8)
        axes.set_xticks(range(len(order)), order)
        thin(axes.get_xticklabels(), 16)
        bare(axes)
    entries = left.get_legend_handles_labels()
    figure.legend(*entries, loc="outside upper center", ncols=min(5, len(uses)), frameon=False)
    save(figure, path)


def thin(labels: Sequence[Text], most: int) -> None:
    """Hide labels of an axis, evenly, until at most `most` are left."""
    step = -(-len(labels) // most)
    for place, label in enumerate(labels):
        label.set_visible(place % step == 0)


def bare(axes: Axes) -> None:
    """No box around the data."""
    axes.spines[["top", "right"]].set_visible(False)


def save(figure: Figure, path: Path) -> None:
    """Write a PNG without the name of the program that made it."""
    with written_whole(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150, metadata={"Software": None})

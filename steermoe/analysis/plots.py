"""Draw plots as PNG, in Okabe and Ito's colours; the same data gives the same bytes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

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
PANELS = 8  # places that are shown where every place has a panel
GROUPS = 12  # groups of a condition that are shown
WIDTH = 8.0  # inches; at 150 dots an inch text stays readable where a README shows it
FONT = 10
Timeline = tuple[Sequence[np.ndarray], float, str]  # gates (S, N) of every place, seconds, and a title
CURVES = {  # column of a history -> label of its axis
    "dev_loss": "loss on dev",
    "dev_token_accuracy": "right tokens on dev (%)",
    "dev_wer": "WER on dev (%)",
}


def draw_all(
    comparison: Comparison, histories: Mapping[str, pl.DataFrame], uses: Mapping[str, dict], folder: Path
) -> dict[str, str]:
    """Draw the plots of a comparison into `folder`; return each file's caption."""
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
    """Draw what was measured on dev against optimizer steps, a line per variant; a history has some of CURVES."""
    present = [name for name in CURVES if any(name in frame.columns for frame in histories.values())]
    figure = Figure((WIDTH, 3.4), layout="constrained")
    panels = figure.subplots(1, max(1, len(present)), squeeze=False)[0]
    for axes, column in zip(panels, present, strict=False):
        for place, (variant, history) in enumerate(histories.items()):
            if column not in history.columns:
                continue
            points = history.select("step", column).drop_nulls()
            if not points.is_empty():
                axes.plot(
                    points["step"].to_numpy(), points[column].to_numpy() * (1 if column == "dev_loss" else 100),
                    color=COLOURS[place % len(COLOURS)], linestyle=STYLES[place // len(COLOURS) % len(STYLES)],
                    marker="o", markersize=3, label=variant,
                )  # fmt: skip
        axes.set(xlabel="optimizer steps", ylabel=CURVES[column])
        axes.set_xlim(left=0)
        axes.set_ylim(0, 1.05 * axes.dataLim.ymax if axes.lines else None)
        bare(axes)
    if present:
        entries = panels[0].get_legend_handles_labels()
        figure.legend(*entries, loc="outside upper center", ncols=min(6, len(histories)), frameon=False)
    save(figure, path)


def error_rates(comparison: Comparison, path: Path) -> None:
    """Draw bars of each set's own error rate, a panel per set: variants, and in grey the encoder's own decoder.

    Controls and trivial baselines are left to the table: next to their rates, variants could not be distinguished.
    """
    places = [p for p in comparison.sets_of("transcribe") if comparison.own_metric(p)]
    rows = [
        r
        for r in comparison.rows
        if r.kind in ("variant", "decoder")
        and any(comparison.cell(r, p, comparison.own_metric(p) or "") for p in places)
    ]
    figure, panels = grid(len(places), 2, 0.0, 0.9 + 0.3 * max(1, len(rows)), sharey=True)
    for axes, place in zip(panels, places, strict=False):
        bars(axes, comparison, rows, place, comparison.own_metric(place) or "")
    save(figure, path)


def bars(axes: Axes, comparison: Comparison, rows: Sequence[Row], place: Set, metric: str) -> None:
    """Draw one panel of `error_rates`."""
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
    """Draw the mean gate of every expert in every steered layer, a panel per variant."""
    layers = max(len(use["layers"]) for use in uses.values())
    figure, panels = grid(len(uses), 2, 0.0, 1.3 + 0.32 * min(layers, 16))
    for axes, (variant, use) in zip(panels, uses.items(), strict=False):
        gates = np.full((len(use["layers"]), max(use["experts"])), np.nan)
        for line, row in zip(gates, use["mean_gates"], strict=True):
            line[: len(row)] = row
        reach = max(np.nanmax(gates), 2 / gates.shape[1])
        image = axes.imshow(gates, cmap="cividis", vmin=0, vmax=reach, aspect="auto")
        axes.set_yticks(range(len(use["layers"])), use["layers"])
        axes.set_xticks(range(gates.shape[1]), range(gates.shape[1]))
        axes.set(xlabel="expert", ylabel="encoder layer")
        axes.set_title(variant, loc="left", fontsize=FONT)
        thin(axes.get_xticklabels(), 16 // min(2, len(uses)))
        thin(axes.get_yticklabels(), 16)
        figure.colorbar(image, ax=axes, label="mean gate")
    save(figure, path)


def layer_scales(uses: Mapping[str, dict], path: Path) -> None:
    """Draw the scale of every steered place, and steering relative to what it is added to."""
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


def draw_experts(
    variant: str,
    use: dict,
    shapes: Mapping[str, dict],
    gates: pl.DataFrame,
    differs: pl.DataFrame,
    timeline: Timeline,
    folder: Path,
) -> dict[str, str]:
    """Draw the plots of one adapter's experts into `folder`; return each file's caption."""
    expert_use({variant: use}, folder / "expert_use.png")
    layer_scales({variant: use}, folder / "layer_scales.png")
    similarity(shapes, folder / "similarity.png")
    over_time(timeline, use["layers"], folder / "timeline.png")
    captions = {
        "expert_use.png": "Mean gate of every expert at every steered place",
        "layer_scales.png": "Scales, and steering beside what it is added to",
        "similarity.png": "Cosine similarity between the steering vectors of a place",
        "timeline.png": f"Gates over time of one utterance ({timeline[2]})",
    }
    if len(differs):
        specialised(differs, folder / "divergences.png")
        captions["divergences.png"] = (
            "How much use differs between the groups of a condition; grey: by chance"
        )
    for condition in gates["condition"].unique(maintain_order=True):
        if condition != "all":
            by_group(gates.filter(pl.col("condition") == condition), folder / f"use_by_{condition}.png")
            captions[f"use_by_{condition}.png"] = f"Mean gates by {condition}"
    return captions


def evenly(count: int, most: int = PANELS) -> list[int]:
    """Return at most `most` numbers below `count`, evenly apart, first and last among them."""
    return sorted({round(place) for place in np.linspace(0, count - 1, min(count, most))})


def similarity(shapes: Mapping[str, dict], path: Path) -> None:
    """Draw the cosine similarity between steering vectors, a matrix per place."""
    names = [list(shapes)[place] for place in evenly(len(shapes))]
    figure, panels = grid(len(names), 4, 0.6, 2.0)
    for axes, name in zip(panels, names, strict=False):
        matrix = np.array(shapes[name]["similarity"])
        axes.imshow(matrix, cmap="RdBu_r", vmin=-1, vmax=1)
        axes.set_title(f"place {name}", loc="left", fontsize=FONT)
        axes.set_xticks(range(len(matrix)), range(len(matrix)))
        axes.set_yticks(range(len(matrix)), range(len(matrix)))
        thin(axes.get_xticklabels(), 8)
        thin(axes.get_yticklabels(), 8)
    figure.colorbar(panels[0].images[0], ax=list(panels), label="cosine", shrink=0.8)
    save(figure, path)


def over_time(timeline: Timeline, names: Sequence[str], path: Path) -> None:
    """Draw the gates of every expert over the seconds of an utterance, a panel per place."""
    gates, seconds, _ = timeline
    places = evenly(len(names))
    figure = Figure((WIDTH, 0.7 + 1.1 * len(places)), layout="constrained")
    panels = figure.subplots(len(places), 1, squeeze=False, sharex=True).flatten()
    for axes, place in zip(panels, places, strict=True):
        matrix = gates[place].T
        reach = (0, seconds, len(matrix) - 0.5, -0.5)
        image = axes.imshow(
            matrix, cmap="cividis", vmin=0, vmax=1, aspect="auto", extent=reach, interpolation="none"
        )
        axes.set_ylabel(f"place {names[place]}\nexpert", fontsize=FONT - 2)
        axes.yaxis.get_major_locator().set_params(integer=True)
    panels[-1].set_xlabel("seconds")
    figure.colorbar(image, ax=list(panels), label="gate")
    save(figure, path)


def specialised(differs: pl.DataFrame, path: Path) -> None:
    """Draw the divergence of each condition over the places."""
    figure = Figure((WIDTH, 3.2), layout="constrained")
    axes = figure.subplots()
    order = differs["place"].unique(maintain_order=True).to_list()
    for number, condition in enumerate(differs["condition"].unique(maintain_order=True)):
        rows = differs.filter(pl.col("condition") == condition)
        at = [order.index(place) for place in rows["place"]]
        style: dict[str, Any] = {
            "marker": MARKERS[number % len(MARKERS)],
            "color": COLOURS[number % len(COLOURS)],
        }
        axes.plot(at, rows["divergence"], label=condition, **style)
        axes.plot(at, rows["by_chance"], linestyle=":", alpha=0.6, **style)
    axes.set_xticks(range(len(order)), order)
    thin(axes.get_xticklabels(), 16)
    axes.set(xlabel="place", ylabel="divergence of mean gates (bits)", ylim=(0, None))
    axes.set_title("dotted: by chance", loc="right", fontsize=FONT - 1)
    axes.legend(frameon=False)
    bare(axes)
    save(figure, path)


def by_group(gates: pl.DataFrame, path: Path) -> None:
    """Draw the mean gates of every group (rows) and expert (columns), a panel per place."""
    names = gates["place"].unique(maintain_order=True).to_list()
    names = [names[place] for place in evenly(len(names), 4)]
    groups = gates["group"].unique(maintain_order=True).to_list()[:GROUPS]
    figure = Figure((WIDTH, 1.2 + 0.3 * len(groups)), layout="constrained")
    panels = figure.subplots(1, len(names), squeeze=False).flatten()
    for axes, name in zip(panels, names, strict=True):
        here = gates.filter(pl.col("place") == name)
        experts = int(here["expert"].to_numpy().max()) + 1
        matrix = np.full((len(groups), experts), np.nan)
        for row in here.iter_rows(named=True):
            if row["group"] in groups:
                matrix[groups.index(row["group"]), row["expert"]] = row["mean_gate"]
        image = axes.imshow(matrix, cmap="cividis", vmin=0, aspect="auto")
        axes.set_title(f"place {name}", loc="left", fontsize=FONT)
        axes.set_yticks(range(len(groups)), groups if axes is panels[0] else [""] * len(groups))
        axes.set_xticks(range(experts), range(experts))
        thin(axes.get_xticklabels(), 8)
        figure.colorbar(image, ax=axes)
    save(figure, path)


def grid(
    count: int, most: int, base: float, height: float, sharey: bool = False
) -> tuple[Figure, np.ndarray]:
    """Return a figure of `count` visible panels, at most `most` in a line, each line `height` inches."""
    columns = min(most, max(1, count))
    lines = max(1, -(-count // columns))
    figure = Figure((WIDTH, base + height * lines), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False, sharey=sharey).flatten()
    for axes in panels[count:]:
        axes.set_visible(False)
    return figure, panels


def thin(labels: Sequence[Text], most: int) -> None:
    """Hide labels of an axis, evenly, until at most `most` are left."""
    step = -(-len(labels) // most)
    for place, label in enumerate(labels):
        label.set_visible(place % step == 0)


def bare(axes: Axes) -> None:
    """Remove the box around the data."""
    axes.spines[["top", "right"]].set_visible(False)


def save(figure: Figure, path: Path) -> None:
    """Write a PNG without the name of the program that made it."""
    with written_whole(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150, metadata={"Software": None})

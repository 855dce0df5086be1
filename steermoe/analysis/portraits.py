"""Pictures of one adapter's experts: their use, their geometry, what they specialise in, and one utterance's gates."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from matplotlib.figure import Figure

from steermoe.analysis.plots import COLOURS, FONT, MARKERS, WIDTH, bare, expert_use, layer_scales, save, thin

Timeline = tuple[Sequence[np.ndarray], float, str]  # gates (S, N) of every place, seconds, what is said
PANELS = 8  # places that are shown where every place has a panel
GROUPS = 12  # groups of a condition that are shown


def draw_all(
    variant: str,
    use: dict,
    shapes: Mapping[str, dict],
    gates: pl.DataFrame,
    differs: pl.DataFrame,
    timeline: Timeline,
    folder: Path,
) -> dict[str, str]:
    """Draw every picture into `folder`; returns what each file shows, by name."""
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


def shown(count: int, most: int = PANELS) -> list[int]:
    """At most `most` numbers below `count`, evenly apart, first and last among them."""
    return sorted({round(place) for place in np.linspace(0, count - 1, min(count, most))})


def similarity(shapes: Mapping[str, dict], path: Path) -> None:
    """A matrix a place."""
    names = [list(shapes)[place] for place in shown(len(shapes))]
    columns = min(4, len(names))
    lines = -(-len(names) // columns)
    figure = Figure((WIDTH, 0.6 + 2.0 * lines), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).flatten()
    image = None
    for axes, name in zip(panels, names, strict=False):
        matrix = np.array(shapes[name]["similarity"])
        image = axes.imshow(matrix, cmap="RdBu_r", vmin=-1, vmax=1)
        axes.set_title(f"place {name}", loc="left", fontsize=FONT)
        axes.set_xticks(range(len(matrix)), range(len(matrix)))
        axes.set_yticks(range(len(matrix)), range(len(matrix)))
        thin(axes.get_xticklabels(), 8)
        thin(axes.get_yticklabels(), 8)
    for axes in panels[len(names) :]:
        axes.set_visible(False)
    if image is not None:
        figure.colorbar(image, ax=list(panels), label="cosine", shrink=0.8)
    save(figure, path)


def over_time(timeline: Timeline, names: Sequence[str], path: Path) -> None:
    """The gates of every expert over the seconds of an utterance, a panel a place."""
    gates, seconds, _ = timeline
    places = shown(len(names))
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
    """Divergence of each condition over the places."""
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
    """Mean gates of every group (rows) and expert (columns), a panel a place."""
    names = gates["place"].unique(maintain_order=True).to_list()
    names = [names[place] for place in shown(len(names), 4)]
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

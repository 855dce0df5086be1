"""Draw plots as PNG, in Okabe and Ito's colours; the same data gives the same bytes."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from steermoe.analysis.comparison import Comparison, Row, Set
from steermoe.atomic_io import written_whole
from steermoe.evaluation.metrics import METRICS

MARKERS = "os^vDPX*"
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
STYLES = ["-", "--", "-.", ":"]
GREY = "#8C8C8C"
PANELS = 8  # places that are shown where every place has a panel
GROUPS = 12  # groups of a condition that are shown
TICKS = 16  # labels of an axis
MOST = 120.0  # percent; bars end there, so that one that talks on does not flatten the others
WIDTH = 8.0  # inches; at 150 dots an inch text stays readable where a README shows it
FONT = 10
Timeline = tuple[Sequence[np.ndarray], float, str]  # gates (S, N) of every place, seconds, and a title
Panel = tuple[str, np.ndarray, Sequence[str], Sequence[str]]  # title, matrix, names of its rows and columns
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
        "error_rates.png": "Error rate of every variant on every test split, with intervals; dots: single seeds",
        "learning_curves.png": "What was measured on dev against optimizer steps",
    }
    error_rates(comparison, folder / "error_rates.png")
    learning_curves(histories, folder / "learning_curves.png")
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
    """Draw bars of each set's error rate, a panel per set: configurations, and in grey the encoder's own decoder.

    Controls and trivial baselines are left to the table: next to their rates, variants could not be distinguished.
    """
    places = [place for place in comparison.sets if place.task == "transcribe"]
    single = {run for runs in comparison.seeds.values() for run in runs}
    rows = [
        row
        for row in comparison.rows
        if row.kind in ("variant", "seeds", "decoder")
        and row.system not in single
        and any(comparison.cell(row, place, place.metric) for place in places)
    ]
    figure, panels = grid(len(places), 2, 0.9 + 0.3 * max(1, len(rows)), sharey=True)
    for axes, place in zip(panels, places, strict=False):
        bars(axes, comparison, rows, place)
    save(figure, path)


def bars(axes: Axes, comparison: Comparison, rows: Sequence[Row], place: Set) -> None:
    """Draw one panel of `error_rates`."""
    found = [comparison.cell(row, place, place.metric) for row in rows]
    limit = min(MOST, 115 * max((cell.high for cell in found if cell), default=0)) or 1
    for height, (row, cell) in enumerate(zip(rows, found, strict=True)):
        if cell is None:
            continue
        value, low, high = (100 * number for number in (cell.value, cell.low, cell.high))
        axes.barh(height, value, height=0.6, color=GREY if row.kind == "decoder" else COLOURS[0])
        whiskers = [[max(0.0, value - low)], [max(0.0, high - value)]]
        axes.errorbar(value, height, xerr=whiskers, color="black", capsize=3, linewidth=1)
        axes.plot(
            [100 * seed for seed in cell.seeds],
            [height] * len(cell.seeds),
            "o",
            color=COLOURS[4],
            markersize=4,
        )
        text = f"{value:.1f}, n = {cell.n}" if comparison.is_partial(cell) else f"{value:.1f}"
        is_beyond = high >= limit
        axes.annotate(
            text, (min(high, limit), height), (-4 if is_beyond else 4, 0), textcoords="offset points",
            va="center", fontsize=FONT, ha="right" if is_beyond else "left", color="white" if is_beyond else "black",
        )  # fmt: skip
    axes.set_yticks(range(len(rows)), [row.title.replace(", ", "\n") for row in rows])
    axes.set(xlim=(0, limit), ylim=(len(rows) - 0.5, -0.5), xlabel=f"{METRICS[place.metric].title} (%)")
    axes.set_title(f"{place.corpus} {place.split}, n = {place.n}", loc="left", fontsize=FONT)
    axes.tick_params(axis="y", length=0)
    bare(axes)


def expert_use(uses: Mapping[str, dict], path: Path) -> None:
    """Draw the mean gate of every expert in every steered layer, a panel per variant."""

    def panels() -> Iterator[Panel]:
        for variant, use in uses.items():
            gates = np.full((len(use["layers"]), max(use["experts"])), np.nan)
            for line, row in zip(gates, use["mean_gates"], strict=True):
                line[: len(row)] = row
            yield variant, gates, use["layers"], [str(number) for number in range(gates.shape[1])]

    heatmaps([*panels()], path, "mean gate", ylabel="encoder layer")


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
        named(axes.set_xticks, order)
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


def similarity(shapes: Mapping[str, dict], path: Path) -> None:
    """Draw the cosine similarity between steering vectors, a matrix per place."""
    panels = []
    for name in (list(shapes)[place] for place in evenly(len(shapes), PANELS)):
        matrix = np.array(shapes[name]["similarity"])
        experts = [str(number) for number in range(len(matrix))]
        panels.append((f"place {name}", matrix, experts, experts))
    heatmaps(panels, path, "cosine", columns=4, ylabel="expert", cmap="RdBu_r", vmin=-1, vmax=1)


def over_time(timeline: Timeline, names: Sequence[str], path: Path) -> None:
    """Draw the gates of every expert over the seconds of an utterance, a panel per place."""
    gates, seconds, _ = timeline
    panels = []
    for place in evenly(len(names), PANELS):
        frames, experts = gates[place].shape
        times = [f"{seconds * frame / frames:.1f}" for frame in range(frames)]
        panels.append((f"place {names[place]}", gates[place].T, [str(n) for n in range(experts)], times))
    heatmaps(panels, path, "gate", columns=1, xlabel="seconds", ylabel="expert", vmax=1)


def by_group(gates: pl.DataFrame, path: Path) -> None:
    """Draw the mean gates of every group (rows) and expert (columns), a panel per place."""
    names = gates["place"].unique(maintain_order=True).to_list()
    groups = gates["group"].unique(maintain_order=True).to_list()[:GROUPS]
    panels = []
    for name in (names[place] for place in evenly(len(names), 4)):
        here = gates.filter(pl.col("place") == name, pl.col("group").is_in(groups))
        table = here.pivot("expert", index="group", values="mean_gate")
        panels.append(
            (f"place {name}", table.drop("group").to_numpy(), table["group"].to_list(), table.columns[1:])
        )
    heatmaps(panels, path, "mean gate", ylabel="")


def specialised(differs: pl.DataFrame, path: Path) -> None:
    """Draw the divergence of each condition over the places."""
    figure = Figure((WIDTH, 3.2), layout="constrained")
    axes = figure.subplots()
    order = differs["place"].unique(maintain_order=True).to_list()
    for number, condition in enumerate(differs["condition"].unique(maintain_order=True)):
        rows = differs.filter(pl.col("condition") == condition)
        at = [order.index(place) for place in rows["place"]]
        marker, colour = MARKERS[number % len(MARKERS)], COLOURS[number % len(COLOURS)]
        axes.plot(at, rows["divergence"], label=condition, marker=marker, color=colour)
        axes.plot(at, rows["by_chance"], linestyle=":", alpha=0.6, marker=marker, color=colour)
    named(axes.set_xticks, order)
    axes.set(xlabel="place", ylabel="divergence of mean gates (bits)", ylim=(0, None))
    axes.set_title("dotted: by chance", loc="right", fontsize=FONT - 1)
    axes.legend(frameon=False)
    bare(axes)
    save(figure, path)


def heatmaps(
    panels: Sequence[Panel],
    path: Path,
    label: str,
    columns: int = 2,
    xlabel: str = "expert",
    ylabel: str = "",
    cmap: str = "cividis",
    vmin: float = 0,
    vmax: float | None = None,
) -> None:
    """Draw matrices with one scale of colours, whose default reaches to their maximum."""
    rows = max(len(matrix) for _, matrix, _, _ in panels)
    figure, shown = grid(len(panels), columns, 1.1 + 0.2 * min(rows, TICKS))
    reach = max(float(np.nanmax(matrix)) for _, matrix, _, _ in panels) if vmax is None else vmax
    for axes, (title, matrix, lines, names) in zip(shown, panels, strict=False):
        axes.imshow(matrix, cmap=cmap, vmin=vmin, vmax=reach, aspect="auto", interpolation="none")
        named(axes.set_yticks, lines)
        named(axes.set_xticks, names, TICKS // min(columns, len(panels)))
        axes.set(xlabel=xlabel, ylabel=ylabel)
        axes.set_title(title, loc="left", fontsize=FONT)
    figure.colorbar(shown[0].images[0], ax=list(shown[: len(panels)]), label=label)
    save(figure, path)


def evenly(count: int, most: int) -> list[int]:
    """Return at most `most` numbers below `count`, evenly apart, first and last among them."""
    return sorted({round(place) for place in np.linspace(0, count - 1, min(count, most))})


def named(ticks: Callable[..., object], names: Sequence[str], most: int = TICKS) -> None:
    """Label an axis (its `set_xticks` or `set_yticks`) with names, or with `most` of them evenly apart."""
    at = evenly(len(names), most)
    ticks(at, [names[place] for place in at])


def grid(count: int, most: int, height: float, sharey: bool = False) -> tuple[Figure, np.ndarray]:
    """Return a figure of `count` visible panels, at most `most` in a line, each line `height` inches."""
    columns = min(most, max(1, count))
    lines = max(1, -(-count // columns))
    figure = Figure((WIDTH, height * lines), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False, sharey=sharey).flatten()
    for axes in panels[count:]:
        axes.set_visible(False)
    return figure, panels


def bare(axes: Axes) -> None:
    """Remove the box around the data."""
    axes.spines[["top", "right"]].set_visible(False)


def save(figure: Figure, path: Path) -> None:
    """Write a PNG without the name of the program that made it."""
    with written_whole(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150, metadata={"Software": None})

"""Everything about the experts of one trained adapter, as tables, pictures and a page of Markdown in a folder."""

from pathlib import Path

import polars as pl

from steermoe.analysis import portraits, specialisation
from steermoe.analysis.report import markdown_table, number
from steermoe.analysis.steering import collect
from steermoe.atomic_io import write_bytes, write_text
from steermoe.audio import io as waveform
from steermoe.evaluation.predictions import write_json
from steermoe.models.steermoe import SteerMoE

BATCH_SECONDS = 60.0
DIVERGENCE = ("divergence", "by_chance", "p")  # columns of divergences.csv
LEGEND = (
    "Places are layers of the encoder, counted from 0 as experts are; `post` is its output. "
    "Experts in use: exp of the entropy of the gates."
)
BY_CONDITION = (
    "Jensen-Shannon divergence (bits) of mean gates between the groups of a condition, beside its mean over "
    f"{specialisation.SHUFFLES} random dealings of the utterances into such groups; p is uncorrected."
)


def analyze(
    model: SteerMoE, frame: pl.DataFrame, out: Path, conditions: tuple[str, ...] | None = None, seed: int = 0
) -> list[Path]:
    """Listen to `frame` and write what the experts do into `out`.

    Args:
        model: with steering.
        frame: rows of `Utterance`; all are heard.
        out: the folder: gates.csv, divergences.csv, steering.json, report.md and pictures.
        conditions: columns of `frame` by which use is compared; None for split, speaker and task.
        seed: of the dealings that divergences are compared with.

    Returns:
        The files, report.md first.

    Raises:
        ValueError: the model has no steering, there are no rows, or a condition is no column of theirs.
    """
    if model.steering is None:
        raise ValueError(f"method {model.config.method} has no experts to analyze; steering has")
    if frame.is_empty():
        raise ValueError("no utterances to listen to")
    wanted = specialisation.CONDITIONS if conditions is None else conditions
    for name in wanted:
        if name not in frame.columns or name == "audio":
            legal = ", ".join(column for column in frame.columns if column != "audio")
            raise ValueError(f"conditions: found {name!r}; legal: {legal}")
    use = collect(model, frame, BATCH_SECONDS, seed, utterances=len(frame))
    assert use is not None
    used = specialisation.usage(model, frame)
    gates, differs = specialisation.table(used, wanted), specialisation.divergences(used, wanted, seed)
    shapes = specialisation.geometry(model.steering)
    write_bytes(out / "gates.csv", gates.write_csv().encode())
    write_bytes(out / "divergences.csv", differs.write_csv().encode())
    write_json(out / "steering.json", use | {"geometry": shapes})
    longest = frame.sort("seconds", descending=True).row(0, named=True)
    timeline = list(model.gates(waveform.load(longest["audio"])).values())
    heading = f"{longest['source_id']}: {longest['transcript'][:60]}"
    pictures = portraits.draw_all(
        model.config.name, use, shapes, gates, differs, (timeline, longest["seconds"], heading), out
    )
    write_text(out / "report.md", _page(model, frame, use, shapes, differs, pictures))
    names = ["report.md", "gates.csv", "divergences.csv", "steering.json", *pictures]
    return [out / name for name in names]


def _page(
    model: SteerMoE,
    frame: pl.DataFrame,
    use: dict,
    shapes: dict,
    differs: pl.DataFrame,
    pictures: dict[str, str],
) -> str:
    columns = zip(
        use["layers"], use["experts"], use["scales"], use["steer_to_residual"], use["effective_experts"],
        use["effective_load"], use["mean_gates"], strict=True,
    )  # fmt: skip
    body = []
    for place, experts, scale, ratio, each, load, gates in columns:
        norms = shapes[place]["norms"]
        body.append([
            place, str(experts), number(scale, 3), number(ratio, 4), number(each, 2), number(load, 2),
            f"{gates.index(max(gates))} ({max(gates):.2f})", f"{min(norms):.3g} to {max(norms):.3g}",
        ])  # fmt: skip
    header = [
        "place", "experts", "scale", "rms of steering / of what it steers", "experts in use a frame",
        "over all frames", "most used (mean gate)", "norms of scaled vectors",
    ]  # fmt: skip
    lines = [f"# What the experts of {model.config.name} do", ""]
    hours = frame["seconds"].sum() / 3600
    heard = f"Heard: {len(frame)} utterances, {hours:.2f} h, {use['frames']:,} encoder frames."
    lines += [
        f"{heard} {LEGEND}",
        "",
        *markdown_table(header, body),
        "",
        "## By condition",
        "",
        BY_CONDITION,
        "",
    ]
    body = [
        [row["condition"], row["place"], str(row["groups"]), *(f"{row[name]:.4f}" for name in DIVERGENCE)]
        for row in differs.iter_rows(named=True)
    ]
    lines += markdown_table(["condition", "place", "groups", *DIVERGENCE], body)
    for name, caption in pictures.items():
        lines += ["", f"![{caption}]({name})", "", caption + "."]
    return "\n".join(lines) + "\n"

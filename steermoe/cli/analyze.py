"""`steermoe analyze`."""

from pathlib import Path
from typing import Annotated

import typer


def main(
    checkpoint: Annotated[str, typer.Argument(help="a trained adapter with steering: a folder, or a hub id")],
    shards: Annotated[Path, typer.Argument(help="what it listens to: a corpus as `preprocess` leaves it")],
    out: Annotated[Path, typer.Option(help="the folder for report, tables and pictures")] = Path("analysis"),
    split: Annotated[
        list[str] | None, typer.Option(help="a split to listen to, again for more; default: all but train")
    ] = None,
    condition: Annotated[
        list[str] | None,
        typer.Option(help="a column by whose values use is compared; default: split, speaker, task"),
    ] = None,
    utterances: Annotated[int, typer.Option(min=1, help="at most so many, drawn by the seed")] = 400,
    seed: Annotated[int, typer.Option(min=0, help="of the draw, and of the comparison with chance")] = 0,
) -> None:
    """See what the experts of a trained adapter do: tables, pictures, and a report.

    Use of every expert at every steered place, how decided the gates are, scales and norms, how alike the steering
    vectors are, the gates of an utterance over time, and how use differs between splits, speakers, tasks, sound and
    silence, beside what chance would give.

    Examples:

        steermoe analyze models/mini/steermoe data/mini/shards/synthetic
        steermoe analyze models/mini/steermoe data/mini/shards/synthetic --split other --condition speaker
    """
    from steermoe.analysis.checkpoint import analyze
    from steermoe.data.shards import read_rows, splits_of
    from steermoe.models.steermoe import SteerMoE

    there = splits_of(shards)
    wanted = split or [name for name in there if name != "train"] or there
    if wrong := [name for name in wanted if name not in there]:
        raise ValueError(f"--split: found {wrong[0]!r}; {shards} has: {', '.join(there) or 'no shards'}")
    rows = read_rows(shards, wanted)
    rows = rows.sample(min(utterances, len(rows)), seed=seed)
    model = SteerMoE.from_pretrained(checkpoint)
    files = analyze(model, rows, out, tuple(condition) if condition else None, seed)
    print(
        f"{files[0]}: {len(rows)} utterances of {', '.join(wanted)}; with it {len(files) - 1} tables and pictures"
    )

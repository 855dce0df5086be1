"""`steermoe analyze`."""

from pathlib import Path
from typing import Annotated

import typer


def main(
    checkpoint: Annotated[str, typer.Argument(help="trained adapter with steering: a folder or a hub id")],
    shards: Annotated[
        Path, typer.Argument(help="corpus to encode: a folder of shards, as `preprocess` writes it")
    ],
    out: Annotated[Path, typer.Option(help="folder for report, tables and plots")] = Path("analysis"),
    split: Annotated[
        list[str] | None, typer.Option(help="split to encode, can be repeated; default: all but train")
    ] = None,
    condition: Annotated[
        list[str] | None,
        typer.Option(
            help="column by whose values use is compared, can be repeated; default: split, speaker, task"
        ),
    ] = None,
    utterances: Annotated[
        int, typer.Option(min=1, help="maximum number of utterances, a random sample")
    ] = 400,
    seed: Annotated[
        int, typer.Option(min=0, help="seed of the sample and of the comparison with chance")
    ] = 0,
) -> None:
    """Show what the experts of a trained adapter do: tables, plots and a report.

    Use of every expert at every steered place, entropy of the gates, scales and norms, similarity of the steering
    vectors, the gates of one utterance over time, and how use differs between splits, speakers, tasks, sound and
    silence, compared with chance.

    Examples:

        steermoe analyze models/mini/steermoe data/mini/shards/synthetic
        steermoe analyze models/mini/steermoe data/mini/shards/synthetic --split other --condition speaker
    """
    from steermoe.analysis.experts import analyze
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
        f"{files[0]}: {len(rows)} utterances of {', '.join(wanted)}; also {len(files) - 1} tables and plots"
    )

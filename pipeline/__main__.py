"""`python -m pipeline <stage>`: one stage of dvc.yaml, or one of the commands around it."""

import importlib
import sys
from collections.abc import Callable

from steermoe.cli.terminal import flushed, prepare_streams

STAGES = {  # the function is `main` of the module of that name, unless PLACES says otherwise
    "stamp": "note the state of what the profile reads from outside the repository",
    "base": "find or fetch the frozen models, and write down what they are",
    "download": "fetch a corpus from its source, a mirror, or write its recipe",
    "preprocess": "turn a corpus into checked parquet shards",
    "configure": "resolve the configuration of the selected variants",
    "train": "train one variant",
    "eval": "decode and score one variant on one corpus",
    "baseline": "score what needs no training: the encoder's own decoder, the cascade, guesses without audio",
    "ablate": "compare the variants: table, pictures, report",
    "search": "choose learning rates for a method on the development splits",
    "table": "score and compare trained adapters, such as those of the repository, without training",
    "show": "print the comparison of the selected profile",
    "own": "write a profile for a folder of recordings, and select it",
    "profile": "select another profile or other variants",
}
PLACES = {
    "stamp": "sources:stamp",
    "download": "sources:download",
    "search": "train:search",
    "show": "ablate:show",
}


def command(stage: str) -> Callable[..., None]:
    """Return the function of a stage."""
    module, _, function = PLACES.get(stage, stage).partition(":")
    return getattr(importlib.import_module(f"pipeline.{module}"), function or "main")


def main() -> int:
    stage, *rest = sys.argv[1:] or ["--help"]
    if stage in ("-h", "--help"):
        print(f"{__doc__}\n")
        print("\n".join(f"  {name:<12}{summary}" for name, summary in STAGES.items()))
        print("\n`python -m pipeline <stage> --help` shows a stage's options.")
        return 0
    if stage not in STAGES:
        print(f"unknown stage {stage!r}; one of: {', '.join(STAGES)}", file=sys.stderr)
        return 2
    import typer

    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(command(stage))
    try:
        app(rest, prog_name=f"python -m pipeline {stage}")
    except (ValueError, OSError, RuntimeError) as error:
        print(f"{stage}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    prepare_streams()
    sys.exit(flushed(main()))

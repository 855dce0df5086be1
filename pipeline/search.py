"""Choose learning rates: the same grid of multipliers for every method, judged on the development splits."""

from pathlib import Path

from pipeline.options import Names, Out, Params, Shards, Steps


def main(
    shards: Shards, out: Out, steps: Steps, params: Params = Path("params.yaml"), variants: Names = None
) -> None:
    """Train VARIANTS (one a method; default: those selected) for STEPS steps with each multiplier of the rates."""
    from steermoe import config
    from steermoe.atomic_io import project_root
    from steermoe.training.lr_search import search

    settings = config.load(params)
    names = variants.split(",") if variants else settings.compare
    folders = sorted(path for path in shards.iterdir() if path.is_dir())
    found = search([settings.variant(name) for name in names], folders, out, project_root(), steps)
    for method, best in found["chosen"].items():
        print(f"{method}: {best}")

"""Stage `train`, and the search for learning rates."""

import sys
from pathlib import Path

import typer

from pipeline.options import (
    FeatureCache,
    History,
    LoaderWorkers,
    Names,
    Out,
    Params,
    Run,
    Shards,
    Steps,
    Timing,
    VariantFile,
)


def main(
    config: VariantFile,
    shards: Shards,
    out: Out,
    history: History,
    timing: Timing,
    run: Run | None = None,
    workers: LoaderWorkers = 0,
    feature_cache_gb: FeatureCache = 4.0,
    params: Params = Path("params.yaml"),
) -> None:
    """Train the variant that CONFIG resolves on SHARDS; an interrupted training resumes from its last checkpoint.

    Of PARAMS only `training.distributed` of the profile is read, and `generation` and `evaluation.normalizer`, which
    the adapter stores for its use. Targets that are longer than any answer are reported. Exit code 75: SIGTERM ended
    the training after a checkpoint, and the same command resumes it.
    """
    from steermoe import config as configuration
    from steermoe import distributed as processes
    from steermoe.atomic_io import project_root
    from steermoe.config import VariantConfig

    settings = configuration.load(params)
    distributed = settings.training.distributed
    try:
        is_zero = distributed.strategy in ("zero2", "zero3")
        with processes.shared(processes.count(distributed), as_group=is_zero) as is_ours:
            if not is_ours:
                return
            from steermoe.training.mlflow_logger import Tracker
            from steermoe.training.train import train

            results = train(
                VariantConfig.from_json(config.read_text()),
                sorted(path for path in shards.iterdir() if path.is_dir()),
                out,
                project_root(),
                history=history,
                timing=timing,
                run=run,
                tracker=Tracker(out.parent.name),
                workers=workers,
                feature_cache_gb=feature_cache_gb,
                distributed=distributed,
                max_new_tokens=settings.generation.max_new_tokens,
                generation=settings.generation,
                normalizer=settings.evaluation.normalizer,
            )
            if processes.world().rank == 0:
                wer = f", dev WER {results['best_dev_wer']:.1%}" if "best_dev_wer" in results else ""
                print(f"{out}: dev loss {results['best_dev_loss']:.4f}{wer} at step {results['best_step']}")
    except processes.PreemptedError as error:
        print(f"train: {error}", file=sys.stderr)
        raise typer.Exit(processes.PREEMPTED) from error


def search(
    shards: Shards, out: Out, steps: Steps, params: Params = Path("params.yaml"), variants: Names = None
) -> None:
    """Train VARIANTS (one a method; default: those selected) for STEPS steps with each multiplier of the rates."""
    from steermoe import config
    from steermoe.atomic_io import project_root
    from steermoe.training import lr_search

    settings = config.load(params)
    names = variants.split(",") if variants else settings.compare
    folders = sorted(path for path in shards.iterdir() if path.is_dir())
    found = lr_search.search([settings.variant(name) for name in names], folders, out, project_root(), steps)
    for method, best in found["chosen"].items():
        print(f"{method}: {best}")

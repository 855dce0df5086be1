"""Train one variant."""

import sys
from pathlib import Path

import typer

from pipeline.options import (
    FeatureCache,
    History,
    LoaderWorkers,
    Out,
    Params,
    Run,
    Shards,
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

    Of PARAMS only `training.distributed` of the profile is read, on what the variant is trained, and
    `generation` and `evaluation.normalizer`, which the adapter stores for its use, and by which targets that no answer
    can reach are reported. Exit code 75: it was asked to end
    (SIGTERM), has kept what is done, and goes on when the command is repeated.
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
                print(f"{out}: dev loss {results['best_dev_loss']:.4f} at step {results['best_step']}")
    except processes.PreemptedError as error:
        print(f"train: {error}", file=sys.stderr)
        raise typer.Exit(processes.PREEMPTED) from error

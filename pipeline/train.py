"""Train one arm."""

import json

from pipeline.options import ArmFile, FeatureCache, History, LoaderWorkers, Out, Run, Shards, Timing


def main(
    config: ArmFile,
    shards: Shards,
    out: Out,
    history: History,
    timing: Timing,
    run: Run | None = None,
    workers: LoaderWorkers = 0,
    feature_cache_gb: FeatureCache = 4.0,
) -> None:
    """Train the arm that CONFIG resolves on SHARDS; what was interrupted goes on from its last checkpoint."""
    from steermoe.config import ArmConfig
    from steermoe.data.staging import project_root, write_text
    from steermoe.training.tracking import Tracker
    from steermoe.training.train import train

    tracker = Tracker(out.parent.name)
    results = train(
        ArmConfig.from_json(config.read_text()),
        sorted(path for path in shards.iterdir() if path.is_dir()),
        out,
        project_root(),
        history=history,
        timing=timing,
        tracker=tracker,
        workers=workers,
        feature_cache_gb=feature_cache_gb,
    )
    if run is not None:
        write_text(run, json.dumps({"mlflow_run_id": tracker.run_id}) + "\n")
    print(f"{out}: dev loss {results['best_dev_loss']:.4f} at step {results['best_step']}")

"""Trains one variant: begins or resumes, keeps the best weights, writes the outputs."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from transformers import set_seed

from steermoe.atomic_io import Staging, project_root, write_text
from steermoe.config import Distributed, Generation, VariantConfig
from steermoe.data.dataset import UtteranceDataset
from steermoe.distributed import ONE_PROCESS, PreemptedError, check, gathered, world
from steermoe.hub import adapters_of
from steermoe.models import checkpoint as adapter
from steermoe.models.attention import ShortAttention
from steermoe.models.pretrained import digests
from steermoe.models.steermoe import SteerMoE
from steermoe.training import reporting
from steermoe.training.checkpointing import discard_all, discard_leftovers, last_checkpoint
from steermoe.training.dev_wer import DevWer
from steermoe.training.distillation import Teacher
from steermoe.training.feature_cache import feature_cache
from steermoe.training.initialization import load_initial
from steermoe.training.loop import Trainer
from steermoe.training.mlflow_logger import Tracker
from steermoe.training.rows import (
    DivergedError,
    TrainingData,
    check_rows,
    read_data,
    spoken_tokens,
)

FORMAT = 3  # of the checkpoints; with a higher number, older ones are not read


class FrozenChangedError(RuntimeError):
    """Raised when training changed a weight that must stay as it is; `first` names model and tensor."""

    def __init__(self, run: Path, first: str) -> None:
        super().__init__(
            f"{run}: the frozen weights changed during this training (first: {first}), so its adapter does not belong "
            "to them; nothing is written and its checkpoints are deleted; find the code that writes into frozen "
            "weights, and train anew"
        )


def train(
    variant: VariantConfig,
    shards: Sequence[Path],
    out: Path,
    root: Path | None = None,
    *,
    history: Path | None = None,
    timing: Path | None = None,
    run: Path | None = None,
    tracker: Tracker | None = None,
    workers: int = 0,
    feature_cache_gb: float = 0.0,
    distributed: Distributed = ONE_PROCESS,
    max_new_tokens: int | None = None,
    generation: Generation | None = None,
    normalizer: str | None = None,
) -> dict[str, Any]:
    """Train `variant`, or finish what was interrupted, and write the best weights; all processes call this.

    Args:
        variant, shards: the resolved configuration, and a folder for each corpus.
        out: replaced at the end by a folder of adapter.safetensors and config.json, the same after any interruption.
        root: the project's root; work is kept in `root`/.runs until it is done.
        history, timing, run: files for evaluations (by default in `out`), results, and the id of the tracker's run.
        feature_cache_gb: size of the cache of frozen encoders' outputs below `root`; the result is the same with 0.
        max_new_tokens: longest answer of the evaluation to come; longer targets are reported.
        generation, normalizer: stored in the adapter, for its use; they do not affect training.

    Raises:
        ValueError: rows, the teacher or the initial adapter are missing or do not fit.
        FrozenChangedError, DivergedError, CheckpointError: the training failed.
        PreemptedError: SIGTERM arrived; a checkpoint is written, and the same call continues from there.
    """
    check(distributed)
    set_seed(variant.seed)
    data = read_data(variant, shards)
    model = _built(variant, data, max_new_tokens)
    teacher = Teacher.of(model)
    before = {part: digests(weights) for part, weights in model.frozen_parts().items()}
    _begin(model, data, before)
    key = training_key(variant, data.digest, _last(before), adapters_of(variant.training))
    cache = root or project_root(), feature_cache_gb
    shared = {"teacher": teacher, "workers": workers, "distributed": distributed}
    fit = partial(_fit, model, data, before, key, cache, **shared)
    if world().rank:
        return fit(None)[1]
    with Staging(out, key, root) as staging:
        with _tracking(tracker, variant, key, data, shards[0].parent, staging.scratch):
            trainer, results = fit(staging.scratch, tracker=tracker)
            weights = trainer.best_weights | model.fixed_state()
            trained = (variant, key["frozen"], weights, None, generation, normalizer)
            adapter.write(staging.files, adapter.Adapter(*trained))
            _write_results(history or staging.part("history.csv"), timing, trainer, results)
            if tracker is not None:
                _track_results(tracker, results, staging.files)
            staging.publish()
        if run is not None and tracker is not None:
            write_text(run, json.dumps({"mlflow_run_id": tracker.run_id}) + "\n")
        staging.retire()  # last: a process killed before continues with the last checkpoint and with the run
    return results


def _built(variant: VariantConfig, data: TrainingData, max_new_tokens: int | None) -> SteerMoE:
    """Return the initial model of a variant, which can be trained on `data`."""
    model = SteerMoE.from_config(variant)
    check_rows(variant, data, model, max_new_tokens)
    return model


def _begin(model: SteerMoE, data: TrainingData, before: Mapping[str, Mapping[str, str]]) -> None:
    """Load the initial adapter, if there is one, and let the CTC head know the tokens of the training targets."""
    load_initial(model, _last(before))
    if (ctc := model.config.training.ctc) is not None and model.ctc is not None:
        model.ctc.allow(spoken_tokens(data, model.tokenizer, ctc.spelling))


def _write_results(history: Path, timing: Path | None, trainer: Trainer, results: dict[str, Any]) -> None:
    write_text(history, reporting.to_csv(reporting.table(trainer.log)))
    if timing is not None:
        write_text(timing, json.dumps(results, indent=1) + "\n")


def training_key(
    variant: VariantConfig,
    data: str,
    frozen: Mapping[str, str],
    adapters: Mapping[str, Mapping[str, str]] | None = None,
) -> dict[str, Any]:
    """Return everything that decides the result but the code, as JSON.

    How the processes share the work is no part of it: the result is the same but for rounding.

    Args:
        variant: the resolved configuration.
        data: digest of the shards (`rows.digest`).
        frozen: hashes of the frozen weights (`SteerMoE.frozen_hashes`).
        adapters: hashes of the adapters that the training reads (`adapters_of`).
    """
    return {
        "checkpoint": FORMAT,
        "variant": json.loads(variant.to_json()),
        "data": data,
        "frozen": dict(frozen),
        **{name: dict(files) for name, files in (adapters or {}).items()},
    }


def fingerprint(key: Mapping[str, Any]) -> str:
    """Return a key as 32 hexadecimal digits, which is the name of the training's work folder too (`Staging`)."""
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]


@contextmanager
def _tracking(
    tracker: Tracker | None,
    variant: VariantConfig,
    key: Mapping[str, Any],
    data: TrainingData,
    shards: Path,
    checkpoints: Path,
) -> Iterator[None]:
    """Open this training's run of the tracker, and close it with the training's outcome.

    The run of a killed or preempted training, or of one that lost another process, stays open: whatever continues the
    training continues the run.
    """
    if tracker is None:
        yield
        return
    tracker.start(variant, fingerprint(key), data.digest, last_checkpoint(checkpoints) is not None)
    try:
        for context, splits in (("train", variant.train_splits), ("dev", variant.dev_splits)):
            tracker.log_inputs(shards, splits, context)
        yield
    except BaseException as error:
        is_lost = world().size > 1 and not isinstance(error, DivergedError)
        if isinstance(error, PreemptedError) or is_lost:
            raise
        tracker.finish("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        raise
    tracker.finish("FINISHED")


def _fit(
    model: SteerMoE,
    data: TrainingData,
    before: Mapping[str, Mapping[str, str]],
    key: Mapping[str, Any],
    cache: tuple[Path, float],
    run: Path | None,
    **options: Any,
) -> tuple[Trainer, dict[str, Any]]:
    """Train to the end, and check the frozen weights; return the trainer, with the best weights, and its results.

    Args:
        model: built from its variant.
        data: its rows.
        before: hashes of the frozen weights.
        key: as `training_key`.
        cache: as of `feature_cache`.
        run: folder of checkpoints; only the first process knows it.
        **options: of the trainer.

    Raises:
        FrozenChangedError: training changed a frozen weight.
    """
    run = Path(gathered({world().rank: str(run)})[0])
    video = None if model.video is None else model.video.features
    train, dev = (
        (
            UtteranceDataset(
                rows, model.features, model.tokenizer, model.config.prompts, video_features=video
            ),
            seconds,
        )
        for rows, seconds in ((rows, rows["seconds"].to_list()) for rows in (data.train, data.dev))
    )
    scored = model.config.training.criterion == "wer"
    wer = DevWer(model.config, data.dev, model.tokenizer) if scored else None
    trainer = Trainer(model, train, dev, run, describe=data.describe, wer=wer, **options)
    if trainer.is_first:
        discard_leftovers(run)
        if (epochs := model.config.training.epochs) is not None:
            print(f"{model.config.name}: {epochs} epochs are {trainer.max_steps} steps")
    trainer.engine.accelerator.wait_for_everyone()
    if checkpoint := last_checkpoint(run):
        trainer.resume(checkpoint)
    if not trainer.is_complete:
        with feature_cache(model, *cache, world().size), ShortAttention():
            trainer.fit()
    if trainer.engine.zero_stage < 3:
        trainer.load_trained(trainer.best_weights)
    after = {part: digests(weights, trainer.engine.whole) for part, weights in model.frozen_parts().items()}
    # Each hash covers the tensors before it, so the first that differs names what changed.
    changed = [
        f"{part}, {name}" for part, of in before.items() for name in of if of[name] != after[part].get(name)
    ]
    if found := {rank: names for rank, names in gathered({world().rank: changed}).items() if names}:
        if trainer.is_first:
            discard_all(run)
        raise FrozenChangedError(run, found[min(found)][0])
    return trainer, _results(trainer, data, key, _last(after))


def _last(hashes: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """Return the digest of all tensors of each part."""
    return {part: list(of.values())[-1] for part, of in hashes.items()}


def _track_results(tracker: Tracker, results: Mapping[str, Any], out: Path) -> None:
    numbers = {f"train/{name}": float(v) for name, v in results.items() if isinstance(v, int | float)}
    counts = {f"params/{part}": float(count) for part, count in results["trainable_parameters"].items()}
    tracker.log(numbers | counts | {"params/trainable": sum(counts.values())}, step=results["steps"])
    tracker.mark_adapter(out)


def _results(
    trainer: Trainer, data: TrainingData, key: Mapping[str, Any], frozen: Mapping[str, str]
) -> dict[str, Any]:
    """Return what timing.json holds; `frozen` has the SHA-256 of each frozen model in memory, before and after."""
    best = reporting.best(trainer.log)
    assert best is not None
    return {
        **{f"best_{name}": best[name] for name in ("dev_loss", reporting.WER) if name in best},
        "best_step": best["step"],
        "steps": trainer.step,
        "stopped_early": trainer.step < trainer.max_steps,
        "train_rows": len(data.train),
        "dropped_rows": data.dropped,
        "dev_rows": len(data.dev),
        "trainable_parameters": trainer.sizes,
        "seconds_per_step": trainer.timer.median,
        "wall_seconds": round(trainer.timer.wall, 1),
        "processes": trainer.engine.world,
        "strategy": trainer.engine.strategy,
        "fingerprint": fingerprint(key),
        "frozen": {part: {"before": key["frozen"][part], "after": digest} for part, digest in frozen.items()},
    }

"""Trains one variant: begins or resumes, keeps the best weights, writes the outputs."""

import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from transformers import TrainerState, set_seed

from steermoe.atomic_io import Staging, code_digest, project_root, write_text
from steermoe.config import Distributed, Generation, VariantConfig
from steermoe.data.dataset import UtteranceDataset
from steermoe.distributed import ONE_PROCESS, PreemptedError, begin_together, check, gathered, world
from steermoe.hub import adapters_of
from steermoe.models import checkpoint as adapter
from steermoe.models.attention import ShortAttention
from steermoe.models.pretrained import digests
from steermoe.models.steermoe import SteerMoE
from steermoe.training import divergence
from steermoe.training import history as log
from steermoe.training.callbacks import Tracking
from steermoe.training.checkpoints import discard_leftovers, last_checkpoint
from steermoe.training.fingerprint import fingerprint, training_key
from steermoe.training.frozen_features import frozen_features
from steermoe.training.heap import keep_freed_memory
from steermoe.training.initial import begin_with
from steermoe.training.mlflow_logger import Tracker
from steermoe.training.rows import TrainingData, check_lengths, read_data, warn_of_long_targets
from steermoe.training.teacher import Teacher
from steermoe.training.trainer import AdapterTrainer

CHANGED = "frozen_changed"  # beside the checkpoints: names the first frozen weight that training changed


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
    """Train `variant`, or finish what a killed process began, and write the best weights.

    Where several processes share the work, all of them call this.

    Args:
        variant: the resolved configuration.
        shards: a folder a corpus, named as the corpus.
        out: replaced, once all is done, by a folder of adapter.safetensors and config.json: the same bytes
            however often training was interrupted.
        root: work lies in `root`/.runs until it is done; by default in the project's root.
        history: a CSV file, a row an evaluation; by default history.csv in `out`. Deterministic like `out`.
        timing: a JSON file for the returned values, which are not all deterministic.
        run: a JSON file for the id of the tracker's run (mlflow_run_id), null as long as its store is out of reach.
        tracker: where metrics are logged; None for nowhere.
        workers: processes that load data; 0 loads in this one.
        feature_cache_gb: where no gradient enters the encoder, its outputs are kept below `root`, up to so
            many gigabytes, and not computed again; the result is the same. 0 keeps none.
        distributed: how the processes share the work.
        max_new_tokens: longest answer of the evaluation to come; targets beyond it are reported before step 1.
        generation, normalizer: stored in the adapter, for its use; they do not affect training.

    Returns:
        best_dev_loss, best_step, steps (trained), stopped_early, train_rows, dropped_rows, dev_rows,
        trainable_parameters (a count a part), seconds_per_step (median), wall_seconds, processes, strategy,
        fingerprint, frozen (SHA-256 of each frozen model in memory, before and after).

    Raises:
        ValueError: a corpus or its rows are missing, rows are longer than a limit, or the variant's teacher or
            the adapter that it begins with is not to be had or does not fit it.
        StagingBusyError: as of `Staging`; it waits for another process that trains this variant.
        FrozenChangedError: a frozen weight is not what it was before training; nothing is written, and the
            checkpoints are not taken up again.
        DivergedError: the loss is no longer finite; diverged.json beside the checkpoints names the rows.
        PreemptedError: SIGTERM came; a checkpoint is written, and the same call goes on from there.
    """
    check(distributed)
    set_seed(variant.seed)
    data = read_data(variant, shards)
    model = SteerMoE.from_config(variant)
    check_lengths(variant, data, model.encoder)
    if max_new_tokens is not None and not world().rank:
        warn_of_long_targets(variant.name, data.train, model.tokenizer, max_new_tokens)
    teacher = Teacher.of(model)
    before = {part: digests(weights) for part, weights in model.frozen_parts().items()}
    frozen = _last(before)
    begin_with(model, frozen)
    key = training_key(variant, data.digest, frozen, adapters_of(variant.training))
    features = (root or project_root(), feature_cache_gb)
    options = {"teacher": teacher, "workers": workers, "features": features, "distributed": distributed}
    made = functools.partial(_trained, model, variant, data, **options)
    if world().rank:
        begin_together()  # the first may have to wait for another training
        trainer = made(None, None)
        return _results(trainer, data, key, _unchanged(trainer, before))
    with Staging(out, key, root) as staging:
        resumes = last_checkpoint(staging.scratch) is not None
        with _tracking(tracker, variant, fingerprint(key), data, resumes) as tracked:
            if tracked is not None:
                for context, splits in (("train", variant.train_splits), ("dev", variant.dev_splits)):
                    tracked.log_inputs(shards[0].parent, splits, context)
            begin_together()
            trainer = made(staging.scratch, tracked)
            frozen = _unchanged(trainer, before)
            results = _results(trainer, data, key, frozen)
            made = (variant, frozen, trainer.best_weights, None, generation, normalizer)
            adapter.write(staging.files, adapter.Adapter(*made))
            table = log.to_csv(log.table(trainer.state.log_history))
            write_text(history or staging.part("history.csv"), table)
            if timing is not None:
                write_text(timing, json.dumps(results, indent=1) + "\n")
            if tracked is not None:
                _track_results(tracked, results, staging.files)
            staging.publish()
        if run is not None and tracker is not None:
            write_text(run, json.dumps({"mlflow_run_id": tracker.run_id}) + "\n")
        staging.retire()  # last: until then, who is killed goes on with the last checkpoint and with the run
    return results


@contextmanager
def _tracking(
    tracker: Tracker | None, variant: VariantConfig, name: str, data: TrainingData, resumes: bool
) -> Iterator[Tracker | None]:
    """The tracker attached to this training's run, which is closed as it ended.

    That of a killed or preempted training, or of one that lost another process, stays open: who goes on with the
    training goes on with the run.
    """
    if tracker is None:
        yield None
        return
    tracker.start(variant, name, data.digest, resumes)
    try:
        yield tracker
    except BaseException as error:
        is_lost = world().size > 1 and not isinstance(error, divergence.DivergedError)
        if isinstance(error, PreemptedError) or is_lost:
            raise
        tracker.finish("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        raise
    tracker.finish("FINISHED")


class FrozenChangedError(RuntimeError):
    """Training changed a weight that must stay as it is; `first` names part and tensor."""

    def __init__(self, run: Path, first: str) -> None:
        super().__init__(
            f"{run}: the frozen weights changed during this training (first: {first}), so its adapter does not belong "
            "to them and is not written; find the code that writes into frozen weights, delete this folder, train anew"
        )


def _unchanged(trainer: AdapterTrainer, before: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """SHA-256 of each frozen model in memory; all processes must call this.

    Raises:
        FrozenChangedError: it is not that of before training, in some process.
    """
    whole = trainer.zero.whole if trainer.zero is not None else nullcontext
    after = {part: digests(weights, whole) for part, weights in trainer.adapted.frozen_parts().items()}
    # Each hash covers the tensors before it, so the first that differs names what changed.
    changed = [
        f"{part}, {name}" for part, of in before.items() for name in of if of[name] != after[part].get(name)
    ]
    found = {rank: names for rank, names in gathered({world().rank: changed}).items() if names}
    if found:
        first = found[min(found)][0]
        if trainer.args.should_save:
            write_text(trainer.run / CHANGED, first)
        raise FrozenChangedError(trainer.run, first)
    return _last(after)


def _last(hashes: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """The digest of all tensors of each part."""
    return {part: list(of.values())[-1] for part, of in hashes.items()}


def _track_results(tracker: Tracker, results: Mapping[str, Any], out: Path) -> None:
    numbers = {f"train/{name}": float(v) for name, v in results.items() if isinstance(v, int | float)}
    counts = {f"params/{part}": float(count) for part, count in results["trainable_parameters"].items()}
    tracker.log(numbers | counts | {"params/trainable": sum(counts.values())}, step=results["steps"])
    tracker.mark_adapter(out)


def _trained(
    model: SteerMoE,
    variant: VariantConfig,
    data: TrainingData,
    run: Path | None,
    tracker: Tracker | None,
    teacher: Teacher | None,
    workers: int,
    features: tuple[Path, float],
    distributed: Distributed,
) -> AdapterTrainer:
    """A trainer whose training is complete and whose model holds the best weights, unless it is sharded."""
    seen = None if model.video is None else model.video.features
    train, dev = (
        (
            UtteranceDataset(rows, model.features, model.tokenizer, variant.prompts, video_features=seen),
            rows["seconds"].to_list(),
        )
        for rows in (data.train, data.dev)
    )
    callbacks = [Tracking(tracker)] if tracker is not None else []
    locate = functools.partial(divergence.locate, data.train, data.folders)
    trainer = AdapterTrainer(
        model, variant, train, dev, run, workers, callbacks, distributed, locate, teacher
    )
    if variant.training.epochs is not None and trainer.args.should_save:
        print(f"{variant.name}: {variant.training.epochs} epochs are {trainer.args.max_steps} steps")
    with trainer.accelerator.main_process_first():
        if trainer.args.should_save:
            discard_leftovers(trainer.run)
            _note_code(trainer.run)
    if (trainer.run / CHANGED).exists():
        raise FrozenChangedError(trainer.run, (trainer.run / CHANGED).read_text())
    checkpoint = last_checkpoint(trainer.run)
    if checkpoint is not None:
        trainer.state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    if checkpoint is None or not trainer.is_complete:
        with frozen_features(model, *features, trainer.args.world_size):
            _run(trainer, checkpoint)
    else:
        trainer.restore(checkpoint)
    if not trainer.is_sharded:
        trainer.load_trained(trainer.best_weights)
    return trainer


def _run(trainer: AdapterTrainer, checkpoint: Path | None) -> None:
    """Train from a checkpoint or from the beginning.

    Raises:
        PreemptedError: SIGTERM came, be it after the last step.
    """
    repeat = "repeat the command, it resumes from the last checkpoint"
    if trainer.args.device.type == "cpu":
        keep_freed_memory()
    try:
        with trainer.preemption, ShortAttention():
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    except RuntimeError as error:
        # SIGTERM to a whole group ends the processes that load data, too, and with them the step under way.
        if trainer.preemption.requested and not isinstance(error, divergence.DivergedError):
            raise PreemptedError(f"{trainer.variant.name}: ended by SIGTERM amid a step; {repeat}") from error
        raise
    finally:
        trainer.progress.close()
    # Who started this got SIGTERM too, perhaps, and takes no result any more: its checkpoint is the result then.
    if trainer.is_complete and not (trainer.preemption.requested and trainer.args.world_size == 1):
        return
    steps = f"step {trainer.state.global_step} of {trainer.args.max_steps}"
    if trainer.stops:
        raise PreemptedError(f"{trainer.variant.name}: ended by SIGTERM at {steps}; {repeat}")
    raise RuntimeError(f"{trainer.variant.name}: training ended at {steps}; {repeat}")


def _note_code(run: Path) -> None:
    """Say so when other code resumes a run than began it: its result is then neither's."""
    note, now = run / "code", code_digest("audio", "data", "models", "training")
    if note.exists() and last_checkpoint(run) is not None and note.read_text() != now:
        print(
            f"{run}: resumes a training that other code began; delete this folder to train anew with one code"
        )
    note.write_text(now)


def _results(
    trainer: AdapterTrainer, data: TrainingData, key: Mapping[str, Any], frozen: Mapping[str, str]
) -> dict[str, Any]:
    best = log.best(trainer.state.log_history)
    assert best is not None
    return {
        "best_dev_loss": best["dev_loss"],
        "best_step": best["step"],
        "steps": trainer.state.global_step,
        "stopped_early": trainer.state.global_step < trainer.args.max_steps,
        "train_rows": len(data.train),
        "dropped_rows": data.dropped,
        "dev_rows": len(data.dev),
        "trainable_parameters": trainer.sizes,
        "seconds_per_step": trainer.timer.median,
        "wall_seconds": round(trainer.timer.wall, 1),
        "processes": trainer.args.world_size,
        "strategy": trainer.distributed.strategy,
        "fingerprint": fingerprint(key),
        "frozen": {part: {"before": key["frozen"][part], "after": digest} for part, digest in frozen.items()},
    }

"""What happens beside the steps of a training: stopping early, timing, tracking."""

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from typing_extensions import override

from steermoe.models.steermoe import SteerMoE
from steermoe.training import history
from steermoe.training.batches import StepBatches
from steermoe.training.router_metrics import RoutingWatch

BY_AUDIO = {
    "train/loss": "by_audio/train_loss",
    "dev/loss": "by_audio/dev_loss",
    "dev/token_accuracy": "by_audio/dev_token_accuracy",
}
METRIC_NAMES = {"loss": "train/loss", "dev_loss": "dev/loss", "dev_token_accuracy": "dev/token_accuracy"}


class MetricLog(Protocol):
    """Where metrics go; `steermoe.training.mlflow_logger.Tracker` is one."""

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Take metrics at an optimizer step."""


class EarlyStopping(TrainerCallback):
    """Stops after `patience` evaluations without a lower loss, and closes the log at the last step.

    It keeps no count of its own: the log tells, so that a resumed training decides as an undisturbed one.
    """

    def __init__(self, patience: int) -> None:
        self.patience = patience

    @override
    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        if state.global_step >= state.max_steps:
            control.should_log = True
        return control

    @override
    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        if history.evaluations_since_best(state.log_history) >= self.patience:
            control.should_training_stop = True
        return control


class StopOnRequest(TrainerCallback):
    """Ends a training after a step, with a checkpoint, once `is_asked` says so."""

    def __init__(self, is_asked: Callable[[], bool]) -> None:
        self._is_asked = is_asked

    @override
    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        if state.global_step < state.max_steps and self._is_asked():
            control.should_save = control.should_training_stop = True
        return control


class StepTimer(TrainerCallback):
    """Seconds of every step (forward, backward, update; not loading, evaluation, saving) and of the whole.

    `seconds` and `wall_before` are kept in checkpoints: the numbers cover what ran before a resume too.
    """

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.wall_before = 0.0
        self._session = time.perf_counter()
        self._step = 0.0

    @override
    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self._step = time.perf_counter()

    @override
    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds.append(round(time.perf_counter() - self._step, 5))

    @property
    def wall(self) -> float:
        """Seconds since the beginning, over all sessions up to their last checkpoint and the present one."""
        return self.wall_before + time.perf_counter() - self._session

    @property
    def median(self) -> float:
        """Median seconds of a step."""
        return round(statistics.median(self.seconds), 5) if self.seconds else 0.0


class Tracking(TrainerCallback):
    """Sends what is logged to a tracker, under names that every variant shares.

    Losses go there twice: by step, and as `by_audio/...` with seconds of audio in the place of steps, where
    trainings with different batches compare. With steering, a look at its routing goes with every log.
    """

    def __init__(self, tracker: MetricLog) -> None:
        self._tracker = tracker
        self._routing: RoutingWatch | None = None
        self._seconds: Iterator[tuple[int, float]] = iter(())  # a step, and the audio up to it
        self._heard = (0, 0.0)

    @override
    def on_train_begin(self, args: TrainingArguments, state: TrainerState, *rest: Any, **kwargs: Any) -> None:
        batches = kwargs["train_dataloader"].batch_sampler
        if isinstance(batches, StepBatches):
            self._seconds = enumerate(batches.audio_seconds(), 1)
        for module in kwargs["model"].modules():
            if isinstance(module, SteerMoE) and module.steering is not None:
                self._routing = RoutingWatch(module.steering, module.frame_lengths)

    @override
    def on_step_begin(self, args: TrainingArguments, state: TrainerState, *rest: Any, **kwargs: Any) -> None:
        step = state.global_step + 1
        if self._routing is not None and (step % args.logging_steps == 0 or step == state.max_steps):
            self._routing.begin()

    @override
    def on_step_end(self, args: TrainingArguments, state: TrainerState, *rest: Any, **kwargs: Any) -> None:
        found = self._routing.end() if self._routing is not None else {}
        if found:
            self._tracker.log({f"steering/{name}": value for name, value in found.items()}, state.global_step)

    @override
    def on_log(self, args: TrainingArguments, state: TrainerState, *rest: Any, **kwargs: Any) -> None:
        entry = {k: v for k, v in kwargs["logs"].items() if k not in ("epoch", "step", "learning_rate")}
        named = {METRIC_NAMES.get(k, f"train/{k}"): v for k, v in entry.items()}
        seconds = self._audio(state.global_step)
        if seconds is None:
            self._tracker.log(named, step=state.global_step)
            return
        self._tracker.log({**named, "train/audio_hours": seconds / 3600}, step=state.global_step)
        curves = {BY_AUDIO[name]: value for name, value in named.items() if name in BY_AUDIO}
        if curves:
            self._tracker.log(curves, step=round(seconds))

    def _audio(self, step: int) -> float | None:
        """Seconds of audio up to a step; None where nothing tells."""
        while self._heard[0] < step:
            following = next(self._seconds, None)
            if following is None:
                return None
            self._heard = following
        return self._heard[1]

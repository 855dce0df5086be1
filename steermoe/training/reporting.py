"""The log of a training, and its reports: a table of evaluations, lines of progress, times, metrics for a tracker.

The log has an entry for every log and every evaluation, each with its step. It is part of every checkpoint, so what is
made of it is the same after a resume.
"""

import csv
import io
import math
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any

import torch

from steermoe.models.steermoe import SteerMoE
from steermoe.training.optim import PARTS
from steermoe.training.router_metrics import RoutingWatch

Log = Sequence[Mapping[str, Any]]
COLUMNS = (
    "step",
    "train_loss",
    "dev_loss",
    "dev_token_accuracy",
    *(f"lr_{part}" for part in PARTS),
    "grad_norm",
    "steering_grad_norm",
    "layer_scale",
)
SECONDS = 30.0  # between lines of progress
METRIC_NAMES = {"loss": "train/loss", "dev_loss": "dev/loss", "dev_token_accuracy": "dev/token_accuracy"}


def evaluations(log: Log) -> list[Mapping[str, Any]]:
    """Return the entries of evaluations on the development splits, in order."""
    return [entry for entry in log if "dev_loss" in entry]


def best(log: Log) -> Mapping[str, Any] | None:
    """Return the evaluation with the lowest loss, the first of equals; None before the first."""
    return min(evaluations(log), key=lambda entry: entry["dev_loss"], default=None)


def evaluations_since_best(log: Log) -> int:
    """Return how many evaluations in a row brought no lower loss."""
    found = evaluations(log)
    return len(found) - 1 - found.index(min(found, key=lambda entry: entry["dev_loss"])) if found else 0


def table(log: Log) -> list[dict[str, Any]]:
    """Return a row for each evaluation: `train_loss` is the mean since the row before, the rest is as it was then.

    A value that the method does not have (the rate of a part that it lacks) is None.
    """
    rows, sums, last_step = [], [], 0
    latest: Mapping[str, Any] = {}
    for entry in log:
        if "loss" in entry:
            sums.append(entry["loss"] * (entry["step"] - last_step))
            last_step, latest = entry["step"], entry
        if "dev_loss" in entry:
            steps = entry["step"] - (rows[-1]["step"] if rows else 0)
            merged = {**latest, **entry, "train_loss": math.fsum(sums) / steps if sums else None}
            rows.append({column: merged.get(column) for column in COLUMNS})
            sums = []
    return rows


def to_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the table as CSV; an empty cell is None."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


class ProgressReport:
    """Prints a line for every evaluation, and on standard error one after the first step and then every SECONDS.

    Args:
        name: of what is trained.
        steps: of the whole training.
        is_first: this is the first process; others are silent.
        clock: returns seconds.
    """

    def __init__(
        self, name: str, steps: int, is_first: bool = True, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._name, self._steps, self._is_first, self._clock = name, steps, is_first, clock
        self._last, self._begun = (
            -math.inf,
            (0, clock()),
        )  # time of the last line; step and time of the beginning

    def begin(self, step: int) -> None:
        """Start after `step` steps, which an earlier session has done."""
        self._begun = (step, self._clock())
        if step and self._is_first:
            print(f"{self._name}: resumed at step {step} of {self._steps}", flush=True)

    def stepped(self, step: int, loss: float, rate: float) -> None:
        """Report a step with its loss and the learning rate of the first part."""
        first, start = self._begun
        speed = (step - first) / max(self._clock() - start, 1e-9)
        left = timedelta(seconds=round((self._steps - step) / speed))
        self._line(
            step, f"loss {loss:.4f}  learning rate {rate:.2e}  {speed:.2f} steps/s  {left} left at most"
        )

    def evaluating(self, step: int, batch: int, batches: int) -> None:
        """Report how many batches of the development splits are done."""
        self._line(step, f"evaluating on dev, batch {batch}/{batches}")

    def evaluated(self, row: Mapping[str, Any]) -> None:
        """Report an evaluation, a row of `table`."""
        trained = "" if row["train_loss"] is None else f"  train loss {row['train_loss']:.4f}"
        if self._is_first:
            print(
                f"{self._name}: step {row['step']}/{self._steps}{trained}  dev loss {row['dev_loss']:.4f}  "
                f"dev token accuracy {row['dev_token_accuracy']:.1%}",
                flush=True,
            )

    def _line(self, step: int, text: str) -> None:
        if self._is_first and self._clock() - self._last >= SECONDS:
            self._last = self._clock()
            print(f"{self._name}: step {step}/{self._steps}  {text}", file=sys.stderr, flush=True)


class StepTimer:
    """Measures seconds of every step (without loading, evaluation and saving) and of the whole training.

    Attributes:
        seconds: of every step, of earlier sessions too.
        wall_before: seconds of earlier sessions, up to their last checkpoint.
    """

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.wall_before = 0.0
        self._session = self._step = time.perf_counter()

    def begin(self) -> None:
        """Note that a step begins."""
        self._step = time.perf_counter()

    def end(self) -> None:
        """Note that the step has ended."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds.append(round(time.perf_counter() - self._step, 5))

    @property
    def wall(self) -> float:
        """Seconds since the beginning, in all sessions."""
        return self.wall_before + time.perf_counter() - self._session

    @property
    def median(self) -> float:
        """Median seconds of a step."""
        return round(statistics.median(self.seconds), 5) if self.seconds else 0.0


class MetricsReport:
    """Sends the log to a tracker, under names that all variants share, with figures of steering's routing.

    Losses are also sent as `by_audio/...` by seconds of audio, where trainings with different batches compare.

    Args:
        tracker: an object with the method `log(metrics, step)`, or None.
        model: what is trained.
        audio_seconds: read after each step.
    """

    def __init__(self, tracker: Any, model: SteerMoE, audio_seconds: Sequence[float]) -> None:
        self._tracker, self._audio_seconds, self._routing = tracker, [0.0, *audio_seconds], None
        if tracker is not None and model.steering is not None:
            self._routing = RoutingWatch(model.steering, model.frame_lengths)

    def begin(self) -> None:
        """Observe the routing of the step that begins."""
        if self._routing is not None:
            self._routing.begin()

    def log(self, entry: Mapping[str, float]) -> None:
        """Send an entry of the log."""
        if self._tracker is None:
            return
        step = int(entry["step"])
        seconds = self._audio_seconds[step]
        named = {METRIC_NAMES.get(name, f"train/{name}"): v for name, v in entry.items() if name != "step"}
        named["train/audio_hours"] = seconds / 3600
        if self._routing is not None and "loss" in entry:
            named |= {f"steering/{name}": value for name, value in self._routing.end().items()}
        self._tracker.log(named, step=step)
        curves = {f"by_audio/{n.replace('/', '_')}": named[n] for n in METRIC_NAMES.values() if n in named}
        self._tracker.log(curves, step=round(seconds))

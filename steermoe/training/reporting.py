"""The log of a training, and its reports: a table of evaluations, lines of progress, times, metrics for a tracker.

The log has an entry for every log and every evaluation, each with its step. It is part of every checkpoint, so what is
made of it is the same after a resume.
"""

import csv
import io
import math
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch

from steermoe.models.steermoe import SteerMoE
from steermoe.training.optim import PARTS
from steermoe.training.router_metrics import RoutingWatch

Log = Sequence[Mapping[str, Any]]
WER = "dev_wer"  # in the log where `training.criterion` is wer
COLUMNS = (
    "step",
    "train_loss",
    "dev_loss",
    "dev_token_accuracy",
    WER,
    *(f"lr_{part}" for part in PARTS),
    "grad_norm",
    "steering_grad_norm",
    "layer_scale",
)
SECONDS = 30.0  # between lines of progress
METRIC_NAMES = {
    "loss": "train/loss",
    "dev_loss": "dev/loss",
    "dev_token_accuracy": "dev/token_accuracy",
    WER: "dev/wer",
}


def evaluations(log: Log) -> list[Mapping[str, Any]]:
    """Return the entries of evaluations on the development splits, in order."""
    return [entry for entry in log if "dev_loss" in entry]


def best(log: Log) -> Mapping[str, Any] | None:
    """Return the best evaluation, the first of equals; None before the first.

    It has the lowest WER, if that is measured, and of the same WER the lowest loss.
    """
    return min(evaluations(log), key=lambda entry: (entry.get(WER, 0.0), entry["dev_loss"]), default=None)


def evaluations_since_best(log: Log) -> int:
    """Return how many evaluations in a row brought nothing better."""
    found, least = evaluations(log), best(log)
    return 0 if least is None else len(found) - 1 - found.index(least)


def table(log: Log) -> list[dict[str, Any]]:
    """Return a row for each evaluation: `train_loss` is the mean since the row before, the rest is as it was then.

    A value that the method does not have (the rate of a part that it lacks) is None. There is a column of WER where
    that is measured.
    """
    columns = [column for column in COLUMNS if column != WER or any(WER in entry for entry in log)]
    rows, sums, last_step = [], [], 0
    latest: Mapping[str, Any] = {}
    for entry in log:
        if "loss" in entry:
            sums.append(entry["loss"] * (entry["step"] - last_step))
            last_step, latest = entry["step"], entry
        if "dev_loss" in entry:
            steps = entry["step"] - (rows[-1]["step"] if rows else 0)
            merged = {**latest, **entry, "train_loss": math.fsum(sums) / steps if sums else None}
            rows.append({column: merged.get(column) for column in columns})
            sums = []
    return rows


def to_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return a table of at least one row as CSV; an empty cell is None."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


class ProgressReport:
    """Prints a line for every evaluation, after the first step, and whenever none was printed for SECONDS.

    Args:
        name: of what is trained.
        steps: of the whole training.
        audio_seconds: read after each step.
        is_first: this is the first process; others are silent.
        clock: returns seconds.
    """

    def __init__(
        self,
        name: str,
        steps: int,
        audio_seconds: Sequence[float],
        is_first: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name, self._steps, self._is_first, self._clock = name, steps, is_first, clock
        self._audio_seconds = [0.0, *audio_seconds]
        self._begun = (0, clock())  # step and time of the beginning
        self._last = clock()  # time of the last line
        self._state = ""  # what the next line says

    @contextmanager
    def running(self, step: int) -> Iterator[None]:
        """Print lines in the context, also while a step takes long; an earlier session has done `step` steps."""
        self._begun, self._last = (step, self._clock()), self._clock()
        if step:
            self._print(f"resumed at step {step} of {self._steps}")
        self._state = f"step {step}/{self._steps}  no step is done yet"
        ended = threading.Event()

        def watch() -> None:
            while not ended.wait(1.0):
                self.tick()

        thread = threading.Thread(target=watch, name="progress", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def stepped(self, step: int, loss: float, rate: float) -> None:
        """Note a step with its loss and the learning rate of the first part."""
        first, start = self._begun
        if step == first + 1:
            self._last = -math.inf
        took = max(self._clock() - start, 1e-9)
        speed, audio = (step - first) / took, self._audio_seconds[step] - self._audio_seconds[first]
        left = timedelta(seconds=round((self._steps - step) / speed))
        self._note(
            step,
            f"loss {loss:.4f}  learning rate {rate:.2e}  {speed:.3g} steps/s  {audio / took:.3g} audio s/s  "
            f"{left} left at most",
        )

    def evaluating(self, step: int, work: str, batch: int, batches: int) -> None:
        """Note how many batches of the development splits are done."""
        self._note(step, f"{work}, batch {batch}/{batches}")

    def evaluated(self, row: Mapping[str, Any]) -> None:
        """Print an evaluation, a row of `table`."""
        trained = "" if row["train_loss"] is None else f"  train loss {row['train_loss']:.4f}"
        wer = f"  dev WER {row[WER]:.1%}" if WER in row else ""
        self._print(
            f"step {row['step']}/{self._steps}{trained}  dev loss {row['dev_loss']:.4f}  "
            f"dev token accuracy {row['dev_token_accuracy']:.1%}{wer}"
        )

    def tick(self) -> None:
        """Print what was noted last, unless a line was printed less than SECONDS ago."""
        if self._clock() - self._last >= SECONDS:
            self._print(self._state)

    def _note(self, step: int, text: str) -> None:
        self._state = f"step {step}/{self._steps}  {text}"
        self.tick()

    def _print(self, text: str) -> None:
        self._last = self._clock()
        if self._is_first:
            print(f"{self._name}: {text}", flush=True)


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

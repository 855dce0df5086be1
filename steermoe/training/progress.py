"""What a training says while it runs: a bar on a terminal, else lines; and a line an evaluation everywhere."""

import math
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback, TrainerState, TrainingArguments
from typing_extensions import override

from steermoe.training import history

SECONDS = 30.0  # between lines, where there is no terminal


class ProgressLines(TrainerCallback):
    """A bar on a terminal; elsewhere a line on standard error after the first step, and then every SECONDS.

    Of several processes the first one speaks.

    Attributes:
        loss: of the last step; the trainer sets it.

    Args:
        name: of what is trained.
        clock: seconds.
        terminal: whether standard output is one; None: ask it.
    """

    def __init__(
        self, name: str, clock: Callable[[], float] = time.monotonic, terminal: bool | None = None
    ) -> None:
        self._has_bar = sys.stdout.isatty() if terminal is None else terminal
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        self._progress = Progress(*columns, transient=True, disable=not self._has_bar)
        self._task = self._progress.add_task(name)
        self._name, self._clock, self._told = name, clock, -math.inf
        self._begun = (0, clock())  # step and time
        self.loss = math.nan

    @override
    def on_train_begin(self, args: TrainingArguments, state: TrainerState, *rest: Any, **kwargs: Any) -> None:
        self._begun = (state.global_step, self._clock())
        self._progress.update(self._task, total=state.max_steps, completed=state.global_step)
        self._progress.start()
        if state.global_step:
            self._print(state, f"{self._name}: resumed at step {state.global_step} of {state.max_steps}")

    @override
    def on_step_end(self, args: TrainingArguments, state: TrainerState, *rest: Any, **kwargs: Any) -> None:
        self._progress.update(self._task, completed=state.global_step)
        if not self._is_due(state):
            return
        step, start = self._begun
        speed = (state.global_step - step) / max(self._told - start, 1e-9)
        left = timedelta(seconds=round((state.max_steps - state.global_step) / speed))
        rate = kwargs["lr_scheduler"].get_last_lr()[0]
        self._line(
            state, f"loss {self.loss:.4f}  learning rate {rate:.2e}  {speed:.2f} steps/s  {left} left at most"
        )

    def evaluating(self, state: TrainerState, batch: int, batches: int) -> None:
        """Take note that so many batches of the development splits are done."""
        if self._is_due(state):
            self._line(state, f"evaluating on dev, batch {batch}/{batches}")

    @override
    def on_evaluate(self, args: TrainingArguments, state: TrainerState, *rest: Any, **kwargs: Any) -> None:
        row = history.table(state.log_history)[-1]
        trained = "" if row["train_loss"] is None else f"  train loss {row['train_loss']:.4f}"
        self._print(
            state,
            f"{self._name}: step {row['step']}/{state.max_steps}{trained}  dev loss {row['dev_loss']:.4f}  "
            f"dev token accuracy {row['dev_token_accuracy']:.1%}",
        )

    def close(self) -> None:
        """Take the bar off the terminal."""
        self._progress.stop()

    def _is_due(self, state: TrainerState) -> bool:
        now = self._clock()
        if self._has_bar or not state.is_world_process_zero or now - self._told < SECONDS:
            return False
        self._told = now
        return True

    def _line(self, state: TrainerState, text: str) -> None:
        print(
            f"{self._name}: step {state.global_step}/{state.max_steps}  {text}", file=sys.stderr, flush=True
        )

    def _print(self, state: TrainerState, line: str) -> None:
        if state.is_world_process_zero:
            self._progress.console.print(line, markup=False, highlight=False, soft_wrap=True)

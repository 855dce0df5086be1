"""Requests that wait are answered by the one thread that owns the model, in batches that others may join."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import CancelledError, Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from steermoe.server.errors import RequestError

if TYPE_CHECKING:
    from steermoe.server.limits import Limits

REFILL = (
    0.5  # of a batch's places that are free before others join: reading few at a time costs more than waiting
)
log = logging.getLogger(__name__)
HISTORY = 0.5  # real-time factor that is assumed before anything was measured


class WholeBatchError(RuntimeError):
    """What would happen to each of a batch alone, too."""


class Asked(Protocol):
    """What a batch is made of."""

    @property
    def seconds(self) -> float:
        """Length of the audio."""
        ...

    @property
    def together(self) -> str | None:
        """Equal for those that may share a batch; None: alone."""
        ...


@dataclass(eq=False)
class Job:
    """A recording that waits for its answer.

    Attributes:
        asked: what is asked about it.
        result: its answer, when there is one; cancelling it takes the job out of the queue, or ends it early.
        written: called with pieces of the text as they are written, in the model's thread.
        given_up: nobody wants the answer any more.
        given: what `written` was called with, put together.
    """

    asked: Any
    written: Callable[[str], None] | None = None
    result: Future[Any] = field(default_factory=Future)
    given_up: threading.Event = field(default_factory=threading.Event)
    arrived: float = field(default_factory=time.monotonic)
    given: str = ""


Join = Callable[[int], list[Job]]
"""Jobs that may join so many that are being answered."""
Answer = Callable[[Sequence[Job], Join], Iterable[tuple[Job, Any]]]
"""Jobs that may share a batch, and who may join them -> each job with its result or an Exception, as it is there."""


def chosen(waiting: Sequence[Job], rows: int, seconds: float) -> list[Job]:
    """The next batch: the job that waits longest, and of those that may share its batch the nearest in length.

    Args:
        waiting: jobs in order of arrival, at least one.
        rows: most jobs in a batch.
        seconds: longest audio x jobs is at most so much; a job longer than that is a batch of its own.
    """
    first = waiting[0]
    batch, longest = [first], first.asked.seconds
    if first.asked.together is None:
        return batch
    others = [job for job in waiting[1:] if job.asked.together == first.asked.together]
    others.sort(key=lambda job: abs(job.asked.seconds - first.asked.seconds))  # stable: arrival decides ties
    for job in others:
        widest = max(longest, job.asked.seconds)
        if len(batch) == rows or widest * (len(batch) + 1) > seconds:
            break
        batch.append(job)
        longest = widest
    return batch


class Batcher:
    """A queue with limits, and a thread that empties it batch by batch.

    Args:
        answer: see Answer; a result's `tokens`, if it has them, are how many were written.
        limits: of the queue and of a batch.
    """

    def __init__(self, answer: Answer, limits: Limits) -> None:
        self._answer, self._limits = answer, limits
        self._waiting: list[Job] = []
        self._running: list[Job] = []
        self._changed = threading.Condition()
        self._closing = False
        self.heard: Callable[[int, float, float, int], None] = lambda *_: None
        self.dropped: Callable[[], None] = lambda: None
        self.real_time_factor: Callable[[], float] = lambda: HISTORY
        self._thread = threading.Thread(target=self._work, name="model", daemon=True)
        self._thread.start()

    def waiting(self) -> tuple[int, float]:
        """Jobs in the queue, and their seconds of audio."""
        with self._changed:
            return len(self._waiting), sum(job.asked.seconds for job in self._waiting)

    @property
    def alive(self) -> bool:
        """Whether there is somebody to answer."""
        return self._thread.is_alive()

    def check(self, seconds: float = 0.0) -> None:
        """Whether another job of so many seconds would be taken.

        Raises:
            RequestError: 503, the server is shutting down; 429, too much waits.
        """
        if self._closing:
            raise shutting_down()
        if self._full(seconds):
            count, waits = self.waiting()
            later = max(1, min(60, round(waits * (self.real_time_factor() or HISTORY))))
            raise RequestError(
                429, f"{count} recordings ({waits:.0f} s) wait for their turn; try again in {later} s",
                code="queue_full", retry_after=later,
            )  # fmt: skip

    def submit(
        self,
        asked: Asked,
        written: Callable[[str], None] | None = None,
        stop: threading.Event | None = None,
    ) -> Job:
        """Put a job into the queue.

        Args:
            asked: what is asked.
            written: see Job.
            stop: the job is part of something that was taken: where there is no room it waits for some, until this
                is set.

        Raises:
            RequestError: as `check`.
            CancelledError: `stop` is set.
        """
        with self._changed:
            while stop is not None and not self._closing and self._full(asked.seconds):
                if stop.is_set():
                    raise CancelledError
                self._changed.wait(0.1)
            self.check(asked.seconds)
            job = Job(asked, written)
            self._waiting.append(job)
            self._changed.notify_all()
        return job

    def _full(self, seconds: float) -> bool:
        count, waits = self.waiting()
        return count >= self._limits.queue or (count > 0 and waits + seconds > self._limits.queue_seconds)

    def give_up(self, job: Job) -> None:
        """Nobody waits for this job any more: it leaves the queue, or its row ends at the next token."""
        job.given_up.set()
        with self._changed:
            if job in self._waiting:
                self._waiting.remove(job)
                job.result.cancel()
                self.dropped()

    def close(self, seconds: float) -> bool:
        """Take no more, answer all that waits, and end the thread; False if that takes longer than `seconds`."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(seconds)
        if not self._thread.is_alive():
            return True
        with self._changed:
            left = [*self._waiting, *self._running]
            self._waiting.clear()
        for job in left:
            job.given_up.set()
            _settle(job, shutting_down())
        return False

    def _work(self) -> None:
        while batch := self._next():
            self._run(batch)
            self._running = []

    def _next(self) -> list[Job]:
        """The next batch, when there is one; none at all: there will be no more."""
        limits = self._limits
        with self._changed:
            while not self._waiting:
                if self._closing:
                    return []
                self._changed.wait()
            # Requests come one by one: those that come next share the batch of the first.
            until = self._waiting[0].arrived + limits.linger
            while not self._closing and len(self._waiting) < limits.batch_rows:
                left = until - time.monotonic()
                if left <= 0 or not self._changed.wait(left):
                    break
            if not self._waiting:  # given up meanwhile
                return self._next()
            self._running = self._taken(limits.batch_rows)
            return list(self._running) or self._next()

    def _run(self, batch: list[Job], alone: bool = False) -> None:
        together = None if alone else batch[0].asked.together
        began = time.perf_counter()
        try:
            for job, result in self._answer(batch, lambda live: self._join(live, together)):
                now = time.perf_counter()
                if not isinstance(result, Exception):
                    tokens = getattr(result, "tokens", 0)
                    self.heard(len(self._running), job.asked.seconds, now - began, tokens)
                began = now
                self._running.remove(job)
                _settle(job, result)
        except Exception as error:
            left = [job for job in self._running if job in batch] if alone else list(self._running)
            apart = len(left) > 1 and not isinstance(error, WholeBatchError)
            if apart:
                log.warning("%d recordings broke down together, each is tried alone: %r", len(left), error)
            for job in left:  # one row may have spoilt it for all
                if apart:
                    self._run([job], alone=True)
                else:
                    self._running.remove(job)
                    _settle(job, error)

    def _join(self, live: int, together: str | None) -> list[Job]:
        """Those that may share a batch of so many, if they are next and it is worth while."""
        free = self._limits.batch_rows - live
        with self._changed:
            if together is None or not self._waiting or (live and free < REFILL * self._limits.batch_rows):
                return []
            if self._waiting[0].asked.together != together:
                return []
            joining = self._taken(free)
            self._running += joining
            return joining

    def _taken(self, rows: int) -> list[Job]:
        """Take the next jobs out of the queue, at most so many."""
        batch = chosen(self._waiting, rows, self._limits.max_batch_seconds)
        for job in batch:
            self._waiting.remove(job)
        self._changed.notify_all()  # there is room again
        return [job for job in batch if job.result.set_running_or_notify_cancel()]


def _settle(job: Job, result: Any) -> None:
    """End a job that has not ended already, as those do for which the server waited too long."""
    with suppress(InvalidStateError):
        if isinstance(result, Exception):
            job.result.set_exception(result)
        else:
            job.result.set_result(result)


def shutting_down() -> RequestError:
    """Why nothing more is taken."""
    return RequestError(
        503, "the server is shutting down; try again later", code="shutting_down", retry_after=5
    )

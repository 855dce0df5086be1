"""The stretches of a long recording go through the server's queue, beside those of everybody else."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import CancelledError
from typing import TYPE_CHECKING, Any

from steermoe.server.engine import Question

if TYPE_CHECKING:
    import numpy as np

    from steermoe.config import Generation
    from steermoe.models.tools import Answer
    from steermoe.server.batching import Batcher, Job


class Stretches:
    """Answers the stretches of one recording, called by its `Recognizer` as `answer_all` is; may be given up.

    Args:
        batcher: the queue. Where it is full, a recording that was taken waits for room.
    """

    def __init__(self, batcher: Batcher) -> None:
        self._batcher = batcher
        self._jobs: list[Job] = []
        self._lock = threading.Lock()
        self._given_up = threading.Event()

    def __call__(
        self,
        model: Any,
        waveforms: Sequence[np.ndarray],
        question: None,
        tools: None,
        generation: Generation,
        seed: int,
        prompt: str | None,
        *_: Any,
    ) -> list[Answer]:
        """The answer to each of some waveforms.

        Raises:
            CancelledError: it was given up.
            RequestError: the server is shutting down.
        """
        jobs = []
        for samples in waveforms:
            asked = Question(samples, generation, prompt=prompt, seed=seed, scored=True)
            job = self._batcher.submit(asked, stop=self._given_up)
            with self._lock:
                self._jobs.append(job)
            jobs.append(job)
        if self._given_up.is_set():
            self.give_up()  # of those that came meanwhile
        answers = [job.result.result().answer for job in jobs]
        with self._lock:
            self._jobs.clear()
        if self._given_up.is_set():
            raise CancelledError
        return answers

    def give_up(self) -> None:
        """Nobody wants the transcript any more."""
        self._given_up.set()
        with self._lock:
            for job in self._jobs:
                self._batcher.give_up(job)

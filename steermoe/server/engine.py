"""The model's queue: one thread answers questions about recordings, in batches that others join while they run."""

import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from steermoe.audio.augment import levelled
from steermoe.audio.io import RATE
from steermoe.config import Generation
from steermoe.data.dataset import Item, collate
from steermoe.data.prompts import encode_texts
from steermoe.models.continuous_batching import DecodeSlots, Prompt, continues
from steermoe.models.generation import cycle, decode, log_likelihoods
from steermoe.models.inference import confidence, prompts_of, rated
from steermoe.models.packing import pack
from steermoe.models.steermoe import SteerMoE
from steermoe.models.tools import read_answer
from steermoe.server.metrics import Metrics
from steermoe.server.schema import Answered, RequestError

REFILL = (
    0.5  # share of a batch's rows that are free before others join: reading few prompts at a time is slow
)
RETRY = {"retry-after": "5"}  # seconds
RemoteDecoder = Callable[[list[torch.Tensor], Generation, int], list[list[int]]]
"""(embeddings_WH of each prompt, how to decode, seed) -> generated ids of each, without end token."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limits:
    """Limits of a server."""

    max_bytes: int = 25 * 2**20  # of a request's body
    max_seconds: float = 1800.0  # of a recording
    max_tokens: int = 200  # of an answer, also the default
    max_text: int = 16_000  # characters of prompts, messages and tools in a request
    upload_seconds: float = 60.0  # in which a request's body must arrive
    max_requests: int = 128  # answered at a time, uploads and waiting included
    queue_length: int = (
        256  # recordings, or segments of long ones, that wait for the model: then no more requests
    )
    batch_rows: int = 16  # recordings in a batch
    max_batch_seconds: float = 120.0  # of audio in a batch, padding included


@dataclass(eq=False)
class Job:
    """A question about a recording, in the queue or being answered."""

    features: torch.Tensor  # (M, T)
    seconds: float  # of audio
    texts: tuple[str, str]  # the prompt before and after the audio
    generation: Generation
    seed: int
    tools: tuple[dict, ...] | None
    cancelled: threading.Event  # set when the answer is no longer needed; shared by the jobs of one request
    on_text: Callable[[str], object] | None = (
        None  # gets the text while it is generated, in the model's thread
    )
    answer: Future[Answered] = field(default_factory=Future)

    @property
    def batch_key(self) -> str:
        """Return what is equal for jobs that may share a batch. A sampled answer depends on its batch."""
        own = "" if self.generation.strategy == "greedy" else str(id(self))
        return self.generation.model_dump_json() + own


class TextStream:
    """Passes the text of an answer on while it is generated.

    An incomplete character is held back, and so is a repeated ending that may turn out to be a loop.
    """

    def __init__(self, job: Job, model: SteerMoE) -> None:
        self._on_text, self._tokenizer = job.on_text, model.tokenizer
        self._stops = set(model.llm.generation_config.eos_token_id)
        self._repeats = job.generation.max_repeats
        self._sent = ""

    def update(self, ids: list[int]) -> None:
        """Pass on what is new in all ids so far."""
        if self._on_text is None:
            return
        end = next((place for place, token in enumerate(ids) if token in self._stops), len(ids))
        if self._repeats is not None and cycle(ids[:end], self._repeats - 1):
            return
        text = self._tokenizer.decode(ids[:end], skip_special_tokens=True).strip()
        if not text.endswith("\ufffd"):
            self.finish(text)

    def finish(self, text: str) -> None:
        """Pass on what is new in the text."""
        if self._on_text is not None and text != self._sent and text.startswith(self._sent):
            self._on_text(text[len(self._sent) :])
            self._sent = text


class Engine:
    """Answers questions in one thread.

    Args:
        model: encoder, steering and projector; its LLM, too, without `remote`.
        limits: of the queue and of a batch.
        remote: decodes with an LLM on another server.

    Raises:
        ValueError: the adapter has LoRA in the LLM, and the LLM is remote.
    """

    def __init__(
        self, model: SteerMoE, limits: Limits | None = None, remote: RemoteDecoder | None = None
    ) -> None:
        if remote is not None and model.config.llm_lora is not None:
            raise ValueError(
                "the adapter has LoRA in the LLM, which a remote LLM does not have; serve it locally"
            )
        self.model, self.limits, self._remote = model, limits or Limits(), remote
        self._queue: list[Job] = []
        self._running: list[Job] = []
        self._changed = threading.Condition()
        self._closed = False
        self._since = 0.0
        self.metrics = Metrics(lambda: len(self._queue), lambda: len(self._running))
        self._thread = threading.Thread(target=self._work, name="model", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Return whether questions would be answered."""
        return self._thread.is_alive() and not self._closed

    def check_space(self) -> None:
        """Raise RequestError, 429, if the queue is full."""
        if len(self._queue) >= self.limits.queue_length:
            message = f"{len(self._queue)} recordings wait for the model; try again later"
            raise RequestError(429, message, code="queue_full", headers=RETRY)

    def job(
        self, samples: np.ndarray, texts: tuple[str, str], generation: Generation, seed: int = 0,
        tools: tuple[dict, ...] | None = None, cancelled: threading.Event | None = None,
    ) -> Job:  # fmt: skip
        """Return a question about a waveform (N,), for `submit`; the arguments are those of Job.

        Raises:
            RequestError: the waveform is longer or shorter than the encoder can take.
        """
        encoder, seconds = self.model.encoder, len(samples) / RATE
        features = self.model.features(levelled(samples))
        most = encoder.max_seconds or math.inf
        if seconds > most or encoder.output_lengths(torch.tensor([features.shape[1]])).min() < 1:
            message = f"messages: found {seconds:.1f} s of audio, expected at most {most:g} s, and at least one frame"
            raise RequestError(400, message, "messages", "invalid_audio")
        return Job(features, seconds, texts, generation, seed, tools, cancelled or threading.Event())

    def submit(self, job: Job) -> Future[Answered]:
        """Put a job into the queue; CancelledError if it was cancelled, or the engine is closed."""
        with self._changed:
            if self._closed or job.cancelled.is_set():
                raise CancelledError
            self._queue.append(job)
            self._changed.notify_all()
        return job.answer

    def cancel(self, cancelled: threading.Event) -> None:
        """Take the jobs with this event out of the queue, or end their generation at the next token."""
        cancelled.set()
        with self._changed:
            for job in [job for job in self._queue if job.cancelled is cancelled]:
                self._queue.remove(job)
                job.answer.cancel()

    def close(self) -> None:
        """Cancel everything and end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for job in [*self._queue, *self._running]:
            self.cancel(job.cancelled)
        self._thread.join(10)

    def _work(self) -> None:
        while not self._closed:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._closed)
                jobs = self._take(self.limits.batch_rows)
            if not jobs:
                continue
            self._since = time.perf_counter()
            generation = jobs[0].generation
            try:
                with torch.no_grad():
                    if self._remote is None and continues(self.model.llm, generation):
                        self._answer_continuously(jobs, generation)
                    else:
                        self._answer_batch(jobs, generation)
            except Exception as error:  # of the model, not of one recording
                log.exception("%d recordings could not be answered", len(self._running))
                for job in list(self._running):
                    self._settle(job, error)

    def _take(self, rows: int, key: str | None = None) -> list[Job]:
        """Take the next jobs of a batch out of the queue, in order of arrival; none if the first does not fit."""
        jobs: list[Job] = []
        longest = 0.0
        with self._changed:
            while self._queue and len(jobs) < rows and not self._closed:
                job = self._queue[0]
                key = key or job.batch_key
                longest = max(longest, job.seconds)
                too_long = jobs and longest * (len(jobs) + 1) > self.limits.max_batch_seconds
                if job.batch_key != key or too_long:
                    break
                del self._queue[0]
                if job.answer.set_running_or_notify_cancel():
                    jobs.append(job)
            self._running += jobs
        return jobs

    def _answer_continuously(self, jobs: list[Job], generation: Generation) -> None:
        """Answer jobs and those that join them; where an answer ends, the next job takes its row."""
        slots = DecodeSlots(self.model.llm, generation, scored=True)
        rows, key = self.limits.batch_rows, jobs[0].batch_key
        streams: dict[Job, TextStream] = {}
        lengths: dict[Job, int] = {}
        while jobs or slots.live:
            read = self._prompts(jobs) if jobs else []
            for prompt in read:
                streams[prompt.key] = TextStream(prompt.key, self.model)
                lengths[prompt.key] = len(prompt.embeddings)
            if read:
                slots.read(read)
            else:
                slots.step()
            for row in slots.rows:
                if row.key in streams:  # otherwise it has ended, and its row is still there
                    streams[row.key].update(row.ids)
            slots.drop({job for job in streams if job.cancelled.is_set()})
            for job, ids, scores in slots.take():
                self._finish(job, streams.pop(job), lengths.pop(job), ids, scores)
            free = rows - slots.live
            jobs = self._take(free, key) if free >= REFILL * rows or not slots.live else []

    def _answer_batch(self, jobs: list[Job], generation: Generation) -> None:
        """Answer jobs that others cannot join: sampled answers, beams, and a remote LLM, which batches by itself."""
        model = self.model
        found = self._prompts(jobs)
        rows = [prompt.embeddings for prompt in found]
        streams = [TextStream(job, model) for job in jobs]

        def watch(ids: list[list[int]]) -> list[bool]:
            for stream, row in zip(streams, ids, strict=True):
                stream.update(row)
            return [job.cancelled.is_set() for job in jobs]

        seed = jobs[0].seed
        if self._remote is not None:
            ids, scores = self._remote(rows, generation, seed), [[]] * len(rows)
        else:
            widths = torch.tensor([len(row) for row in rows], device=model.device)
            rows_BWH, valid_BW = pack([pad_sequence(rows, batch_first=True)], [widths], "left")
            ids = decode(model.llm, rows_BWH, valid_BW, generation, seed, watch=watch)
            scores = log_likelihoods(model.llm, rows_BWH, valid_BW, ids)
        for each in zip(jobs, streams, map(len, rows), ids, scores, strict=True):
            self._finish(*each)

    def _prompts(self, jobs: Sequence[Job]) -> list[Prompt]:
        """Encode the prompts of jobs, audio included."""
        ids = [encode_texts(self.model.tokenizer, *job.texts) for job in jobs]
        items: list[Item] = [
            {"features": job.features, "prefix_ids": each.prefix, "prompt_ids": each.suffix,
             "target_ids": [], "index": row} for row, (job, each) in enumerate(zip(jobs, ids, strict=True))
        ]  # fmt: skip
        weight = 0.0 if self._remote is not None else jobs[0].generation.ctc_weight
        embed = partial(self.model.read_prompt, ctc_weight=weight)
        return prompts_of(embed, collate(items).to(self.model.device), jobs)

    def _finish(
        self, job: Job, stream: TextStream, read: int, ids: list[int], scores: Sequence[float]
    ) -> None:
        answer = read_answer(ids, self.model.tokenizer, job.tools, job.texts[1])
        answer = rated(answer, confidence(scores), len(ids) >= job.generation.max_new_tokens)
        stream.finish(answer.text)
        self._settle(job, Answered(answer, read, len(ids)))

    def _settle(self, job: Job, result: Answered | BaseException) -> None:
        self._running.remove(job)
        if not isinstance(result, Answered):
            job.answer.set_exception(result)
            return
        now = time.perf_counter()
        self.metrics.add_answer(
            len(self._running) + 1, job.seconds, now - self._since, result.completion_tokens
        )
        self._since = now
        job.answer.set_result(result)

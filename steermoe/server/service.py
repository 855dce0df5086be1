"""What the server does with a request once it was read: decode, queue, answer."""

import asyncio
import json
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from steermoe.asr.recognizer import POOL, Recognizer, longest
from steermoe.asr.transcript import Transcript
from steermoe.audio.io import BLOCK_SECONDS, RATE, AudioError
from steermoe.audio.vad import Segmenter
from steermoe.config import Generation
from steermoe.models.inference import notice
from steermoe.server.batching import HISTORY, Batcher
from steermoe.server.engine import Answered, Engine, Question
from steermoe.server.errors import RequestError
from steermoe.server.limits import Limits
from steermoe.server.metrics import Metrics
from steermoe.server.sandbox import Decoder, DecodingError
from steermoe.server.segments import Stretches
from steermoe.server.vllm_client import RemoteError

Result = TypeVar("Result")
Written = Callable[[str], None]


@dataclass(frozen=True)
class Dictation:
    """How a recording is written down.

    Attributes:
        generation: how to decode.
        context: hot words or a topic.
        words: tell the times of words.
    """

    generation: Generation
    context: str | None = None
    words: bool = False


class Service:
    """A model behind a queue, and decoders before it.

    Attributes:
        name: of the model, which requests give.
        language: that the adapter was trained on; None: not known.
        notice: what is said of the frozen models.
        closing: nothing more is taken.
        limits, metrics: see there.

    Args:
        engine: answers batches.
    """

    def __init__(self, engine: Engine, limits: Limits, name: str, language: str | None = None) -> None:
        self.name, self.language, self.limits, self.engine = name, language, limits, engine
        self.notice = notice(engine.model)
        self.closing = False
        self._held = 0.0  # seconds of decoded recordings
        self._batcher = Batcher(engine.answer, limits)
        self.metrics = Metrics(self._batcher.waiting)
        self._batcher.heard = self.metrics.heard
        self._batcher.dropped = lambda: self.metrics.dropped.inc()
        self._batcher.real_time_factor = self.metrics.real_time_factor
        self._decoder = Decoder(limits)
        self._threads = ThreadPoolExecutor(limits.decoders, thread_name_prefix="decoder")
        self._readers = ThreadPoolExecutor(limits.requests, thread_name_prefix="reader")
        Segmenter(longest(engine.model))  # loads its model once, before the first request

    @property
    def ready(self) -> bool:
        """Whether requests would be answered."""
        return self._batcher.alive

    def close(self) -> None:
        """Answer what waits, and end threads and processes."""
        self._batcher.close(self.limits.drain_seconds)
        for threads in (self._threads, self._readers):
            threads.shutdown(cancel_futures=True)
        self._decoder.close()

    def warnings(self, found: Transcript | Answered) -> list[str]:
        """What speaks against a transcript or an answer, with what is said of the models."""
        own = found.warnings if isinstance(found, Transcript) else found.answer.warnings
        return [*own, *([] if self.notice is None else [self.notice])]

    def check_name(self, model: str | None) -> None:
        """Raises RequestError where another model is asked for."""
        if model != self.name:
            found = f"found {model!r}" if model else "missing"
            raise RequestError(
                404, f"model: {found}; this server has {self.name!r}", "model", "model_not_found"
            )

    @asynccontextmanager
    async def decoded(self, data: bytes, param: str) -> AsyncIterator[np.ndarray]:
        """The waveform (N,) of a file, whose memory is counted until the block ends.

        Raises:
            RequestError: 400, it cannot be used, `param` is at fault; 429, too much waits, or is being answered.
        """
        self._batcher.check()
        loop = asyncio.get_running_loop()
        try:
            samples = await loop.run_in_executor(self._threads, self._decoder.load, data)
        except (AudioError, DecodingError) as error:
            raise RequestError(400, str(error), param, "invalid_audio") from error
        seconds, held = len(samples) / RATE, self._held
        if held and held + seconds > self.limits.queue_seconds:
            later = max(1, min(60, round(held * (self.metrics.real_time_factor() or HISTORY))))
            raise RequestError(
                429, f"recordings of {held:.0f} s are being answered; try again in {later} s",
                code="queue_full", retry_after=later,
            )  # fmt: skip
        self._held += seconds
        try:
            yield samples
        finally:
            self._held -= seconds

    async def answer(self, question: Question, written: Written | None = None) -> Answered:
        """The answer to a question; `written` gets its text in pieces while it is written.

        Raises:
            RequestError: 400, it cannot be answered; 429, too much waits; 502, the LLM's server does not answer.
        """
        loop = asyncio.get_running_loop()

        def give(piece: str) -> None:
            assert written is not None
            loop.call_soon_threadsafe(written, piece)

        job = self._batcher.submit(question, None if written is None else give)
        try:
            return await asyncio.wrap_future(job.result)
        except RemoteError as error:
            raise RequestError(502, str(error), code="llm_unavailable") from error
        except ValueError as error:
            raise RequestError(400, str(error)) from error
        finally:
            if not job.result.done():  # the client has gone
                self._batcher.give_up(job)

    async def transcribe(
        self, samples: np.ndarray, how: Dictation, written: Written | None = None
    ) -> Transcript:
        """What is said in a recording of any length; `written` gets the text stretch by stretch.

        Raises:
            RequestError: as `answer`; or the prompt is not to be had.
        """
        stretches = Stretches(self._batcher)
        recognizer = Recognizer(
            self.engine.model, context=how.context, words=how.words, generation=how.generation,
            max_batch_seconds=self.limits.max_batch_seconds / POOL, answer=stretches,
        )  # fmt: skip
        loop = asyncio.get_running_loop()

        def give(piece: str) -> None:
            assert written is not None
            loop.call_soon_threadsafe(written, piece)

        try:
            if how.context is not None:
                self.engine.check_text(how.context)
            if written is None:
                return await loop.run_in_executor(self._readers, recognizer.transcript, samples)
            return await loop.run_in_executor(self._readers, _dictated, recognizer, samples, give)
        except RemoteError as error:
            raise RequestError(502, str(error), code="llm_unavailable") from error
        except ValueError as error:
            raise RequestError(400, str(error)) from error
        finally:
            stretches.give_up()

    async def ask(self, question: Question, written: Written | None = None) -> Answered:
        """The answer to a question.

        Raises:
            RequestError: as `answer`.
        """
        turns = question.turns or ()
        try:
            calls = json.dumps([question.tools, [turn.calls for turn in turns]], ensure_ascii=False)
            for text in (*(turn.text for turn in turns), calls):
                self.engine.check_text(text)
            self.engine.check(question)
        except ValueError as error:
            raise RequestError(400, str(error), "messages") from error
        self._fits(question)
        loop = asyncio.get_running_loop()
        if unheard := await loop.run_in_executor(self._readers, self.engine.unheard, question):
            return unheard
        return await self.answer(question, written)

    def _fits(self, question: Question) -> None:
        window = self.engine.window
        if window is not None and question.seconds > window:
            raise RequestError(
                400, f"messages: found {question.seconds:.1f} s of audio, a question may be about at most {window:g}; "
                "cut it", "messages", "audio_too_long",
            )  # fmt: skip


def _dictated(recognizer: Recognizer, samples: np.ndarray, give: Written) -> Transcript:
    """A recording's transcript, given away stretch by stretch."""
    count = round(BLOCK_SECONDS * RATE)
    blocks = (samples[first : first + count] for first in range(0, len(samples), count))
    segments = []
    for event in recognizer.stream(blocks, partial_seconds=math.inf):
        if event.kind == "final" and event.segment.text:
            give(f" {event.segment.text}" if segments else event.segment.text)
            segments.append(event.segment)
    return Transcript(tuple(segments), len(samples) / RATE)


async def pieces(work: Callable[[Written], Awaitable[Result]]) -> AsyncIterator[str | Result]:
    """What `work` writes while it goes on, and in the end what it returns; abandoned, it is cancelled."""
    queue: asyncio.Queue[str] = asyncio.Queue()
    task = asyncio.ensure_future(work(queue.put_nowait))
    try:
        while not (task.done() and queue.empty()):
            getting = asyncio.ensure_future(queue.get())
            await asyncio.wait([task, getting], return_when=asyncio.FIRST_COMPLETED)
            if getting.done():
                yield getting.result()
            else:
                getting.cancel()
        yield task.result()
    finally:
        task.cancel()

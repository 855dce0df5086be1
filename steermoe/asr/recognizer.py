"""Transcribe recordings of any length, and live audio as it arrives.

    recognizer = Recognizer(SteerMoE.from_pretrained("pretrained/adapters/mini/steermoe"))
    for index, found in recognizer.recordings(["a.wav", "b.m4a", samples]):  # in the order in which they end
        ...  # `found` is a Transcript, or the error of that recording; the others go on
    for event in recognizer.stream(blocks):  # blocks (n,) float32 at 16 kHz, of any sizes, as they arrive
        ...  # a partial result is replaced by the next event with its number; a final one stays

A recording is decoded in blocks and cut at silences into segments that the encoder takes (`steermoe.audio.vad`); the
segments of all recordings are transcribed in batches by length. Of a recording only its text, and the audio of at
most POOL batches, is kept. A Recognizer keeps nothing between calls and may be used by several threads.

Guards: where there is no speech the LLM is not asked, so silence gives an empty transcript; loops are cut
(`generation.max_repeats`); refusals, and texts with more letters than anybody says in the time, are dropped and
logged.
"""

import itertools
import logging
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np

from steermoe.asr.streaming import Arrivals, Event
from steermoe.asr.timestamps import joined, merged, words
from steermoe.asr.transcript import Segment, Transcript, Word
from steermoe.audio import io
from steermoe.audio.io import RATE, source_name
from steermoe.audio.vad import Segmenter, SpeechSegment
from steermoe.config import Generation
from steermoe.data.tokens import plain
from steermoe.models.inference import BATCH_SECONDS, answer_all, say
from steermoe.models.steermoe import SteerMoE
from steermoe.models.tools import Answer

Recording = str | Path | bytes | BinaryIO | np.ndarray
LONGEST = 30.0  # seconds of a segment, for encoders without a limit
ON_CPU = (
    30.0  # seconds a batch: with 120, transcribing takes 6 % less time, and a long recording 150 MiB more
)
POOL = 2  # batches whose audio is collected before they are sorted by length
CONTEXT = "words that may occur: {context}. "  # before the prompt
LETTERS_A_SECOND = 40  # more is implausible: fast English has 20 to 25
REFUSALS = re.compile(
    r"\bas an ai\b|\bas a (large )?language model\b"
    r"|\b(can ?not|can't|unable to|not able to) (transcribe|listen|hear|process|access)\b.*\b(audio|recording)",
    re.IGNORECASE,
)
log = logging.getLogger(__name__)


@dataclass
class _Transcribed:
    """A segment of speech with its words; times in seconds."""

    words: list[Word]
    confidence: float | None
    overlap: float  # with the previous segment
    start: float
    speech: tuple[float, float]
    truncated: bool

    def segment(self, with_words: bool) -> Segment:
        """Return it as a part of a transcript, with the times of the speech that no overlap has cut off."""
        start, end = self.speech
        if self.words:
            start, end = max(start, self.words[0].start), min(end, self.words[-1].end)
        plain = tuple(Word(word.word.strip(), word.start, word.end) for word in self.words)
        text = joined(self.words)
        return Segment(start, end, text, self.confidence, plain if with_words else (), self.truncated)


@dataclass
class _Open:
    """A recording of which not everything is transcribed."""

    index: int
    name: str
    waiting: list[SpeechSegment] = field(default_factory=list)
    transcribed: list[_Transcribed] = field(default_factory=list)
    seconds: float | None = None  # known at its end


class Recognizer:
    """Transcribes speech with a model.

    Args:
        model: the model.
        prompt: the text after the audio; None: the configuration's for `transcribe`.
        context: hot words or a topic, put before the prompt. An LLM that was trained on other prompts (the mini
            models were) may ignore it, or get worse by it.
        words: whether segments have the times of their words; see `timestamps`.
        generation: how to decode; None: as the adapter says.
        silence: seconds without speech that end a segment.
        max_batch_seconds: audio seconds a batch, padding included; None: BATCH_SECONDS, on a CPU ON_CPU.
        answer: (waveforms, prompt) -> their answers, instead of the model here.
        track: which audio track of a container, from 1; None: its default, see `steermoe.audio.containers`.
    """

    def __init__(
        self,
        model: SteerMoE,
        prompt: str | None = None,
        context: str | None = None,
        words: bool = False,
        generation: Generation | None = None,
        silence: float = 0.4,
        max_batch_seconds: float | None = None,
        answer: Callable[[Sequence[np.ndarray], str], Sequence[Answer]] | None = None,
        track: int | None = None,
    ) -> None:
        self._ask = answer or self._ask_model
        self.model, self.words = model, words
        self.generation = model.generation if generation is None else generation
        self.silence, self.track = silence, track
        usual = ON_CPU if model.device.type == "cpu" else BATCH_SECONDS
        self.max_batch_seconds = usual if max_batch_seconds is None else max_batch_seconds
        self.prompt = model.config.prompts.transcribe if prompt is None else plain(model.tokenizer, prompt)
        if context is not None:
            self.prompt = CONTEXT.replace("{context}", plain(model.tokenizer, context)) + self.prompt
        self.longest = longest(model)

    def transcript(self, recording: Recording) -> Transcript:
        """Return the transcript of one recording.

        Raises:
            ValueError, OSError: it cannot be read.
        """
        (_, found), *_ = self.recordings([recording])
        if isinstance(found, Exception):
            raise found
        return found

    def recordings(
        self,
        recordings: Iterable[Recording],
        progress: Callable[[int, float], None] | None = None,
    ) -> Iterator[tuple[int, Transcript | Exception]]:
        """Yield the number and the transcript of each recording, or its error, as soon as it is complete.

        Args:
            recordings: paths, bytes, binary streams, or waveforms (n,) at 16 kHz; they may be generated one by one.
            progress: called with the number of a recording and the seconds of it that were read.
        """
        states: list[_Open] = []
        for index, recording in enumerate(recordings):
            state = _Open(index, _name(recording, index))
            states.append(state)
            segmenter = Segmenter(self.longest, silence=self.silence)
            try:
                for block in io.blocks(recording, track=self.track):
                    state.waiting += segmenter.push(block)
                    if progress is not None:
                        progress(index, segmenter.samples / RATE)
                    waiting = sum(segment.seconds for each in states for segment in each.waiting)
                    if waiting >= POOL * self.max_batch_seconds:
                        self._transcribe(states)
                        yield from self._complete(states)
                state.waiting += segmenter.finish()
                state.seconds = segmenter.samples / RATE
            except (ValueError, OSError) as error:
                states.remove(state)
                yield index, error
            yield from self._complete(states)
        self._transcribe(states)
        yield from self._complete(states)

    def stream(
        self, blocks: Iterable[np.ndarray | tuple[float, np.ndarray]], partial_seconds: float = 0.5
    ) -> Iterator[Event]:
        """Yield results of audio that is still arriving.

        A partial result is made of every `partial_seconds` more of a segment, unless blocks are that late already: a
        slow machine makes fewer, and does not fall behind by them.

        Args:
            blocks: (n,) float32 at 16 kHz, each given when it has arrived; or, where they may have to wait, with the
                time of arrival (`time.monotonic()`) before it.
            partial_seconds: see above.
        """
        segmenter, arrivals = Segmenter(self.longest, silence=self.silence), Arrivals()
        number, done = 0, 0
        held: _Transcribed | None = None  # was cut without a pause: its last words may still change
        for moment, block, last in _with_last(blocks):
            ended = segmenter.push(block)
            arrivals.add(segmenter.samples / RATE, moment)
            for segment in [*ended, *(segmenter.finish() if last else [])]:
                (found,) = self._answer([(segment, "live audio")])
                done = segmenter.samples
                if held is not None:
                    _join(held, found)
                    yield arrivals.event("final", number, held.segment(self.words))
                    number += 1
                kind = "partial" if segment.broken else "final"
                held = found if segment.broken else None
                yield arrivals.event(kind, number, found.segment(self.words))
                number += not segment.broken
            current = None if last else segmenter.open
            if current is None or time.monotonic() - moment >= partial_seconds:
                continue
            if min(segmenter.samples - done, len(current.samples)) / RATE >= partial_seconds:
                done = segmenter.samples
                (found,) = self._answer([(current, "live audio")], logging.DEBUG)
                if held is not None:
                    _join(replace(held, words=list(held.words)), found)
                if found.words:
                    following = number + (held is not None)
                    yield arrivals.event("partial", following, found.segment(self.words))

    def _transcribe(self, states: Sequence[_Open]) -> None:
        """Transcribe the segments that wait."""
        pool = [(segment, state.name) for state in states for segment in state.waiting]
        found = iter(self._answer(pool) if pool else [])
        for state in states:
            state.transcribed += itertools.islice(found, len(state.waiting))
            state.waiting.clear()

    def _answer(
        self, segments: Sequence[tuple[SpeechSegment, str]], level: int = logging.WARNING
    ) -> list[_Transcribed]:
        """Transcribe segments, each given with the name of its recording."""
        answers = self._ask([segment.samples for segment, _ in segments], self.prompt)
        found = []
        for answer, (segment, name) in zip(answers, segments, strict=True):
            text = answer.text
            if why := implausible(text, segment.seconds):
                begin, end = segment.speech
                log.log(level, "%s: %.1f to %.1f s left out, %s: %r", name, begin, end, why, text[:80])
                text = ""
            overlap, start = segment.overlap / RATE, segment.start / RATE
            spoken, cut = words(text, segment), answer.truncated
            found.append(_Transcribed(spoken, answer.confidence, overlap, start, segment.speech, cut))
        return found

    def _ask_model(self, waveforms: Sequence[np.ndarray], prompt: str) -> Sequence[Answer]:
        return answer_all(
            self.model, waveforms, generation=self.generation, prompt=prompt, scored=True,
            max_batch_seconds=self.max_batch_seconds,
        )  # fmt: skip

    def _complete(self, states: list[_Open]) -> Iterator[tuple[int, Transcript]]:
        """Yield the recordings that are transcribed to the end, and forget them."""
        for state in [each for each in states if each.seconds is not None and not each.waiting]:
            states.remove(state)
            for one, other in itertools.pairwise(state.transcribed):
                if other.overlap:
                    _join(one, other)
            segments = tuple(each.segment(self.words) for each in state.transcribed if each.words)
            transcript = Transcript(segments, state.seconds or 0.0)
            say(transcript.warnings, state.name)
            yield state.index, transcript


def longest(model: SteerMoE) -> float:
    """Return the seconds of the longest segment: what the encoder takes, at most what training had."""
    encoder = model.encoder
    limit = LONGEST if encoder.max_frames is None else encoder.max_frames / encoder.frames_per_second
    return min(limit, model.config.training.max_seconds)


def implausible(text: str, seconds: float) -> str:
    """Return why a text cannot be a transcript of that many seconds (an LLM's refusal or loop); "" where it can."""
    if refusal := REFUSALS.search(text):
        return f"a refusal ({refusal.group()!r})"
    if len(text) > LETTERS_A_SECOND * seconds:
        return f"{len(text)} letters in {seconds:.1f} s"
    return ""


def _join(one: _Transcribed, other: _Transcribed) -> None:
    one.words, other.words = merged(one.words, other.words, other.start + other.overlap / 2)


def _name(recording: Recording, index: int) -> str:
    return f"recording {index}" if isinstance(recording, np.ndarray) else source_name(recording)


def _with_last(
    blocks: Iterable[np.ndarray | tuple[float, np.ndarray]],
) -> Iterator[tuple[float, np.ndarray, bool]]:
    """Yield each block with its arrival and whether it is the last: an empty one after the others."""
    for block in blocks:
        moment, samples = block if isinstance(block, tuple) else (time.monotonic(), block)
        yield moment, samples, False
    yield time.monotonic(), np.zeros(0, np.float32), True

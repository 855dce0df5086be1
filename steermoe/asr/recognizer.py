"""Recordings of any length to transcripts, and live audio to results as it comes.

    recognizer = Recognizer(SteerMoE.from_pretrained("pretrained/adapters/steermoe"))
    for index, found in recognizer.recordings(["a.wav", "b.m4a", samples]):  # in the order in which they end
        ...  # `found` is a Transcript, or what was wrong with that recording; the others go on
    for event in recognizer.stream(blocks):  # blocks (n,) float32 at 16 kHz, of any sizes, as they come
        ...  # a partial result is replaced by the next event with its number; a final one stays

A recording is decoded in blocks, cut at silences into stretches that the encoder takes
(`steermoe.audio.segmentation`), and the stretches of all recordings are answered in batches by length. What is
kept of a recording is its text and the audio of at most POOL batches. A Recognizer keeps nothing between calls, and
several threads may use it: the model under it answers one batch at a time.

What guards the text: where nobody speaks the LLM is not asked, so silence gives an empty transcript; a loop is
cut (`generation.max_repeats`); an answer that refuses, or has more letters than anybody says in the time, is
dropped, and a warning of this module's logger says which.
"""

import itertools
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np

from steermoe.asr.events import Arrivals, Event
from steermoe.asr.filters import doubt
from steermoe.asr.timestamps import joined, merged, words
from steermoe.asr.transcript import Segment, Transcript, Word
from steermoe.audio import blocks as audio_blocks
from steermoe.audio.base import as_waveform
from steermoe.audio.segmentation import Segmenter, Stretch
from steermoe.audio.waveform import RATE, source_name
from steermoe.config import Generation
from steermoe.data.tokens import plain
from steermoe.models.inference import BATCH_SECONDS, answer_all, say
from steermoe.models.steermoe import SteerMoE
from steermoe.models.tools import Answer

Recording = str | Path | bytes | BinaryIO | np.ndarray
LONGEST = 30.0  # seconds of a stretch, for encoders without a limit
ON_CPU = (
    30.0  # seconds a batch: with 120, transcribing takes 6 % less time, and a long recording 150 MiB more
)
POOL = 2  # batches whose audio is collected before they are sorted by length
CONTEXT = "words that may occur: {context}. "  # before the prompt
log = logging.getLogger(__name__)


@dataclass
class _Heard:
    """A stretch that was answered."""

    words: list[Word]
    confidence: float | None
    overlap: float  # with the stretch before, seconds
    start: float  # seconds, as all that follows
    speech: tuple[float, float]

    def segment(self, with_words: bool) -> Segment:
        """Times are those of the speech, as far as no overlap was cut off."""
        start, end = self.speech
        if self.words:
            start, end = max(start, self.words[0].start), min(end, self.words[-1].end)
        plain = tuple(Word(word.word.strip(), word.start, word.end) for word in self.words)
        return Segment(start, end, joined(self.words), self.confidence, plain if with_words else ())


@dataclass
class _Open:
    """A recording on its way: what was heard of it, by the number of the stretch."""

    name: str
    heard: dict[int, _Heard] = field(default_factory=dict)
    stretches: int = 0
    seconds: float | None = None  # known at its end


class Recognizer:
    """Answers stretches of speech with a model.

    Args:
        model: the model.
        prompt: the text behind the audio; None: the configuration's for `transcribe`.
        context: hot words or a topic, put before the prompt. An LLM that was trained on other prompts (the mini
            models were) may not heed it, or suffer from it.
        words: tell the times of words, too; see `alignment`.
        generation: how to decode; None: as the adapter says.
        seed: of sampling.
        silence: seconds without speech that end a stretch.
        max_batch_seconds: audio seconds a batch, padding included; None: BATCH_SECONDS, on a CPU ON_CPU.
        answer: answers batches of waveforms; as `answer_all`, which is the default.
        track: which audio track of a container, from 1; None: its default, see `audio.containers`.
    """

    def __init__(
        self,
        model: SteerMoE,
        prompt: str | None = None,
        context: str | None = None,
        words: bool = False,
        generation: Generation | None = None,
        seed: int = 0,
        silence: float = 0.4,
        max_batch_seconds: float | None = None,
        answer: Callable[..., Sequence[Answer]] = answer_all,
        track: int | None = None,
    ) -> None:
        self._answer_all = answer
        self.model, self.words, self.seed = model, words, seed
        self.generation = model.generation if generation is None else generation
        self.silence, self.track = silence, track
        usual = ON_CPU if model.device.type == "cpu" else BATCH_SECONDS
        self.max_batch_seconds = usual if max_batch_seconds is None else max_batch_seconds
        self.prompt = None if prompt is None else plain(model.tokenizer, prompt)
        if context is not None:
            asked = model.config.prompts.transcribe if self.prompt is None else self.prompt
            self.prompt = CONTEXT.replace("{context}", plain(model.tokenizer, context)) + asked
        self.longest = longest(model)

    def transcript(self, recording: Recording) -> Transcript:
        """The transcript of one recording.

        Raises:
            ValueError, OSError: it cannot be read.
        """
        (_, found), *_ = self.recordings([recording])
        if isinstance(found, Exception):
            raise found
        return found

    def recordings(
        self,
        recordings: Iterable[Recording | Exception],
        progress: Callable[[int, float], None] | None = None,
    ) -> Iterator[tuple[int, Transcript | Exception]]:
        """The transcript of each recording, or what is wrong with it, as soon as it is there.

        Args:
            recordings: paths, bytes, binary streams, or waveforms (n,) float32 at 16 kHz; they may be generated
                one by one; in place of one that could not be opened its error.
            progress: told the number of a recording and the seconds of it that were read.

        Yields:
            The recording's place, and its transcript or an AudioError, OSError or ValueError.
        """
        states: dict[int, _Open] = {}
        pool: list[tuple[int, int, Stretch]] = []  # recording, number of the stretch in it, stretch
        pooled = 0.0
        for index, recording in enumerate(recordings):
            state = states[index] = _Open(_name(recording, index))
            try:
                if isinstance(recording, Exception):
                    raise recording
                for stretch in self._stretches(recording, index, state, progress):
                    pool.append((index, state.stretches, stretch))
                    state.stretches += 1
                    pooled += stretch.seconds
                    if pooled >= POOL * self.max_batch_seconds:
                        self._answer_pool(pool, states)
                        pooled = 0.0
                        yield from self._complete(states)
            except (ValueError, OSError) as error:
                pool[:] = [waiting for waiting in pool if waiting[0] != index]
                del states[index]
                yield index, error
            yield from self._complete(states)
        self._answer_pool(pool, states)
        yield from self._complete(states)

    def stream(
        self, blocks: Iterable[np.ndarray | tuple[float, np.ndarray]], partial_seconds: float = 0.5
    ) -> Iterator[Event]:
        """Results of audio that is still coming.

        A partial result is made when `partial_seconds` more were heard of a stretch, unless blocks are that late
        already: a slow machine makes fewer, and does not fall behind by them.

        Args:
            blocks: (n,) float32 at 16 kHz, each given when it has arrived; or, where they may have to wait, with the
                time of arrival (`time.monotonic()`) before it.
            partial_seconds: see above.
        """
        segmenter = Segmenter(self.longest, silence=self.silence)
        arrivals = Arrivals()
        number, told = 0, 0
        held: _Heard | None = None  # was cut without a pause: its last words may still change
        for moment, block, last in _with_last(blocks):
            ended = segmenter.push(block)
            arrivals.add(segmenter.samples / RATE, moment)
            for stretch in [*ended, *(segmenter.finish() if last else [])]:
                (heard,) = self._answer([stretch], ["live audio"])
                told = segmenter.samples
                if held is not None:
                    _join(held, heard)
                    yield arrivals.event("final", number, held.segment(self.words))
                    number += 1
                kind = "partial" if stretch.broken else "final"
                held = heard if stretch.broken else None
                yield arrivals.event(kind, number, heard.segment(self.words))
                number += not stretch.broken
            current = None if last else segmenter.open
            heard_since = min(segmenter.samples - told, 0 if current is None else len(current.samples)) / RATE
            behind = time.monotonic() - moment >= partial_seconds
            if current is not None and heard_since >= partial_seconds and not behind:
                told = segmenter.samples
                (heard,) = self._answer([current], ["live audio"], logging.DEBUG)
                if held is not None:
                    _join(replace(held, words=list(held.words)), heard)
                if heard.words:
                    following = number + (held is not None)
                    yield arrivals.event("partial", following, heard.segment(self.words))

    def _stretches(
        self, recording: Recording, index: int, state: _Open, progress: Callable[[int, float], None] | None
    ) -> Iterator[Stretch]:
        segmenter = Segmenter(self.longest, silence=self.silence)
        for block in _blocks(recording, state.name, self.track):
            yield from segmenter.push(block)
            if progress is not None:
                progress(index, segmenter.samples / RATE)
        yield from segmenter.finish()
        state.seconds = segmenter.samples / RATE

    def _answer_pool(self, pool: list[tuple[int, int, Stretch]], states: dict[int, _Open]) -> None:
        """Answer the stretches that wait, and forget them."""
        if pool:
            names = [states[index].name for index, _, _ in pool]
            answers = self._answer([stretch for _, _, stretch in pool], names)
            for (index, number, _), heard in zip(pool, answers, strict=True):
                states[index].heard[number] = heard
            pool.clear()

    def _answer(
        self, stretches: Sequence[Stretch], names: Sequence[str], level: int = logging.WARNING
    ) -> list[_Heard]:
        waveforms = [stretch.samples for stretch in stretches]
        asked = None, None, self.generation, self.seed, self.prompt, True
        found = []
        for answer, stretch, name in zip(
            self._answer_all(self.model, waveforms, *asked, self.max_batch_seconds),
            stretches,
            names,
            strict=True,
        ):
            text = answer.text
            if why := doubt(text, stretch.seconds):
                begin, end = stretch.speech
                log.log(level, "%s: %.1f to %.1f s left out, %s: %r", name, begin, end, why, text[:80])
                text = ""
            overlap, start = stretch.overlap / RATE, stretch.start / RATE
            found.append(_Heard(words(text, stretch), answer.confidence, overlap, start, stretch.speech))
        return found

    def _complete(self, states: dict[int, _Open]) -> Iterator[tuple[int, Transcript]]:
        """The recordings of which everything was heard; they are forgotten."""
        ready = [i for i, s in states.items() if s.seconds is not None and len(s.heard) == s.stretches]
        for index in ready:
            state = states.pop(index)
            heard = [state.heard[number] for number in range(state.stretches)]
            for before, behind in itertools.pairwise(heard):
                if behind.overlap:
                    _join(before, behind)
            segments = tuple(each.segment(self.words) for each in heard if each.words)
            transcript = Transcript(segments, state.seconds or 0.0)
            say(transcript.warnings, state.name)
            yield index, transcript


def longest(model: SteerMoE) -> float:
    """Seconds of the longest stretch: what the encoder takes, and no more than the model was trained with."""
    encoder = model.encoder
    limit = LONGEST if encoder.max_frames is None else encoder.max_frames / encoder.frames_per_second
    return min(limit, model.config.training.max_seconds)


def _join(before: _Heard, behind: _Heard) -> None:
    middle = behind.start + behind.overlap / 2
    before.words, behind.words = merged(before.words, behind.words, middle)


def _blocks(recording: Recording, name: str, track: int | None) -> Iterator[np.ndarray]:
    if not isinstance(recording, np.ndarray):
        yield from audio_blocks.blocks(recording, track=track)
        return
    samples, count = as_waveform(recording, name), round(audio_blocks.BLOCK_SECONDS * RATE)
    for first in range(0, len(samples), count):
        yield samples[first : first + count]


def _name(recording: Recording | Exception, index: int) -> str:
    return f"recording {index}" if isinstance(recording, np.ndarray | Exception) else source_name(recording)


def _with_last(
    blocks: Iterable[np.ndarray | tuple[float, np.ndarray]],
) -> Iterator[tuple[float, np.ndarray, bool]]:
    """When each block was there, the block, and whether it is the last: an empty one behind the others."""
    for block in blocks:
        moment, samples = block if isinstance(block, tuple) else (time.monotonic(), block)
        yield moment, samples, False
    yield time.monotonic(), np.zeros(0, np.float32), True

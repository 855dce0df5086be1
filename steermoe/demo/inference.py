"""What the demo page asks of its models: each answer with strengths of its own, one at a time.

Strengths are state of a model, so whoever asks gets the model alone: strengths are set, the answer is made, and
strengths are as before, under one lock.

Shapes: S frames of a recording, L steered places, N experts of a place.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np

from steermoe.asr.recognizer import Recognizer, longest
from steermoe.asr.transcript import Transcript
from steermoe.audio.io import RATE, AudioError
from steermoe.audio.vad import Segmenter, SpeechSegment
from steermoe.models.pretrained import LOCK
from steermoe.models.steermoe import SteerMoE
from steermoe.models.tools import Answer
from steermoe.server.limits import Limits
from steermoe.server.sandbox import Decoder

ALL = -1  # in place of an expert's number: all of a layer
Strengths = Mapping[int, Sequence[float]]
"""Of an expert, or ALL: a factor for each steered place. What an expert adds is multiplied by both."""
AS_TRAINED: Strengths = MappingProxyType({})


@dataclass(frozen=True)
class Seen:
    """What the steering did with a recording.

    Attributes:
        samples: (n,) float32 at RATE.
        gates: (S, N) a steered place; NaN where nobody speaks, for that is kept from the encoder.
        places: their names.
    """

    samples: np.ndarray
    gates: list[np.ndarray]
    places: list[str]

    @property
    def seconds(self) -> float:
        """Length of the recording."""
        return len(self.samples) / RATE


class Listener:
    """Hears recordings with a model, and with others for comparison; safe to be called by several threads.

    Args:
        model: the model.
        others: what it is compared with, by name.
        limits: bytes and seconds of a recording, characters of a question.
    """

    def __init__(self, model: SteerMoE, others: Mapping[str, SteerMoE], limits: Limits) -> None:
        self.model, self.others, self.limits = model, others, limits
        self._decoder = Decoder(limits)

    @property
    def experts(self) -> list[int]:
        """N of each steered place; none without steering."""
        return (
            []
            if self.model.steering is None
            else [place.experts for place in self.model.steering.hook_points]
        )

    @property
    def places(self) -> list[str]:
        """The steered places' names: layers of the encoder by number, `post` behind it."""
        return (
            [] if self.model.steering is None else [str(place) for place in self.model.steering.hook_points]
        )

    def close(self) -> None:
        """End the process that decodes."""
        self._decoder.close()

    def load(self, path: str | Path) -> np.ndarray:
        """The waveform (n,) of a file from outside, decoded in a process with limits.

        Raises:
            AudioError, DecodingError, OSError: it cannot be used, or is beyond the limits.
        """
        file = Path(path)
        size = file.stat().st_size
        if size > self.limits.max_bytes:
            raise AudioError(
                f"{file.name}: found {size / 2**20:.1f} MiB; a recording may have "
                f"{self.limits.max_bytes / 2**20:.1f}"
            )
        return self._decoder.load(file.read_bytes())

    def transcript(self, samples: np.ndarray, strengths: Strengths = AS_TRAINED) -> Transcript:
        """What is said in a waveform (n,), with estimated times of words.

        Raises:
            ValueError: strengths are not for this model.
        """
        with self._steered(strengths):
            return Recognizer(self.model, words=True).transcript(samples)

    def others_heard(self, samples: np.ndarray) -> Iterator[tuple[str, str]]:
        """Names and texts: without steering, if there is any, and by each of the others."""
        if self.model.steering is not None:
            with self.model.steering.disabled():
                text = Recognizer(self.model).transcript(samples).text
            yield "steering off", text
        for name, other in self.others.items():
            with LOCK:
                text = Recognizer(other).transcript(samples).text
            yield name, text

    def answers(
        self, samples: np.ndarray, question: str, strengths: Strengths = AS_TRAINED
    ) -> Iterator[tuple[str, Answer]]:
        """Names and answers to a question about a waveform (n,): the model's (no name), then each other's.

        Raises:
            ValueError: there is no question, it is too long, or the recording is longer than the encoder takes.
        """
        if not question.strip():
            raise ValueError("there is no question; write one")
        if len(question) > self.limits.max_text:
            raise ValueError(f"found a question of {len(question)} characters; legal: {self.limits.max_text}")
        with self._steered(strengths):
            answer = self.model.ask(samples, question.strip())
        yield "", answer
        for name, other in self.others.items():
            with LOCK:
                answer = other.ask(samples, question.strip())
            yield name, answer

    def see(self, samples: np.ndarray, strengths: Strengths = AS_TRAINED) -> Seen:
        """The gates of a waveform (n,), stretch by stretch as it is transcribed.

        Raises:
            ValueError: the model has no steering.
        """
        model = self.model
        rate = model.encoder.frames_per_second
        width = max(1, round(len(samples) / RATE * rate))
        found = [np.full((width, experts), np.nan, np.float32) for experts in self.experts]
        with self._steered(strengths):
            for stretch in _stretches(model, samples):
                first = round(stretch.start / RATE * rate)
                last = min(width, first + max(1, round(stretch.seconds * rate)))
                for whole, gates in zip(found, model.gates(stretch.samples).values(), strict=True):
                    # Where frames are joined within the encoder, one stands for several from there on.
                    frames = np.linspace(0, len(gates), last - first, endpoint=False).astype(int)
                    whole[first:last] = gates[frames]
        return Seen(samples, found, self.places)

    @contextmanager
    def _steered(self, strengths: Strengths) -> Iterator[None]:
        """The model alone, with strengths; they are all 1 before and behind."""
        steering = self.model.steering
        with LOCK:
            try:
                for expert, factors in strengths.items():
                    if steering is None or len(factors) != len(steering.hook_points):
                        raise ValueError(
                            f"strengths: found {len(factors)}, the model has {len(self.places)} steered places"
                        )
                    for rows, place, factor in zip(steering.rows, steering.hook_points, factors, strict=True):
                        if expert < place.experts:
                            steering.expert_scales[rows if expert == ALL else rows.start + expert] *= factor
                yield
            finally:
                if steering is not None:
                    steering.set_scale(1.0)


def _stretches(model: SteerMoE, samples: np.ndarray) -> list[SpeechSegment]:
    segmenter = Segmenter(longest(model), silence=0.4)
    return [*segmenter.push(samples), *segmenter.finish()]

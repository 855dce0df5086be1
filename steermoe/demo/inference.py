"""What the demo page asks of its models: transcripts, answers and gates, each with expert scales of its own.

Shapes: M mel bands, S frames of a recording, N experts of a hook point.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from steermoe.asr.recognizer import Recognizer, longest
from steermoe.asr.transcript import Transcript
from steermoe.audio import synthesis
from steermoe.audio.io import RATE, load
from steermoe.audio.vad import Segmenter
from steermoe.corpora import grammar, synthetic
from steermoe.models.pretrained import LOCK
from steermoe.models.steermoe import SteerMoE
from steermoe.models.tools import Answer

OFF = "steering off"
ALL = -1  # in place of an expert's number: all experts
MAX_QUESTION = 1000  # characters
EXAMPLES = (("deal", "clean"), ("own", "clean"), ("place", "noisy"))  # kind of sentence, and condition
Scales = Mapping[int, Sequence[float]]
"""Of an expert, or ALL: a factor for each hook point. Both multiply what an expert adds."""


@dataclass(frozen=True)
class Gates:
    """The gates of a recording.

    Attributes:
        samples: (n,) at 16 kHz.
        gates: (S, N) of each hook point; NaN where there is no speech, which the encoder does not get.
        names: of the hook points.
    """

    samples: np.ndarray
    gates: list[np.ndarray]
    names: list[str]

    @property
    def seconds(self) -> float:
        """Return the duration of the recording."""
        return len(self.samples) / RATE


class Models:
    """The model of the page and those that it is compared with; safe to use from several threads.

    Args:
        model: the model.
        others: the others, by name.
        max_seconds: the longest recording.
    """

    def __init__(self, model: SteerMoE, others: Mapping[str, SteerMoE], max_seconds: float = 60.0) -> None:
        self.model, self.others, self._max_seconds = model, others, max_seconds
        self.hook_points = [] if model.steering is None else list(model.steering.hook_points)
        self.names = [str(point) for point in self.hook_points]
        self.compared = {*others, *([] if model.steering is None else [OFF])}

    def load(self, path: str | Path) -> np.ndarray:
        """Return the waveform (n,) of an uploaded file.

        Raises:
            AudioError, OSError: it cannot be used, or is too long.
        """
        return load(Path(path).read_bytes(), self._max_seconds)  # errors on the page do not name its folder

    def transcribe(self, samples: np.ndarray, scales: Scales | None = None) -> Transcript:
        """Return the transcript of a waveform (n,), with estimated word times."""
        with self._scaled(scales):
            return Recognizer(self.model, words=True).transcript(samples)

    def compare(self, samples: np.ndarray) -> Iterator[tuple[str, str]]:
        """Yield names and texts: without steering, and of each of the others."""
        if self.model.steering is not None:
            with self.model.steering.disabled():
                text = Recognizer(self.model).transcript(samples).text
            yield OFF, text
        for name, other in self.others.items():
            yield name, Recognizer(other).transcript(samples).text

    def ask(
        self, samples: np.ndarray, question: str, scales: Scales | None = None
    ) -> Iterator[tuple[str, Answer]]:
        """Yield names and answers to a question: the model's (no name), and those of the others.

        Raises:
            ValueError: there is no question, or it is too long, or the recording is.
        """
        question = question.strip()
        if not 0 < len(question) <= MAX_QUESTION:
            raise ValueError(f"found a question of {len(question)} characters, expected 1 to {MAX_QUESTION}")
        with self._scaled(scales):
            answer = self.model.ask(samples, question)
        yield "", answer
        for name, other in self.others.items():
            yield name, other.ask(samples, question)

    def gates(self, samples: np.ndarray, scales: Scales | None = None) -> Gates:
        """Return the gates of a waveform (n,), segment by segment as it is transcribed."""
        rate = self.model.encoder.frames_per_second
        width = max(1, round(len(samples) / RATE * rate))
        found = [np.full((width, point.experts), np.nan, np.float32) for point in self.hook_points]
        segmenter = Segmenter(longest(self.model), silence=0.4)
        with self._scaled(scales):
            for segment in [*segmenter.push(samples), *segmenter.finish()]:
                first = round(segment.start / RATE * rate)
                last = min(width, first + max(1, round(segment.seconds * rate)))
                for whole, gates in zip(found, self.model.gates(segment.samples).values(), strict=True):
                    # After down-sampling inside the encoder, one frame stands for several.
                    whole[first:last] = gates[
                        np.linspace(0, len(gates), last - first, endpoint=False).astype(int)
                    ]
        return Gates(samples, found, self.names)

    @contextmanager
    def _scaled(self, scales: Scales | None) -> Iterator[None]:
        """Hold the model, with expert scales, and set them back to 1 afterwards."""
        steering, scales = self.model.steering, scales or {}
        if any(len(factors) != len(self.hook_points) for factors in scales.values()):
            raise ValueError(f"scales: expected a factor for each of {len(self.hook_points)} hook points")
        if steering is None or not scales:
            with LOCK:
                yield
            return
        ones = [1.0] * len(self.hook_points)
        with LOCK:
            try:
                for place, point in enumerate(self.hook_points):
                    for expert in range(point.experts):
                        factor = scales.get(ALL, ones)[place] * scales.get(expert, ones)[place]
                        steering.set_scale(factor, "post" if point.layer is None else point.layer, expert)
                yield
            finally:
                steering.set_scale(1.0)


@dataclass(frozen=True)
class Example:
    """A recording, what is said in it, and a question that it answers."""

    text: str
    question: str
    path: Path


def speak_examples(folder: Path) -> list[Example]:
    """Synthesise an example of each of EXAMPLES into a folder, with sentences that no training split has.

    Raises:
        RuntimeError: the synthesiser does not start.
    """
    engine, rng, found = synthesis.Synthesizer(), np.random.default_rng(6), []
    for number, (kind, condition) in enumerate(EXAMPLES):
        sentence = next(grammar.sentences(rng, "test", {kind: 1.0}))
        cast = synthetic.CASTS["clean" if condition == "clean" else "other"]
        samples, _, _ = synthetic.record(engine, rng, sentence.text, cast, condition)
        path = folder / f"example-{number + 1}.wav"
        soundfile.write(path, samples, RATE)
        found.append(Example(sentence.text, sentence.question, path))
    return found

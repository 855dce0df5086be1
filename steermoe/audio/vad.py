"""Find speech in audio as it arrives, and cut it into segments no longer than an encoder takes.

Voice activity is Silero VAD's (https://github.com/snakers4/silero-vad, version 6: its sequence ONNX model, one run
a block). Its probabilities, one a window of 32 ms, become segments by the rule of its own
`get_speech_timestamps`: speech begins at `threshold`, and ends where the probability stays 0.15 below it for
`silence`; what is too long is cut in its longest pause. Unlike there, speech without a pause is cut with an overlap,
and only the current segment is kept in memory, so recordings may be of any length.
"""

import functools
from dataclasses import dataclass, replace

import numpy as np

from steermoe.audio.augment import LEVEL, MAX_GAIN, RATE

WINDOW = 512  # samples of one probability
CONTEXT = 64  # samples before a window that the model reads, too
RUN = 512  # windows a run of the model, at most
HALF_LIFE = 3.0  # seconds
HYSTERESIS = 0.15
THRESHOLD = 0.5  # probability from which it is speech
SILENT = 1e-4  # of full scale, -80 dB: a recording that is nowhere louder is silent
MARGIN = 0.16  # seconds around the speech that belong to a segment
OVERLAP = 1.0  # seconds that two segments share where speech without any pause is cut
SHORTEST = 0.2  # seconds of speech below which there was none
PAUSE = 3  # windows below the threshold at which a segment that is too long may be cut: 96 ms


@dataclass(frozen=True)
class SpeechSegment:
    """A piece of a recording with speech in it.

    Attributes:
        start: its first sample, counted from the start of the recording.
        samples: (n,) float32 at RATE: the speech with a little of what is around it.
        voiced: (ceil(n / WINDOW),): True for each window with speech.
        overlap: samples at its start that the previous segment has, too; 0 where there was a pause.
        broken: whether it was cut without a pause: the next segment has some of its end.
    """

    start: int
    samples: np.ndarray
    voiced: np.ndarray
    overlap: int = 0
    broken: bool = False

    @property
    def seconds(self) -> float:
        """Return its length."""
        return len(self.samples) / RATE

    @property
    def speech(self) -> tuple[float, float]:
        """Return beginning and end of the speech in it, seconds from the start of the recording."""
        places = np.flatnonzero(self.voiced)
        first, last = (places[0], places[-1] + 1) if len(places) else (0, len(self.voiced))
        end = min(int(last) * WINDOW, len(self.samples))
        return (self.start + int(first) * WINDOW) / RATE, (self.start + end) / RATE


class VoiceActivity:
    """Silero's model, and its state between the blocks of one recording.

    It finds speech later or not at all in quiet recordings. So each window is scaled by the loudest one before,
    which is forgotten with a half-life of HALF_LIFE.
    """

    def __init__(self) -> None:
        self._session = _session()
        self._hidden = self._cell = np.zeros((1, 1, 128), np.float32)
        self._context = np.zeros(CONTEXT, np.float32)
        self._loudest = 0.0  # rms

    def __call__(self, samples: np.ndarray) -> np.ndarray:
        """Return probabilities (n,) of speech, of samples (n * WINDOW,) that follow the previous ones."""
        found = [np.zeros(0, np.float32)]
        for first in range(0, len(samples), RUN * WINDOW):
            run = samples[first : first + RUN * WINDOW].reshape(-1, WINDOW)
            before = np.concatenate([self._context[None], run[:-1, -CONTEXT:]])
            inputs = {"input": np.hstack([before, run]) * self._gains(run)[:, None]}
            voice, self._hidden, self._cell = map(
                np.asarray,
                self._session.run(
                    ["speech_probs", "hn", "cn"], inputs | {"h": self._hidden, "c": self._cell}
                ),
            )
            found.append(voice.reshape(-1))
            self._context = run[-1, -CONTEXT:]
        return np.concatenate(found)

    def _gains(self, windows: np.ndarray) -> np.ndarray:
        """Return the factor for each of the next windows (n, WINDOW)."""
        levels = np.sqrt(np.mean(np.square(windows), axis=1))
        for place, level in enumerate(levels.tolist()):
            self._loudest = max(level, self._loudest * 0.5 ** (WINDOW / RATE / HALF_LIFE))
            levels[place] = self._loudest
        return LEVEL / np.maximum(levels, LEVEL / MAX_GAIN)


class Segmenter:
    """Takes a recording block by block and returns its segments of speech as they end.

    Args:
        longest: seconds of a segment, at most.
        silence: seconds without speech that end a segment.

    Raises:
        ValueError: `longest` is too short for margins and overlap; silero-vad or onnxruntime is not installed.
    """

    def __init__(self, longest: float, silence: float = 0.4) -> None:
        least = 2 * (OVERLAP + MARGIN)
        if longest < least:
            raise ValueError(f"longest: found {longest:g} s, legal: at least {least:g}")
        self._longest = int(longest * RATE) // WINDOW
        self._silence, self._margin, self._overlap, self._shortest = (
            max(1, round(seconds * RATE / WINDOW)) for seconds in (silence, MARGIN, OVERLAP, SHORTEST)
        )
        self._activity = VoiceActivity()
        self._rest = np.zeros(0, np.float32)  # less than a window
        self._windows: list[np.ndarray] = []  # kept: the current segment, or the margin before the next one
        self._voice: list[float] = []
        self._first = 0  # number of the first of them
        self._begin: int | None = None  # of the current speech, in windows of the recording
        self._end: int | None = None  # where it may have ended
        self._shared = 0  # windows of the current segment that the previous one has, too
        self.samples = 0  # received so far

    def push(self, block: np.ndarray) -> list[SpeechSegment]:
        """Return the segments that end in the next block (n,) float32 at RATE."""
        self.samples += len(block)
        joined = np.concatenate([self._rest, block])
        whole = len(joined) // WINDOW * WINDOW
        self._rest = joined[whole:]
        found: list[SpeechSegment] = []
        voice = self._activity(joined[:whole]).tolist()
        for window, probability in zip(joined[:whole].reshape(-1, WINDOW), voice, strict=True):
            found += self._step(window, probability)
        return found

    def finish(self) -> list[SpeechSegment]:
        """Return the segments that end with the recording."""
        samples = self.samples
        found = self.push(np.zeros(-len(self._rest) % WINDOW, np.float32))
        self.samples = samples
        if self._begin is not None:
            found += self._closed(self._next if self._end is None else self._end)
        return [
            replace(each, samples=kept, voiced=each.voiced[: -(-len(kept) // WINDOW)])
            for each in found
            if len(kept := each.samples[: samples - each.start])
        ]

    @property
    def open(self) -> SpeechSegment | None:
        """Return what there is of a segment that has not ended; None in silence, or if speech is too short yet."""
        if self._begin is None:
            return None
        end = self._next if self._end is None else self._end
        return (
            self._segment(0, len(self._windows))
            if end - self._begin >= self._shortest or self._shared
            else None
        )

    @property
    def _next(self) -> int:
        return self._first + len(self._windows)

    def _step(self, window: np.ndarray, voice: float) -> list[SpeechSegment]:
        now = self._next
        self._windows.append(window)
        self._voice.append(voice)
        if self._begin is None:
            if voice >= THRESHOLD:
                self._begin, self._end = now, None
            else:
                self._forget(now + 1 - self._margin)
            return []
        if voice >= THRESHOLD:
            self._end = None
        elif voice < THRESHOLD - HYSTERESIS and self._end is None:
            self._end = now
        if self._end is not None and now - self._end >= self._silence:
            return self._closed(self._end)
        return self._cut() if len(self._windows) >= self._longest else []

    def _closed(self, end: int) -> list[SpeechSegment]:
        """End the current speech before the window `end`; what comes next may begin in its margin."""
        long_enough = self._begin is not None and (end - self._begin >= self._shortest or self._shared)
        found = [self._segment(0, end + self._margin - self._first)] if long_enough else []
        self._begin, self._end, self._shared = None, None, 0
        self._forget(max(end, self._next - self._margin))
        return found

    def _cut(self) -> list[SpeechSegment]:
        """Cut what is too long at its longest pause; without one at its end, which the next segment repeats."""
        pauses, length = [], 0  # windows of each, and the first of them; not in the first quarter
        for place, voice in enumerate(self._voice):
            quiet = voice < THRESHOLD - HYSTERESIS
            if not quiet and length >= PAUSE and place > len(self._voice) // 4:
                pauses.append((length, place - length))
            length = length + 1 if quiet else 0
        if pauses:
            length, pause = max(pauses)
            found = [self._segment(0, pause + min(self._margin, length))]
            begin = self._first + pause + length
            self._begin, self._shared = begin, 0
            self._forget(begin - min(self._margin, length))
            return found
        found = [replace(self._segment(0, len(self._windows)), broken=True)]
        self._forget(self._next - self._overlap)
        self._begin, self._shared = self._first, self._overlap
        return found

    def _segment(self, first: int, stop: int) -> SpeechSegment:
        voiced = np.array(self._voice[first:stop]) >= THRESHOLD - HYSTERESIS
        samples = np.concatenate(self._windows[first:stop])
        return SpeechSegment((self._first + first) * WINDOW, samples, voiced, self._shared * WINDOW)

    def _forget(self, before: int) -> None:
        """Drop all windows before one of the recording."""
        count = max(0, before - self._first)
        del self._windows[:count], self._voice[:count]
        self._first += count


def silent(samples: np.ndarray) -> bool:
    """Return whether a waveform (n,) is nowhere audible, or empty."""
    return not len(samples) or float(np.abs(samples).max()) < SILENT


def speaks(samples: np.ndarray) -> bool:
    """Return whether there is speech in a waveform (n,) at RATE, at whatever level; True without silero-vad."""
    if silent(samples):
        return False
    try:
        activity = VoiceActivity()
    except ValueError:
        return True
    level = (samples * (0.5 / np.abs(samples).max())).astype(np.float32)
    padded = np.pad(level, (0, -len(level) % WINDOW))
    block = RUN * WINDOW
    return any(activity(padded[i : i + block]).max() >= THRESHOLD for i in range(0, len(padded), block))


@functools.cache  # it keeps nothing between runs, which may be of several threads
def _session():
    """Load Silero's sequence model, on one thread."""
    try:
        import torch

        threads = torch.get_num_threads()
        from silero_vad import load_silero_vad

        torch.set_num_threads(threads)  # importing silero_vad sets it to 1, for the whole process
        return load_silero_vad(sequence=True).session
    except ImportError as error:
        raise ValueError(
            f"long audio is cut at silences by silero-vad, which is not installed ({error}): "
            "pip install 'steermoe[serve]'"
        ) from error

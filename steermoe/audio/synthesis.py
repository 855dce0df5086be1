"""Synthesise speech with espeak-ng (the `espeakng-loader` wheel), called in-process through its C interface.

The engine is global to a process and carries state from one call to the next, so the same call gives other
samples the second time. Reproducible audio needs a fixed sequence of calls in a fresh process.
"""

import ctypes
import dataclasses

import espeakng_loader
import numpy as np

RATE = 22050  # Hz, espeak-ng's own
SEED = 1  # of its random numbers
_SYNCHRONOUS, _CHARS_UTF8, _POSITION_CHARACTER = 2, 1, 1
_RATE, _VOLUME, _PITCH, _RANGE = 1, 2, 3, 4
_EVENT_END_OF_LIST, _EVENT_WORD, _EVENT_END = 0, 1, 5


class _Event(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("identifier", ctypes.c_char * 8),
    )


_Callback = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event)
)


@dataclasses.dataclass(frozen=True)
class Voice:
    """A voice: accent (`en-us`), speaker variant (`adam`), words a minute, pitch and its range 0-100."""

    accent: str
    variant: str
    words_per_minute: int
    pitch: int
    pitch_range: int

    @property
    def name(self) -> str:
        """Return its name in espeak-ng: accent+variant."""
        return f"{self.accent}+{self.variant}"


class Synthesizer:
    """The espeak-ng engine of this process.

    Raises:
        RuntimeError: the engine does not start.
    """

    def __init__(self) -> None:
        self._library = ctypes.CDLL(espeakng_loader.get_library_path())
        rate = self._library.espeak_Initialize(_SYNCHRONOUS, 0, espeakng_loader.get_data_path().encode(), 0)
        if rate != RATE:
            raise RuntimeError(f"espeak-ng did not start: espeak_Initialize returned {rate}, expected {RATE}")
        # espeak_Initialize seeds it by the clock, and voices with breath in them draw from it.
        self._library.espeak_ng_SetRandSeed(ctypes.c_long(SEED))
        self._samples: list[np.ndarray] = []
        self._words: list[tuple[int, float]] = []
        self._callback = _Callback(self._receive)  # kept: the C side holds only a pointer
        self._library.espeak_SetSynthCallback(self._callback)

    def _receive(self, samples, count: int, events) -> int:
        if samples and count:
            self._samples.append(np.ctypeslib.as_array(samples, (count,)).copy())
        i = 0
        while events[i].type != _EVENT_END_OF_LIST:
            if events[i].type == _EVENT_WORD:
                self._words.append((events[i].text_position, events[i].audio_position / 1000))
            i += 1
        return 0

    def speak(self, text: str, voice: Voice) -> tuple[np.ndarray, list[float]]:
        """Synthesise `text`, words separated by single spaces.

        Returns:
            waveform: (N,) float32 in [-1, 1] at `RATE`.
            onsets: seconds at which each word starts. espeak-ng reports some pairs of function words ("in the")
                as one event, which is divided evenly.

        Raises:
            ValueError: espeak-ng does not know the voice.
        """
        if status := self._library.espeak_SetVoiceByName(voice.name.encode()):
            raise ValueError(f"espeak-ng has no voice {voice.name!r} (status {status})")
        for parameter, value in (
            (_RATE, voice.words_per_minute),
            (_PITCH, voice.pitch),
            (_RANGE, voice.pitch_range),
            (_VOLUME, 80),
        ):
            self._library.espeak_SetParameter(parameter, value, 0)
        self._samples, self._words = [], []
        data = text.encode()
        status = self._library.espeak_Synth(
            data, len(data) + 1, 0, _POSITION_CHARACTER, 0, _CHARS_UTF8, None, None
        )
        if status:
            raise RuntimeError(f"espeak-ng failed on {text!r} (status {status})")
        self._library.espeak_Synchronize()
        pcm = np.concatenate(self._samples) if self._samples else np.zeros(0, np.int16)
        return pcm.astype(np.float32) / 32768, _word_onsets(text, self._words, len(pcm) / RATE)


def _word_onsets(text: str, events: list[tuple[int, float]], end: float) -> list[float]:
    starts = np.cumsum([1, *(len(word) + 1 for word in text.split())])[:-1]  # espeak counts characters from 1
    known = {position: seconds for position, seconds in events}
    at = [i for i, start in enumerate(starts) if start in known]
    times = [known[starts[i]] for i in at]
    return np.interp(range(len(starts)), [*at, len(starts)], [*times, end]).tolist()

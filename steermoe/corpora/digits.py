"""Spoken digit strings, joined from the Free Spoken Digit Dataset v1.0.9 (Jackson et al., CC BY-SA 4.0).

3000 recordings `<digit>_<speaker>_<index>.wav` at 8 kHz of 6 speakers; an archive with fewer speakers works too. The
recordings with index 0 to 4 are the official test part. No recording is in two splits.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from steermoe.audio import io as waveform
from steermoe.config.corpora import Digits
from steermoe.corpora import download
from steermoe.corpora.archives import ArchiveError, hidden
from steermoe.corpora.download import Source, locate
from steermoe.corpora.reader import Generated, card, generated_row, in_parts

SPLITS = ("train", "test", "unseen")
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
FOLDER = "recordings"
ARCHIVE = Source(
    "v1.0.9.tar.gz",
    FOLDER,
    "https://github.com/Jakobovski/free-spoken-digit-dataset/archive/refs/tags/v1.0.9.tar.gz",
    inside=(FOLDER, f"*/{FOLDER}"),
)
# Never in `train`: his accent (Belgian French) is no other speaker's, so `unseen` is a new voice and accent.
HELD_OUT = "nicolas"
TEST_INDICES = range(5)

PART_STRINGS = 250  # digit strings per part
PAUSE = (0.05, 0.2)  # seconds of silence before, between and after the digits
FADE = 0.005  # seconds at both ends of a recording, so that no join clicks
LEVEL = 0.08  # rms of every recording, full scale at 1
PEAK = 0.95  # largest magnitude of a string

CARD = card("digits")
_NAME = re.compile(r"(?P<digit>[0-9])_(?P<speaker>[a-z]+)_(?P<index>[0-9]+)\.wav")


@dataclass(frozen=True, order=True)
class Recording:
    """One spoken digit."""

    speaker: str
    digit: int
    index: int
    path: Path

    @property
    def split(self) -> str:
        """The only split that it may be used in."""
        if self.speaker == HELD_OUT:
            return "unseen"
        return "test" if self.index in TEST_INDICES else "train"


def fetch(settings: Digits, dest: Path) -> None:
    """Put the recordings into `dest`/data/recordings and check them.

    Raises:
        UnavailableError, ArchiveError, SpaceError: as `download.fetch`; ArchiveError also where a recording is
            missing, or not at 8 kHz, mono.
    """
    download.fetch("digits", [ARCHIVE], settings, dest)
    found = recordings(dest)
    for recording in found:
        try:
            header = soundfile.info(recording.path)
        except soundfile.LibsndfileError as error:
            reason = f"not readable as audio ({error.error_string})"
            raise ArchiveError(f"{recording.path}: {reason}") from error
        if (header.samplerate, header.channels) != (8000, 1):
            raise ArchiveError(
                f"{recording.path}: expected 8000 Hz mono, found {header.samplerate} Hz, {header.channels} channels"
            )
    present = {(r.speaker, r.digit, r.index in TEST_INDICES) for r in found}
    for speaker in sorted({recording.speaker for recording in found}):
        for digit in range(len(WORDS)):
            for official, name in ((True, "test"), (False, "training")):
                if (speaker, digit, official) not in present:
                    raise ArchiveError(f"incomplete: no {name} recording of {digit} by {speaker}")


def parts(settings: Digits, source: Path) -> list[Generated]:
    """Return the parts of every split, in order."""
    return [part for split in SPLITS for part in in_parts(split, settings.strings[split], PART_STRINGS)]


def rows(settings: Digits, source: Path, part: Generated) -> Iterator[dict[str, Any]]:
    """Yield the digit strings of one part, with the columns of `steermoe.data.schema.Utterance`."""
    rng = _generator(settings, part, "pauses")
    for number, spoken in enumerate(plan(settings, source, part)):
        joined = _join(rng, [_load(recording) for recording in spoken])
        transcript = " ".join(WORDS[recording.digit] for recording in spoken)
        yield generated_row("digits", part, number, spoken[0].speaker, transcript, joined)


def plan(settings: Digits, source: Path, part: Generated) -> list[list[Recording]]:
    """Choose the recordings of each string of a part: 1 to `max_digits` of one speaker.

    Raises:
        ValueError: the split has no recordings.
    """
    choices: dict[str, dict[int, list[Recording]]] = {}
    available = recordings(source)
    for recording in available:
        if recording.split == part.split:
            choices.setdefault(recording.speaker, {}).setdefault(recording.digit, []).append(recording)
    if not choices:
        speakers = ", ".join(sorted({recording.speaker for recording in available}))
        raise ValueError(
            f"{source}: no recordings for split {part.split!r} (`unseen` is all of {HELD_OUT}, the others "
            f"are other speakers); it has recordings of {speakers}. Use the complete archive, or set "
            f"corpora.digits.strings.{part.split} to 0"
        )
    rng = _generator(settings, part, "plan")
    speakers = list(choices)
    strings = []
    for _ in range(part.count):
        of = choices[speakers[rng.integers(len(speakers))]]
        digits = rng.integers(len(WORDS), size=rng.integers(1, settings.max_digits + 1)).tolist()
        strings.append([of[digit][rng.integers(len(of[digit]))] for digit in digits])
    return strings


def recordings(source: Path) -> list[Recording]:
    """Return all recordings of a fetched source, by speaker, digit and index.

    Raises:
        ArchiveError: there are none, or a file has another name.
    """
    found, folder = [], locate(source)(FOLDER)
    for path in (p for p in folder.glob("*.wav") if not hidden(p.name)):
        match = _NAME.fullmatch(path.name)
        if match is None:
            raise ArchiveError(f"{path}: expected a name like 7_jackson_32.wav")
        found.append(Recording(match["speaker"], int(match["digit"]), int(match["index"]), path))
    if not found:
        raise ArchiveError(f"{folder}: expected a folder with WAV files")
    return sorted(found)


def _generator(settings: Digits, part: Generated, purpose: str) -> np.random.Generator:
    return np.random.default_rng(
        [settings.seed, SPLITS.index(part.split), part.number, ("plan", "pauses").index(purpose)]
    )


def _load(recording: Recording) -> np.ndarray:
    """A recording at 16 kHz, at LEVEL, with faded ends."""
    samples = waveform.load(recording.path)
    rms = float(np.sqrt(np.mean(samples**2)))
    if not rms:
        raise ValueError(f"{recording.path}: silent")
    fade = min(int(FADE * waveform.RATE), len(samples) // 2)
    envelope = np.ones(len(samples), np.float32)
    envelope[:fade] = np.arange(fade) / fade
    envelope[len(samples) - fade :] = np.arange(fade)[::-1] / fade
    return samples * envelope * (LEVEL / rms)


def _join(rng: np.random.Generator, spoken: list[np.ndarray]) -> np.ndarray:
    pauses = (rng.uniform(*PAUSE, size=len(spoken) + 1) * waveform.RATE).astype(int)
    pieces = [np.zeros(pauses[0], np.float32)]
    for samples, pause in zip(spoken, pauses[1:], strict=True):
        pieces += [samples, np.zeros(pause, np.float32)]
    joined = np.concatenate(pieces)
    return joined * np.float32(min(1.0, PEAK / float(np.abs(joined).max())))

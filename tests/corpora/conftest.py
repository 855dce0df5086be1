"""A small archive laid out as the official one of the Free Spoken Digit Dataset: each recording a tone."""

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

SPEAKERS = ("anna", "ben", "nicolas")
INDICES = 8  # recordings of each digit by each speaker
FOLDER = "free-spoken-digit-dataset-1.0.9"


def hertz(speaker: str, digit: int, index: int) -> int:
    """The tone of a recording, which tells it from all others."""
    return 400 + 12 * ((SPEAKERS.index(speaker) * 10 + digit) * INDICES + index)


def recording(speaker: str, digit: int, index: int) -> bytes:
    """0.25 s at 8 kHz; loudness differs from recording to recording."""
    time = np.arange(2000) / 8000
    level = 0.05 + 0.1 * index
    file = io.BytesIO()
    sound = level * np.sin(2 * np.pi * hertz(speaker, digit, index) * time)
    soundfile.write(file, sound, 8000, format="WAV", subtype="PCM_16")
    return file.getvalue()


def recordings() -> dict[str, bytes]:
    """Names in the archive and contents."""
    return {
        f"{FOLDER}/recordings/{digit}_{speaker}_{index}.wav": recording(speaker, digit, index)
        for speaker in SPEAKERS
        for digit in range(10)
        for index in range(INDICES)
    }


def pack(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


@pytest.fixture(scope="session")
def tone_recordings() -> dict[str, bytes]:
    return recordings()


@pytest.fixture(scope="session")
def tone_archive(tmp_path_factory: pytest.TempPathFactory, tone_recordings: dict[str, bytes]) -> Path:
    extra = {f"{FOLDER}/README.md": b"# tones", f"{FOLDER}/metadata.py": b"metadata = {}"}
    return pack(tmp_path_factory.mktemp("mirror") / f"{FOLDER}.tar.gz", extra | tone_recordings)


@pytest.fixture(scope="session")
def by_tone() -> dict[int, tuple[str, int, int]]:
    """Hz of a recording's tone to its speaker, digit and index."""
    return {
        hertz(speaker, digit, index): (speaker, digit, index)
        for speaker in SPEAKERS
        for digit in range(10)
        for index in range(INDICES)
    }


@pytest.fixture(scope="session")
def pack_archive() -> Callable[[Path, dict[str, bytes]], Path]:
    return pack

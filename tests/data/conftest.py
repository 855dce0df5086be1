"""Utterances of tones: rows that fit the schema, cheap to make."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from steermoe.audio import io as waveform

Row = dict[str, Any]


def tone_row(number: int, split: str = "train", **changed: Any) -> Row:
    """An utterance of 0.1 to 0.5 s; `changed` replaces columns."""
    seconds = 0.1 + 0.1 * (number % 5)
    time = np.arange(round(seconds * waveform.RATE)) / waveform.RATE
    sound = (0.3 * np.sin(2 * np.pi * (200 + 30 * number) * time)).astype(np.float32)
    row = {
        "source_id": f"tones-{split}-{number:04d}",
        "split": split,
        "speaker": f"speaker-{number % 3}",
        "language": "en",
        "task": "transcribe",
        "prompt": "",
        "transcript": f"tone {number}",
        "target": f"tone {number}",
        "answers": [],
        "choices": [],
        "audio": waveform.encode_flac(sound, waveform.RATE),
        "sample_rate": waveform.RATE,
        "seconds": len(sound) / waveform.RATE,
    }
    return row | changed


@pytest.fixture
def make_row() -> Callable[..., Row]:
    return tone_row

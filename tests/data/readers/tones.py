"""A corpus reader for tests: imported by its name in the processes that make parts."""

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import BaseModel

from steermoe.audio import io as waveform

SPLITS = ("train", "test")
_calls = 0  # state that a process carries from part to part, as espeak-ng does


class Settings(BaseModel):
    parts: dict[str, int] = {"train": 2, "test": 1}
    rows: int = 4
    log: Path  # gets a line for every part that is begun
    fault: str = ""  # what goes wrong in part 1 of train
    pause: float = 0.0  # seconds before every part but the first


@dataclass(frozen=True)
class Part:
    split: str
    number: int


def fetch(settings: Settings, dest: Path) -> None:
    (dest / "source.txt").write_text("tones")


def parts(settings: Settings, source: Path) -> list[Part]:
    return [Part(split, number) for split in SPLITS for number in range(settings.parts[split])]


def rows(settings: Settings, source: Path, part: Part) -> Iterator[dict]:
    global _calls
    with settings.log.open("a") as log:
        log.write(f"{part.split}-{part.number} {os.getpid()}\n")
    if part.number or part.split != "train":
        time.sleep(settings.pause)
    faulty = part == Part("train", 1)
    for number in range(settings.rows):
        if faulty and settings.fault == "raise":
            raise ValueError("row 2 has no transcript")
        if faulty and settings.fault == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        _calls += 1
        sound = np.full(1600 * (number + 1), 0.01 * _calls, np.float32)
        text = f"{part.split} {part.number} {number}"
        yield {
            "source_id": f"{part.split}-{0 if settings.fault == 'twice' else part.number}-{number}",
            "split": part.split,
            "speaker": "tone",
            "task": "transcribe",
            "prompt": "",
            "transcript": text,
            "target": "another" if faulty and settings.fault == "target" else text,
            "audio": waveform.encode_flac(sound, waveform.RATE),
            "sample_rate": waveform.RATE,
            "seconds": len(sound) / waveform.RATE,
        }

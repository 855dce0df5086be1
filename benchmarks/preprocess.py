"""How fast preprocessing is: FLAC and WAV files to checked shards, in seconds of audio a second of CPU time.

    python -m benchmarks.preprocess [--clips 1200] [--workers 2]

Clips are as long as LibriSpeech's on average (12.7 s) and shaped like speech: noise through a vocal-tract-like
filter, in syllables with pauses. CPU time is that of all processes, as the kernel counts it (getrusage), so
other work on the machine hardly matters. `decode only` is the decoder's own limit in the same run.
"""

import argparse
import importlib
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from pydantic import BaseModel
from scipy.signal import lfilter

from steermoe.audio import io as waveform
from steermoe.data.filters import Limits
from steermoe.data.preprocess import preprocess

SECONDS = 12.7
PART_ROWS = 300
SPLITS = ("train",)
KINDS = {"flac, 16 kHz mono": ("flac", 16_000, 1), "wav, 44.1 kHz stereo": ("wav", 44_100, 2)}
REAL = {"flac, 16 kHz mono": 400.0}  # times real time a core, at least


class Settings(BaseModel):
    """The reader below takes none."""


@dataclass(frozen=True)
class Part:
    split: str
    number: int
    files: tuple[Path, ...]


def parts(settings: Settings, source: Path) -> list[Part]:
    files = sorted(source.iterdir())
    return [
        Part("train", number, tuple(files[start : start + PART_ROWS]))
        for number, start in enumerate(range(0, len(files), PART_ROWS))
    ]


def rows(settings: Settings, source: Path, part: Part) -> Iterator[dict]:
    for path in part.files:
        yield {
            "source_id": path.stem, "split": "train", "speaker": "noise", "language": "en", "task": "transcribe",
            "prompt": "", "transcript": f"clip {path.stem}", "target": f"clip {path.stem}", "audio": path,
        }  # fmt: skip


def speech_like(rng: np.random.Generator, rate: int, channels: int) -> np.ndarray:
    """(N, channels) float64: coloured noise, four syllables a second, a pause now and then."""
    count = round(SECONDS * rate)
    voiced = np.asarray(lfilter([1.0], [1.0, -1.6, 0.81], rng.standard_normal(count)))
    syllables = np.repeat(rng.uniform(0, 1, round(4 * SECONDS) + 1) ** 2, rate // 4 + 1)[:count]
    envelope = np.asarray(lfilter(np.ones(rate // 50) / (rate // 50), [1.0], syllables))
    sound = voiced * envelope + 1e-3 * rng.standard_normal(count)
    return np.stack([0.3 * sound / np.abs(sound).max()] * channels, axis=1)


def cpu() -> float:
    """Seconds of CPU time of this process and its children that have ended."""
    own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def main() -> None:
    """Print a JSON object a kind of file; exit with 1 where a speed is below what is wanted."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--clips", type=int, default=1200)
    options.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    given = options.parse_args()
    reader = importlib.import_module("benchmarks.preprocess")
    slow = False
    for kind, (suffix, rate, channels) in KINDS.items():
        with tempfile.TemporaryDirectory() as folder:
            os.environ["DVC_ROOT"] = folder
            source = Path(folder) / "raw"
            source.mkdir()
            rng = np.random.default_rng(0)
            for number in range(given.clips):
                sound = speech_like(rng, rate, channels)
                soundfile.write(source / f"{number:06d}.{suffix}", sound, rate, subtype="PCM_16")
            audio = given.clips * SECONDS
            started = cpu()
            for path in source.iterdir():
                waveform.load(path)
            decoding = cpu() - started
            started, wall = cpu(), time.perf_counter()
            summary = preprocess(reader, Settings(), source, Path(folder) / "out", Limits(), given.workers)  # pyright: ignore[reportArgumentType]
            total, wall = cpu() - started, time.perf_counter() - wall
            assert summary["splits"]["train"]["rows"] == given.clips
            result = {
                "kind": kind,
                "clips": given.clips,
                "audio_hours": round(audio / 3600, 3),
                "workers": given.workers,
                "times_real_time_per_cpu_second": round(audio / total, 1),
                "decode_only": round(audio / decoding, 1),
                "share_of_decoders_speed": round(decoding / total, 3),
                "wall_seconds": round(wall, 2),
                "load": os.getloadavg()[0],
            }
            print(json.dumps(result))
            slow |= result["times_real_time_per_cpu_second"] < REAL.get(kind, 0)
    sys.exit(slow)


if __name__ == "__main__":
    main()

"""The loader alone beside the step that it feeds: audio seconds a CPU second, and what each part of it takes.

    python -m benchmarks.loader [--clips 64] [--width 384] [--layers 6]

Clips are FLAC in memory, as shards hold them, as long as LibriSpeech's on average. The loader decodes, makes log-mel
features and batches; with worker processes it does so while the step runs. It keeps up where its rate, times the
processes, is above the step's.
"""

import argparse
import io
import os
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import soundfile
import torch
from torch.utils.data import DataLoader

from benchmarks.preprocess import SECONDS, speech_like
from benchmarks.shapes import frozen_models, machine, model, table
from steermoe.audio import io as waveform
from steermoe.data.batching import bucketed_batches
from steermoe.data.dataset import UtteranceDataset, collate
from steermoe.models.steermoe import SteerMoE


def clips(count: int) -> pl.DataFrame:
    """Rows as the dataset takes them."""
    rng = np.random.default_rng(0)
    rows = []
    for number in range(count):
        flac = io.BytesIO()
        soundfile.write(flac, speech_like(rng, 16_000, 1), 16_000, format="FLAC", subtype="PCM_16")
        rows.append(
            {
                "source_id": str(number),
                "task": "transcribe",
                "prompt": "",
                "target": "one two three " * 10,
                "audio": flac.getvalue(),
            }
        )
    return pl.DataFrame(rows)


def dataset(frame: pl.DataFrame, assembly: SteerMoE) -> UtteranceDataset:
    """Nothing of it in memory yet."""
    return UtteranceDataset(frame, assembly.features, assembly.tokenizer, assembly.config.prompts)


def cpu() -> float:
    """Seconds of this process and of its children that have ended."""
    each = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(used.ru_utime + used.ru_stime for used in each)


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """CPU and wall seconds."""
    began, wall = cpu(), time.perf_counter()
    work()
    return cpu() - began, time.perf_counter() - wall


def loaded(data: UtteranceDataset, budget: float, workers: int) -> list[dict[str, torch.Tensor]]:
    """All batches of an epoch."""
    plan = bucketed_batches([SECONDS] * len(data), budget, seed=0, epoch=0)
    threads = torch.set_num_threads
    return list(
        DataLoader(
            data, batch_sampler=plan, collate_fn=collate, num_workers=workers,
            worker_init_fn=None if not workers else lambda _: threads(1),
        )
    )  # fmt: skip


def main() -> None:
    """Print a table in Markdown."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clips", type=int, default=64)
    parser.add_argument("--max-batch-seconds", type=float, default=51.0)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        assembly = model("steermoe", frozen_models(Path(folder), chosen.width, chosen.layers, 32_000))
    frame = clips(chosen.clips)
    audio = [waveform.load(each) for each in frame["audio"]]
    kept = dataset(frame, assembly)
    batches = loaded(kept, chosen.max_batch_seconds, 0)

    def step() -> None:
        for each in batches[:2]:
            assembly(**each).loss.backward()

    seconds = SECONDS * chosen.clips
    parts: dict[str, tuple[Callable[[], object], float]] = {
        "decode": (lambda: [waveform.load(each) for each in frame["audio"]], seconds),
        "log-mel": (lambda: [assembly.features(each) for each in audio], seconds),
        "loader": (lambda: loaded(dataset(frame, assembly), chosen.max_batch_seconds, 0), seconds),
        f"loader, {chosen.workers} workers": (
            lambda: loaded(dataset(frame, assembly), chosen.max_batch_seconds, chosen.workers), seconds,
        ),
        "loader, features in memory": (lambda: loaded(kept, chosen.max_batch_seconds, 0), seconds),
        "step": (step, SECONDS * sum(len(each["features"]) for each in batches[:2])),
    }  # fmt: skip
    print(f"{machine()}\n{chosen.clips} clips of {SECONDS} s; encoder {chosen.width} x {chosen.layers}\n")
    rows = []
    for name, (work, heard) in parts.items():
        used, wall = min(timed(work) for _ in range(3))
        rows.append([name, f"{heard / used:.0f}", f"{heard / wall:.0f}"])
    print(table(["part", "audio s / CPU s", "audio s / s"], rows))


if __name__ == "__main__":
    main()

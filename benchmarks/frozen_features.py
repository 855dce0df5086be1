"""Encoding every utterance alone: one after another with all threads, or side by side with a thread each.

    python -m benchmarks.frozen_features [--utterances 28] [--repeats 5] [--threads 2]

The mini profile's encoder in bfloat16, utterances of 1.4 to 3.6 s (random features), as in the first epoch of a
variant whose encoder is not trained. Side by side is what training does (steermoe/training/feature_cache.py), its
folder included; one after another is the encoder alone. The two ways in turns; both give the same bits, which is
asserted. On a machine that has other work the threads of the first way wait for each other at every product: look at
the load.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from benchmarks.shapes import ROOT, batch, machine, model, spread, table
from steermoe.models.attention import ShortAttention
from steermoe.models.steermoe import SteerMoE
from steermoe.training.feature_cache import feature_cache

SHORTEST, LONGEST = 1.4, 3.6  # seconds
PATHS = (str(ROOT / "pretrained/encoder"), str(ROOT / "pretrained/llm"))


def one_after_another(assembly: SteerMoE, clips: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """Outputs (S, D) of each."""
    features_BMT, lengths_B = clips["features"], clips["feature_lengths"]
    return [
        assembly.encoder(features_BMT[row : row + 1, :, :length].contiguous(), lengths_B[row : row + 1])[0][0]
        for row, length in enumerate(lengths_B.tolist())
    ]


def side_by_side(assembly: SteerMoE, clips: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """Outputs (S, D) of each, and a folder filled with them."""
    with tempfile.TemporaryDirectory() as folder, feature_cache(assembly, Path(folder), 1):
        assert assembly.encode_override is not None
        found, lengths_B = assembly.encode_override(clips["features"], clips["feature_lengths"])
    return [hidden[:length] for hidden, length in zip(found, lengths_B.tolist(), strict=True)]


WAYS: dict[str, Callable[[SteerMoE, dict[str, torch.Tensor]], Sequence[torch.Tensor]]] = {
    "one after another": one_after_another,
    "side by side": side_by_side,
}


def main() -> None:
    """Print a table in Markdown."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--utterances", type=int, default=28)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    print(machine(), "\n")
    assembly = model("linear", PATHS)
    clips = batch(torch.linspace(SHORTEST, LONGEST, chosen.utterances).tolist(), assembly.features.channels)
    wall: dict[str, list[float]] = {name: [] for name in WAYS}
    cpu: dict[str, list[float]] = {name: [] for name in WAYS}
    for turn in range(-1, chosen.repeats):  # the first chooses kernels
        outputs = []
        for name, way in WAYS.items():
            began, used = time.perf_counter(), time.process_time()
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), ShortAttention():
                outputs.append(way(assembly, clips))
            took = (time.perf_counter() - began, time.process_time() - used)
            for kept, seconds in zip((wall, cpu), took, strict=True):
                kept[name] += [1000 * seconds / chosen.utterances] * (turn >= 0)
        assert all(torch.equal(one, other) for one, other in zip(*outputs, strict=True))
    rows = [[name, spread(wall[name]), spread(cpu[name])] for name in WAYS]
    print(table([f"{chosen.threads} threads", "wall, ms an utterance", "CPU, ms an utterance"], rows))
    first, second = wall.values()
    print(f"\n{statistics.median(a / b for a, b in zip(first, second, strict=True)):.2f} times")


if __name__ == "__main__":
    main()

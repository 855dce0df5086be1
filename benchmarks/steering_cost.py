"""What steering itself costs: a training step with it against one with the same encoder backward and without it.

Both variants run the same frozen models (random weights) on the same batch in turns. In the unsteered variant the
output of layer 0 asks for a gradient, so that the backward pass goes through the same layers of the encoder there,
too.

    python -m benchmarks.steering_cost --width 384 --layers 6 --experts 8
"""

import argparse
import platform
import statistics
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.shapes import batch, frozen_models, model
from steermoe.models.encoders.encoder import layer_hidden

CLIPS = 4


def main() -> None:
    """Print the medians and their ratio."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--experts", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--vocabulary", type=int, default=32_000)
    parser.add_argument("--repeats", type=int, default=30)
    chosen = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        paths = frozen_models(Path(folder), chosen.width, chosen.layers, chosen.vocabulary)
        steered, plain = (model(name, paths, chosen.experts).to(device) for name in ("steermoe", "linear"))
    plain.encoder.layers[0].register_forward_hook(
        lambda layer, args, output: layer_hidden(output).requires_grad_()
    )
    inputs = {
        name: tensor.to(device)
        for name, tensor in batch([chosen.seconds] * CLIPS, steered.encoder.features.channels).items()
    }
    variants = {"without": plain, "steering": steered}
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for repeat in range(chosen.repeats + 3):
        for name, variant in variants.items():
            began = time.process_time() if device == "cpu" else time.perf_counter()
            variant(**inputs).loss.backward()
            if device == "cuda":
                torch.cuda.synchronize()
            took = (time.process_time() if device == "cpu" else time.perf_counter()) - began
            if repeat >= 3:
                seconds[name].append(took)
    medians = {name: statistics.median(each) for name, each in seconds.items()}
    ratios = [a / b for a, b in zip(seconds["steering"], seconds["without"], strict=True)]
    low, high = statistics.quantiles(ratios, n=10)[0], statistics.quantiles(ratios, n=10)[-1]
    clock = "CPU seconds" if device == "cpu" else "seconds"
    print(f"{platform.machine()}, {device}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(
        f"encoder {chosen.width} x {chosen.layers}, {chosen.experts} experts, {CLIPS} clips of {chosen.seconds:g} s"
    )
    print(
        f"{clock} a step, median of {chosen.repeats}: "
        + ", ".join(f"{v:.4f} {k}" for k, v in medians.items())
    )
    print(
        f"steering costs {100 * (statistics.median(ratios) - 1):+.1f} % "
        f"(10 to 90 % of the pairs: {100 * (low - 1):+.1f} to {100 * (high - 1):+.1f})"
    )


if __name__ == "__main__":
    main()

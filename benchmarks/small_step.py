"""A training step of Whisper-base and SmolLM2-135M beside its matrix products alone: CPU seconds of one thread.

    python -m benchmarks.small_step [--variant steermoe linear] [--precision float32 bfloat16] [--repeats 3]

The models have the shapes of the real ones and random weights; frozen weights are of the precision, and the step of
bfloat16 is under autocast. The products (of convolutions and of attention too, where torch has no fused kernel for it)
are noted in one step and computed again alone, in the same run: they are what the step cannot do without. CPUs without
instructions for bfloat16 (AMX, AVX512-BF16) compute products in it several times as slowly as in float32.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.shapes import batch, machine, model, small_models, spread, table
from benchmarks.train_step import our_loss, taken
from steermoe.models.steermoe import SteerMoE

PROMPT, TARGET = 8, 14  # tokens of each row; its audio takes 30
GOAL = 3.0  # times the products alone
PRODUCTS = {"mm", "addmm", "bmm", "baddbmm", "convolution", "convolution_backward"}


class Products(TorchDispatchMode):
    """Notes every matrix product in the context, forward and backward.

    Attributes:
        calls: functions that compute each of them again, of random numbers in the same places of memory.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Callable[[], Any]] = []

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Called in place of every operation of torch's."""
        if func.overloadpacket.__name__ in PRODUCTS:
            shapes = [(a.shape, a.stride(), a.dtype) if isinstance(a, torch.Tensor) else None for a in args]

            def again() -> Any:
                made = [
                    plain if shape is None else torch.empty_strided(*shape[:2], dtype=shape[2]).normal_()
                    for plain, shape in zip(others, shapes, strict=True)
                ]
                began = time.process_time()
                func(*made, **(kwargs or {}))
                return time.process_time() - began

            others = [None if isinstance(a, torch.Tensor) else a for a in args]
            self.calls.append(again)
        return func(*args, **(kwargs or {}))


def products(
    assembly: SteerMoE, clips: dict[str, torch.Tensor], dtype: torch.dtype
) -> list[Callable[[], Any]]:
    """Functions that compute each product of a step again, and return its CPU seconds."""
    with Products() as noted:
        taken(assembly, lambda: our_loss(assembly, clips), dtype)
    return noted.calls


def main() -> None:
    """Print a table in Markdown; exit with 1 where the goal is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--variant", nargs="+", default=["steermoe", "linear"])
    parser.add_argument("--precision", choices=("float32", "bfloat16"), nargs="+", default=["float32"])
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=2.4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--layers", type=int, help="of both models; default: all, 6 and 30")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(machine())
    print(f"{chosen.rows} clips of {chosen.seconds:g} s, {PROMPT} prompt and {TARGET} target tokens each\n")
    clips, rows, met = batch([chosen.seconds] * chosen.rows, 80, PROMPT, TARGET), [], True
    with tempfile.TemporaryDirectory() as folder:
        paths = small_models(Path(folder), chosen.layers)
        for name in chosen.variant:
            for precision in chosen.precision:
                assembly, dtype = model(name, paths, dtype=precision), getattr(torch, precision)
                calls = products(assembly, clips, dtype)
                steps, floors = [], []
                for _ in range(chosen.repeats):
                    steps.append(taken(assembly, lambda: our_loss(assembly, clips), dtype))  # noqa: B023
                    floors.append(sum(call() for call in calls))
                ratio = statistics.median(a / b for a, b in zip(steps, floors, strict=True))
                met &= ratio <= GOAL
                rows.append(
                    [f"{name}, {precision}", spread(steps), spread(floors), f"{ratio:.2f}", f"{GOAL:g}"]
                )
    print(table(["variant, precision", "step, CPU s", "its products, CPU s", "times", "goal"], rows))
    sys.exit(not met)


if __name__ == "__main__":
    main()

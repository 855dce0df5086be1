"""How a training step's time and memory grow with seconds of audio, clips, experts and layers.

    python -m benchmarks.growth [--width 384] [--repeats 3] [--out docs/pictures/growth.png]

One of them is changed at a time; the others stay at 10 s, 4 clips, 8 experts and 6 layers. Within a row of cases the
steps are taken in turns. CPU seconds of one thread, memory as in `train_step`. From 8 to 64 experts a step may cost at
most 5 % more; the script ends with 1 where it costs more.
"""

import argparse
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from benchmarks.shapes import batch, frozen_models, machine, model, table
from benchmarks.train_step import Step, peak, taken
from steermoe.models.steermoe import SteerMoE

MOST = 1.05  # times the step with 8 experts, with 64


@dataclass(frozen=True)
class Case:
    seconds: float = 10.0
    clips: int = 4
    experts: int = 8
    layers: int = 6


BASE = Case()
CASES: dict[str, tuple[float, ...]] = {
    "seconds": (2.5, 5, 10, 20, 30),
    "clips": (1, 2, 4, 8, 16),
    "experts": (8, 16, 32, 64),
    "layers": (3, 6, 12),
}


def loss_of(assembly: SteerMoE, clips: dict[str, torch.Tensor]) -> torch.Tensor:
    loss = assembly(**clips).loss
    assert loss is not None
    return loss


def grown(
    what: str, values: Sequence[float], width: int, llm: tuple[int, int], repeats: int
) -> list[tuple[float, float]]:
    """CPU seconds and MiB of a step, for each value of one quantity."""
    steps: list[tuple[SteerMoE, Step]] = []
    for value in values:
        case = replace(BASE, **{what: value if what == "seconds" else int(value)})
        with tempfile.TemporaryDirectory() as folder:
            torch.manual_seed(0)
            paths = frozen_models(Path(folder), width, case.layers, 32_000, *llm)
            assembly = model("steermoe", paths, case.experts)
        clips = batch([case.seconds] * case.clips, assembly.encoder.features.channels)
        steps.append((assembly, partial(loss_of, assembly, clips)))
    memory = [peak(*each, torch.float32) / 2**20 for each in steps]
    cpu: list[list[float]] = [[] for _ in steps]
    for _ in range(repeats):
        for each, times in zip(steps, cpu, strict=True):
            times.append(taken(*each))
    return list(zip(map(statistics.median, cpu), memory, strict=True))


def draw(found: dict[str, list[tuple[float, float]]], cases: dict[str, tuple[float, ...]], out: Path) -> None:
    """A panel for each quantity: time on the left axis, memory on the right one."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    size = (3.2 * len(found), 2.8)
    figure, grid = pyplot.subplots(1, len(found), figsize=size, layout="constrained", squeeze=False)
    panels = grid[0]
    for panel, (what, points) in zip(panels, found.items(), strict=True):
        seconds, memory = zip(*points, strict=True)
        panel.plot(cases[what], seconds, "o-", color="#1b6ca8", label="CPU s a step")
        panel.set(xlabel=what, ylim=(0, 1.15 * max(seconds)), xlim=(0, None))
        right = panel.twinx()  # of the last one it gets the label
        right.plot(cases[what], memory, "s--", color="#c0392b", label="MiB at the peak")
        right.set_ylim(0, 1.15 * max(memory))
        if panel is panels[0]:
            lines = [*panel.lines, *right.lines]
            panel.legend(lines, [line.get_label() for line in lines], fontsize=7, loc="upper left")
    panels[0].set_ylabel("CPU s a step")
    right.set_ylabel("MiB at the peak")
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=120)
    pyplot.close(figure)


def main() -> None:
    """Print tables in Markdown and draw them; exit with 1 where experts cost too much."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--width", type=int, default=384, help="of the encoder")
    parser.add_argument("--llm", type=int, nargs=2, default=(512, 8), metavar=("WIDTH", "LAYERS"))
    parser.add_argument("--only", choices=CASES, nargs="+", default=list(CASES))
    parser.add_argument("--ends", action="store_true", help="the first and the last value of each only")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, help="a picture; default: none")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{machine()}\nencoder {chosen.width}, LLM {chosen.llm[0]} x {chosen.llm[1]}\n")
    cases = {
        what: CASES[what][:: len(CASES[what]) - 1] if chosen.ends else CASES[what] for what in chosen.only
    }
    found = {}
    for what, values in cases.items():
        found[what] = grown(what, values, chosen.width, tuple(chosen.llm), chosen.repeats)
        rows = [
            [f"{value:g}", f"{s:.3f}", f"{s / found[what][0][0]:.2f}", f"{mib:.0f}"]
            for value, (s, mib) in zip(values, found[what], strict=True)
        ]
        print(table([what, "CPU s a step", "times the first", "MiB at the peak"], rows), "\n", flush=True)
    if chosen.out is not None:
        draw(found, cases, chosen.out)
    experts = found.get("experts")
    sys.exit(experts is not None and experts[-1][0] > MOST * experts[0][0])


if __name__ == "__main__":
    main()

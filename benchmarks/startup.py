"""What starting costs: `steermoe --help`, the imports of every stage, and a pipeline that has nothing to do.

    python -m benchmarks.startup [--repeats 3] [--repro FOLDER]

CPU seconds, the least of some. Imports are those of the whole stage (also those that its code makes late), and the
packages that take the most of them by `python -X importtime`. FOLDER is a working copy whose pipeline has been run:
there `dvc repro` finds nothing to do.
"""

import argparse
import ast
import re
import resource
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from benchmarks.shapes import ROOT, machine, table

GOALS = {"steermoe --help": 0.6, "dvc repro, nothing to do": 5.0}
STAGES = ("download", "preprocess", "configure", "train", "eval", "baseline", "ablate", "show")
LINE = re.compile(r"import time:\s*(\d+) \|\s*(\d+) \|(\s*)(\S+)")


def cpu(command: Sequence[str], folder: Path = ROOT, repeats: int = 1) -> float:
    """CPU seconds of a command and its children, the least of some.

    Raises:
        RuntimeError: it fails; with its last words.
    """
    least = float("inf")
    for _ in range(repeats):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr[-500:]}")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        least = min(least, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return least


def statements(stage: str) -> str:
    """All imports of a stage's file, late ones too."""
    tree = ast.parse((ROOT / "pipeline" / f"{stage}.py").read_text())
    return "\n".join(ast.unparse(n) for n in ast.walk(tree) if isinstance(n, ast.Import | ast.ImportFrom))


def packages(code: str) -> Counter[str]:
    """Seconds that each package's own modules take to import."""
    run = [sys.executable, "-X", "importtime", "-c", code]
    lines = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=True).stderr.splitlines()
    took: Counter[str] = Counter()
    for line in lines:
        if found := LINE.match(line):
            took[found[4].split(".")[0]] += int(found[1]) / 1e6  # pyright: ignore[reportArgumentType]
    return took


def main() -> None:
    """Print tables in Markdown; exit with 1 where a goal is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--stages", choices=STAGES, nargs="*", default=STAGES)
    parser.add_argument("--repro", type=Path, help="a working copy whose pipeline has been run")
    chosen = parser.parse_args()
    print(machine(), "\n")
    programs = {"steermoe --help": ([sys.executable, "-m", "steermoe.cli.main", "--help"], ROOT)}
    if (installed := Path(sys.executable).with_name("steermoe")).exists():
        programs["steermoe --help"] = ([str(installed), "--help"], ROOT)
    if chosen.repro is not None:
        programs["dvc repro, nothing to do"] = ([sys.executable, "-m", "dvc", "repro"], chosen.repro)
    rows, met = [], True
    for name, (command, folder) in programs.items():
        took = cpu(command, folder, chosen.repeats)
        rows.append([name, f"{took:.2f}", f"{GOALS[name]:g}"])
        met &= took <= GOALS[name]
    print(table(["program", "CPU s", "goal"], rows), "\n")
    empty = cpu([sys.executable, "-c", ""], repeats=chosen.repeats)
    rows = []
    for stage in chosen.stages:
        code = statements(stage)
        took = cpu([sys.executable, "-c", code], repeats=chosen.repeats) - empty
        most = ", ".join(f"{name} {seconds:.2f}" for name, seconds in packages(code).most_common(5))
        rows.append([stage, f"{took:.2f}", most])
    print(table(["imports of stage", "CPU s", "packages that take the most, s"], rows))
    sys.exit(not met)


if __name__ == "__main__":
    main()

"""A training step shared by processes: the throughput of several beside that of one.

    python -m benchmarks.processes [--variant data/mini/variants/steermoe.json] [--shards data/mini/shards]
        [--processes 1 2]

Stage `train` runs a few steps of a variant with each number of processes (`training.distributed`, ddp), in turns, one
thread per process. A step has the same batch whatever their number, and `seconds_per_step` is the median that the
stage writes: forward, backward, update. On otherwise idle cores, one for each process, two should reach 1.8 times the
throughput of one; the script ends with 1 where they do not.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from ruamel.yaml import YAML

from benchmarks.shapes import ROOT, machine, spread, table

LEAST = 0.9  # of the throughput that so many times the cores would give


def project(folder: Path, processes: int, variant: Path, steps: int) -> None:
    """What stage `train` needs of a project, with `training.distributed` as asked for."""
    shutil.copy(ROOT / "params.yaml", folder)
    shutil.copytree(ROOT / "configs", folder / "configs")
    (folder / "pretrained").symlink_to(ROOT / "pretrained")
    yaml = YAML()
    for path in (folder / "configs").glob("*.yaml"):
        profile = yaml.load(path)
        strategy = "none" if processes == 1 else "ddp"
        profile["training"]["distributed"].update(
            {"processes": processes, "strategy": strategy, "offload": "none"}
        )
        yaml.dump(profile, path)
    resolved = json.loads(variant.read_text())
    resolved["training"] |= {"max_steps": steps, "epochs": None, "eval_steps": steps, "warmup_steps": 1}
    (folder / "variant.json").write_text(json.dumps(resolved))


def seconds_per_step(processes: int, variant: Path, shards: Path, steps: int) -> float:
    """Of a training from the beginning, in a folder of its own.

    Raises:
        RuntimeError: it failed; with what it said.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        project(folder, processes, variant, steps)
        stage = f"train --config variant.json --shards {shards} --out models/variant --history h.csv --timing t.json"
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        run = subprocess.run(
            [sys.executable, "-m", "pipeline", *stage.split(), "--feature-cache-gb", "0"],
            cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        if run.returncode:
            raise RuntimeError(f"{processes} processes: exit code {run.returncode}\n{run.stdout}")
        return json.loads((folder / "t.json").read_text())["seconds_per_step"]


def main() -> None:
    """Print a table in Markdown; exit with 1 where processes bring too little."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--variant", type=Path, default=Path("data/mini/variants/steermoe.json"), help="by `configure`"
    )
    parser.add_argument("--shards", type=Path, default=Path("data/mini/shards"), help="by `preprocess`")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    chosen = parser.parse_args()
    for path in (chosen.variant, chosen.shards):
        if not path.exists():
            parser.error(f"{path} is not there: run `dvc repro configure preprocess` first, or name another")
    print(f"{machine()}\n{chosen.variant.stem}, {chosen.steps} steps, one thread a process\n")
    seconds: dict[int, list[float]] = {count: [] for count in chosen.processes}
    for _ in range(chosen.repeats):
        for count, found in seconds.items():
            found.append(seconds_per_step(count, chosen.variant, chosen.shards.resolve(), chosen.steps))
    first = seconds[chosen.processes[0]]
    rows, is_met = [], True
    for count, found in seconds.items():
        times = sorted(one / each for one, each in zip(first, found, strict=True))
        rows.append([str(count), spread(found), spread(times)])
        is_met &= times[len(times) // 2] >= LEAST * count / chosen.processes[0]
    print(table(["processes", "s a step, median [least, most]", "times the throughput"], rows))
    print(machine())
    sys.exit(not is_met)


if __name__ == "__main__":
    main()

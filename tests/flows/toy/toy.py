"""The stages of the small pipeline that the tests run: shaped as the real one, made of waiting.

A variant of params.yaml says how its training goes: {steps, breaks}. `breaks` is `never`, `preempted`
(leaves with code 75 at its second step, the first time) or `always`.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from ruamel.yaml import YAML

from steermoe.atomic_io import Staging

STEP_SECONDS = 0.25


def note(root: Path, kind: str, **values: object) -> None:
    """A line in the project's trace: who did what when."""
    line = json.dumps({"kind": kind, "pid": os.getpid(), "time": time.time(), **values})
    with (root / ".runs" / "trace.jsonl").open("a") as trace:
        trace.write(line + "\n")


def train(variant: str, steps: int, breaks: str, out: Path) -> int:
    """As the real training: its work is held alone, outlives it, and is found by the same variant and steps."""
    with Staging(out, {"toy": variant, "steps": steps}) as staging:
        code = take_steps(variant, steps, breaks, staging.scratch / "step")
        if code == 0:
            staging.part("weights").write_text(f"{variant} {steps}\n")
            staging.commit()
    return code


def take_steps(variant: str, steps: int, breaks: str, state: Path) -> int:
    root = Path(os.environ["DVC_ROOT"])
    begun = int(state.read_text()) if state.exists() else 0
    # A rank in a session of its own, as torchrun starts them.
    rank = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(600)"],
        start_new_session=True,
        stdout=subprocess.DEVNULL,
    )
    where = {
        "gpu": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "code": str(Path(__file__).resolve()),
        "rank": rank.pid,
    }
    note(root, "begin", variant=variant, step=begun, experiment=os.environ.get("DVC_EXP_NAME"), **where)
    for step in range(begun + 1, steps + 1):
        time.sleep(STEP_SECONDS)
        print(f"{variant}: step {step}/{steps}")  # as a stage prints: PYTHONUNBUFFERED lets it through
        whole = state.with_suffix(".new")  # it may be killed amid the write
        whole.write_text(str(step))
        whole.replace(state)
        if breaks == "always":
            break
        if breaks == "preempted" and begun == 0 and step == 2:
            break
    rank.kill()
    note(root, "end", variant=variant, step=step)
    if breaks == "always":
        return 1
    return 0 if step == steps else 75


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("stage")
    parser.add_argument("--variant", default="")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    given.out.parent.mkdir(parents=True, exist_ok=True)
    if given.stage == "train":
        variant = YAML(typ="safe").load(Path("params.yaml"))["variants"][given.variant]
        return train(given.variant, variant["steps"], variant["breaks"], given.out)
    if given.stage == "ablate":
        given.out.mkdir(parents=True)
        table = "| variant |\n| :-- |\n| a |\n"
        (given.out / "report.md").write_text(f"# Comparison\n\n## Results\n\n{table}\n![p](p.png)\n")
        (given.out / "expert_use.png").write_bytes(b"\x89PNG\r\n\x1a\n")
        return 0
    given.out.write_text(f"{given.stage} {given.variant}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

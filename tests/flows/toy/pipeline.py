"""`python -m pipeline STAGE` of the small project in which flows are tested: shaped as the real one, made of waiting.

A variant of params.yaml says how its training goes: {steps, breaks}. `breaks` is `never`, `preempted` (leaves with
code 75 at its second step, the first time) or `always`.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from ruamel.yaml import YAML

STEP_SECONDS = 0.25


def train(variant: str, steps: int, breaks: str, out: Path) -> int:
    """Take steps, noting the last one in the project's `.runs/`, where a later training resumes."""
    root = Path(os.environ["DVC_ROOT"])
    state = root / ".runs" / f"{variant}-{steps}"
    begun = int(state.read_text()) if state.exists() else 0
    # A rank in a session of its own, as torchrun starts them.
    rank = subprocess.Popen(["sleep", "600"], start_new_session=True, stdout=subprocess.DEVNULL)
    code = 75  # as asked to end
    try:
        note = {
            "variant": variant, "step": begun, "pid": os.getpid(), "rank": rank.pid, "code": __file__,
            "gpu": os.environ.get("CUDA_VISIBLE_DEVICES"), "experiment": os.environ["DVC_EXP_NAME"],
            "began": time.time(),
        }  # fmt: skip
        write(root / ".runs" / "trace" / f"{variant}-{time.time_ns()}.json", json.dumps(note))
        for step in range(begun + 1, steps + 1):
            time.sleep(STEP_SECONDS)
            print(f"{variant}: step {step}/{steps}")  # as a stage prints: PYTHONUNBUFFERED lets it through
            write(state, str(step))
            if breaks == "always":
                return 1
            if breaks == "preempted" and begun == 0 and step == 2:
                return 75
        out.write_text(f"{variant} {steps}\n")
        code = 0
    finally:
        rank.kill()
    return code


def write(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    whole = path.with_name(f".{path.name}")
    whole.write_text(text)
    whole.replace(path)


def select(profile: str | None, compare: str | None) -> None:
    """Select variants, as `python -m pipeline profile` does."""
    yaml, file = YAML(), Path("params.yaml")
    params = yaml.load(file)
    variants = params["compare"] if compare is None else compare.split(",")
    if unknown := [variant for variant in variants if variant not in params["variants"]]:
        sys.exit(f"unknown variants {unknown}")
    reference = params["reference"] if params["reference"] in variants else variants[0]
    params.update(profile=profile or params["profile"], compare=variants, reference=reference)
    yaml.dump(params, file)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("stage")
    parser.add_argument("profile", nargs="?")
    parser.add_argument("--compare")
    parser.add_argument("--variant", default="")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    if given.stage == "profile":
        select(given.profile, given.compare)
        return 0
    given.out.parent.mkdir(parents=True, exist_ok=True)
    if given.stage == "train":
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
        variant = YAML(typ="safe").load(Path("params.yaml"))["variants"][given.variant]
        return train(given.variant, variant["steps"], variant["breaks"], given.out)
    if given.stage == "ablate":
        given.out.mkdir()
        (given.out / "report.md").write_text("# Comparison\n\n| variant |\n| :-- |\n| a |\n\n![p](p.png)\n")
        (given.out / "expert_use.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    else:
        given.out.write_text(f"{given.stage} {given.variant}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

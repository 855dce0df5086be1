"""Slots of this machine: what trains at once, each with GPUs of its own.

A slot is a file in `.runs/` that its holder has locked (flock). The kernel frees it however the holder dies, so
that no lease has to lapse; two flows, or two users of one checkout, exclude each other without a server.
"""

import fcntl
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

SETTING = "STEERMOE_SLOTS"
POLL_SECONDS = 0.5


def gpus() -> list[str]:
    """The GPUs that may be used: those of CUDA_VISIBLE_DEVICES if it is set, else all that nvidia-smi lists."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [name for name in chosen.split(",") if name]
    if shutil.which("nvidia-smi") is None:
        return []
    query = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    listed = subprocess.run(query, capture_output=True, text=True, check=False)
    return listed.stdout.split() if listed.returncode == 0 else []


def number() -> int:
    """Slots of this machine: STEERMOE_SLOTS, else one a GPU, else one.

    Raises:
        ValueError: STEERMOE_SLOTS is no positive number.
    """
    chosen = os.environ.get(SETTING, "")
    if not chosen:
        return len(gpus()) or 1
    if not chosen.isdecimal() or int(chosen) < 1:
        raise ValueError(f"{SETTING} is {chosen!r}; it is the number of variants that train at once, from 1")
    return int(chosen)


def environment(held: list[int]) -> dict[str, str]:
    """What tells a command in these slots its share of the machine.

    Slot i has GPU i; with more slots than GPUs, several share one. Without a GPU, slots share the cores.
    """
    devices, slots = gpus(), number()
    if devices:
        share = dict.fromkeys(devices[slot % len(devices)] for slot in held)  # in order, each once
        return {"CUDA_VISIBLE_DEVICES": ",".join(share)}
    if "OMP_NUM_THREADS" in os.environ or slots == 1:
        return {}
    return {"OMP_NUM_THREADS": str(max(1, len(held) * (os.cpu_count() or 1) // slots))}


def lock_of(folder: Path, slot: int) -> Path:
    """The file whose holder has the slot; of this machine, or of this Slurm job: `folder` may be shared by several."""
    job = os.environ.get("SLURM_JOB_ID")
    return folder / f"slot-{f'slurm{job}' if job else socket.gethostname()}-{slot}.lock"


def check(wanted: int) -> None:
    """Refuse more slots than there are.

    Raises:
        ValueError: the machine has fewer.
    """
    if not 1 <= wanted <= number():
        raise ValueError(
            f"{wanted} slots wanted, this machine has {number()} ({len(gpus())} GPUs, {SETTING}="
            f"{os.environ.get(SETTING, '')!r}); ask for 1 to {number()}, or set {SETTING}"
        )


@contextmanager
def taken(folder: Path, wanted: int, given_up: Callable[[], bool]) -> Iterator[list[int]]:
    """Wait until `wanted` slots are free, and hold them: their numbers, or none if `given_up` came first.

    Args:
        folder: `.runs/` of the project.
        wanted: how many at once. They are taken together or not at all: two that wait never block each other.
        given_up: asked while waiting.

    Raises:
        ValueError: the machine has fewer slots.
    """
    check(wanted)
    slots = number()
    folder.mkdir(parents=True, exist_ok=True)
    while not given_up():
        with ExitStack() as locks:
            held = []
            for slot in range(slots):
                file = locks.enter_context(lock_of(folder, slot).open("w"))
                with suppress(BlockingIOError):
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    held.append(slot)
                if len(held) == wanted:
                    yield held
                    return
        time.sleep(POLL_SECONDS)
    yield []

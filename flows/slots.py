"""GPU slots of this machine: file locks in `.runs/`, which are free again however their process ends."""

import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

SETTING = "STEERMOE_SLOTS"
POLL_SECONDS = 0.5


def gpus() -> list[str]:
    """Return the GPUs in CUDA_VISIBLE_DEVICES if it is set, else all that nvidia-smi lists."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name]
    if shutil.which("nvidia-smi") is None:
        return []
    query = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    return subprocess.run(query, capture_output=True, text=True, check=False).stdout.split()


def count() -> int:
    """Return STEERMOE_SLOTS if it is set, else one slot per GPU, or one without a GPU."""
    value = os.environ.get(SETTING) or str(len(gpus()) or 1)
    if not value.isdecimal() or int(value) < 1:
        raise ValueError(
            f"{SETTING}: found {value!r}; legal: how many variants train at the same time, from 1"
        )
    return int(value)


def environment(held: list[int]) -> dict[str, str]:
    """Return the variables that give a command in these slots its GPUs, or its share of the cores."""
    if devices := gpus():
        share = dict.fromkeys(devices[slot % len(devices)] for slot in held)
        return {"CUDA_VISIBLE_DEVICES": ",".join(share)}
    if "OMP_NUM_THREADS" in os.environ or count() == 1:
        return {}
    return {"OMP_NUM_THREADS": str(max(1, len(held) * (os.cpu_count() or 1) // count()))}


@contextmanager
def acquire(folder: Path, wanted: int, cancelled: threading.Event) -> Iterator[list[int]]:
    """Wait until `wanted` slots are free and hold them; yield their numbers, none when `cancelled` came first.

    All are taken at once or none, so that two waiting runs never block each other.
    """
    if not 1 <= wanted <= count():
        raise ValueError(
            f"slots_each: found {wanted}; legal: 1 to {count()}, the slots of this machine ({len(gpus())} GPUs, "
            f"{SETTING}={os.environ.get(SETTING, '')!r})"
        )
    owner = os.environ.get("SLURM_JOB_ID") or socket.gethostname()  # others may share the folder
    while not cancelled.is_set():
        with ExitStack() as locks:
            held = []
            for slot in range(count()):
                with suppress(Timeout):
                    locks.enter_context(FileLock(folder / f"slot-{owner}-{slot}.lock", timeout=0))
                    held.append(slot)
                if len(held) == wanted:
                    yield held
                    return
        cancelled.wait(POLL_SECONDS)
    yield []

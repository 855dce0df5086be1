"""The processes that share one piece of work: started together, ended together, and what each knows of the others.

They are told apart as torchrun tells them (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT): on several
machines torchrun itself starts them. On one machine `launch` does, for torchrun leaves its processes behind when
it is killed, and gives those of a broken group half a minute.
"""

import ctypes
import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from steermoe.config import Distributed

PREEMPTED = os.EX_TEMPFAIL  # exit code of work that was interrupted and goes on when the command is repeated
ONE_PROCESS = Distributed(processes=1, strategy="none", offload="none")
PARENT = "STEERMOE_LAUNCHER"  # process id of the launcher, with which its processes die
GRACE_SECONDS = 25.0  # from SIGTERM to SIGKILL; schedulers commonly give 30
POLL_SECONDS = 0.05
PR_SET_PDEATHSIG = 1  # prctl(2)


class PreemptedError(RuntimeError):
    """The work was asked to end before it was done; what is done is kept, and the exit code is PREEMPTED."""


class LostProcessError(RuntimeError):
    """One of several processes failed or was killed; the others were ended."""


@dataclass(frozen=True)
class World:
    """This process' number, the number of all, and its number on this machine."""

    rank: int
    size: int
    local_rank: int


def world() -> World:
    """As the launcher tells; one process where there was none."""
    found = (os.environ.get(name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    rank, size, local = (int(value) if value is not None else None for value in found)
    return World(rank or 0, size or 1, local or 0)


def is_launched() -> bool:
    """A launcher started this process, this module's or torchrun."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def count(distributed: Distributed) -> int:
    """How many processes the section asks for on this machine."""
    if distributed.processes != "auto":
        return distributed.processes
    import torch

    return max(1, torch.cuda.device_count())


@contextmanager
def shared(processes: int, as_group: bool = False) -> Iterator[bool]:
    """Have the block run in so many processes of this machine.

    True in each process that is to do the work. False in one that has launched them, and waited for their end:
    its own command line is theirs.

    Args:
        processes: how many.
        as_group: even one is launched, for the work needs a process group (DeepSpeed does).

    Raises:
        LostProcessError, PreemptedError: as of `launch`.
    """
    if not is_launched() and (processes > 1 or as_group):
        launch([sys.executable, "-m", "pipeline", *sys.argv[1:]], processes)
        yield False
        return
    tie_to_launcher()
    yield True
    if is_launched():
        import torch

        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def device() -> str:
    """Where this process computes: its own GPU, or the CPU where there is none."""
    import torch

    return f"cuda:{world().local_rank}" if torch.cuda.is_available() else "cpu"


def gathered(mine: dict[int, Any]) -> dict[int, Any]:
    """The entries of all processes, in each of them; all must call this."""
    if world().size == 1:
        return mine
    from torch import distributed

    if not distributed.is_initialized():
        distributed.init_process_group("gloo")
    found: list[Any] = [None] * world().size
    distributed.all_gather_object(found, mine)
    return {key: value for part in found for key, value in part.items()}


def begin_together() -> None:
    """Wait until the first process calls this, too, however long that takes: a collective gives up after minutes.

    Where the launcher holds no store (a scheduler set the variables itself), nobody waits here.
    """
    if world().size == 1 or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") not in ("1", "True", "true"):
        return
    from torch import distributed

    store = distributed.TCPStore(  # pyright: ignore[reportPrivateImportUsage]
        os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, wait_for_workers=False
    )
    begun = f"steermoe/begun/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    if world().rank == 0:
        store.set(begun, "")
    while not store.check([begun]):
        time.sleep(POLL_SECONDS)


def check(distributed: Distributed) -> None:
    """What this process finds around it is what the section says.

    Raises:
        ValueError: torchrun started another number of processes, fewer GPUs are visible than processes, or
            DeepSpeed is not installed.
    """
    import torch

    if distributed.strategy in ("zero2", "zero3") and importlib.util.find_spec("deepspeed") is None:
        raise ValueError(
            f"training.distributed.strategy: found {distributed.strategy!r}, which needs DeepSpeed: "
            "pip install 'steermoe[deepspeed]', or `make setup`"
        )

    here, wanted = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), count(distributed)
    if is_launched() and here != wanted:
        raise ValueError(
            f"training.distributed.processes: found {distributed.processes!r}, but the launcher started {here} "
            f"on this machine; legal: {here}, or another --nproc-per-node"
        )
    gpus = torch.cuda.device_count()
    if 0 < gpus < wanted:
        raise ValueError(
            f"training.distributed.processes: found {wanted}, but {gpus} GPUs are visible; legal: at most {gpus}, "
            "or auto"
        )


def tie_to_launcher() -> None:
    """Have the kernel kill this process when its launcher dies, however that dies."""
    launcher = os.environ.get(PARENT)
    if launcher is None or sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(launcher):  # it died before the call above
        os.kill(os.getpid(), signal.SIGKILL)


def launch(command: Sequence[str], processes: int) -> None:
    """Run a command as so many processes on this machine until all have ended well.

    SIGTERM is passed on, and they have GRACE_SECONDS to write their checkpoint.

    Raises:
        LostProcessError: one failed or was killed; all others have been killed.
        PreemptedError: one ended with PREEMPTED, or this process got SIGTERM before all had ended well.
    """
    from torch import distributed

    # The launcher holds the store on a port that the kernel chose: no race for a port that was free a moment ago.
    store = distributed.TCPStore(  # pyright: ignore[reportPrivateImportUsage]
        "127.0.0.1", 0, is_master=True, wait_for_workers=False
    )
    group = [
        subprocess.Popen(command, env=environment(rank, processes, store.port)) for rank in range(processes)
    ]
    asked: list[float] = []

    def pass_on(*_: Any) -> None:
        asked.append(time.monotonic())
        for process in group:
            if process.poll() is None:
                process.terminate()

    before = signal.signal(signal.SIGTERM, pass_on)
    try:
        _watch(group, asked)
    finally:
        signal.signal(signal.SIGTERM, before)
        for process in group:
            if process.poll() is None:
                process.kill()
        for process in group:
            process.wait()
    if asked and any(process.returncode for process in group):
        raise PreemptedError("ended by SIGTERM; repeat the command to go on from the last checkpoint")


def _watch(group: Sequence[subprocess.Popen], asked: Sequence[float]) -> None:
    """Until all have ended well, or one has not."""
    while True:
        codes = {rank: process.poll() for rank, process in enumerate(group)}
        if all(code == 0 for code in codes.values()):
            return
        if asked and (
            all(c is not None for c in codes.values()) or time.monotonic() > asked[0] + GRACE_SECONDS
        ):
            return
        if PREEMPTED in codes.values():
            if all(code is not None for code in codes.values()):
                raise PreemptedError("ended by SIGTERM; repeat the command to go on from the last checkpoint")
        elif not asked:
            for rank, code in codes.items():
                if code:
                    raise LostProcessError(_obituary(rank, len(group), group[rank].pid, code))
        time.sleep(POLL_SECONDS)


def _obituary(rank: int, size: int, pid: int, code: int) -> str:
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    why = (
        "if nobody did that, memory may have run out" if code == -signal.SIGKILL else "its error stands above"
    )
    return (
        f"process {rank} of {size} (pid {pid}) {how} ({why}); the others were ended; "
        "repeat the command to go on from the last checkpoint"
    )


def environment(rank: int, processes: int, port: int) -> Mapping[str, str]:
    """The variables of one of several processes on this machine, whose store this process holds."""
    threads = max(1, (os.cpu_count() or 1) // processes)
    own = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": processes,
        "LOCAL_WORLD_SIZE": processes,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "TORCHELASTIC_USE_AGENT_STORE": True,  # the store is the launcher's
        PARENT: os.getpid(),
    }
    return {
        "OMP_NUM_THREADS": str(threads),
        **os.environ,
        **{name: str(value) for name, value in own.items()},
    }

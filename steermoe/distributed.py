"""The processes that share one piece of work: started together, ended together, and what each knows of the others.

Their environment is torchrun's (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT), which starts them where there
are several machines. On one machine `launch` does.
"""

import ctypes
import importlib.util
import multiprocessing
import os
import runpy
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

from steermoe.config import Distributed

PREEMPTED = os.EX_TEMPFAIL  # exit code of work that was interrupted and goes on when the command is repeated
PR_SET_PDEATHSIG = 1  # prctl(2)
ONE_PROCESS = Distributed(processes=1, strategy="none", offload="none")


class PreemptedError(RuntimeError):
    """Raised when SIGTERM ends the work early: what is done is kept, and the exit code is PREEMPTED."""


class LostProcessError(RuntimeError):
    """Raised when one of several processes failed or was killed; the others were ended."""


class SigtermFlag:
    """Notes SIGTERM within a `with` block, instead of ending the process.

    Outside the main thread, where Python allows no handler, SIGTERM keeps its effect.
    """

    def __init__(self) -> None:
        self.is_set = False
        self._before: Any = None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def _note(self, *_: Any) -> None:
        self.is_set = True


def begin_worker() -> None:
    """Prepare a process of a pool: leave Ctrl-C to the parent process, and end this one when the parent has ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


@dataclass(frozen=True)
class World:
    """This process' number, the number of all, and its number on this machine."""

    rank: int
    size: int
    local_rank: int


def world() -> World:
    """Return what the launcher has set; one process where there was none."""
    found = (os.environ.get(name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    rank, size, local = (int(value) if value is not None else None for value in found)
    return World(rank or 0, size or 1, local or 0)


def is_launched() -> bool:
    """Return whether `launch` or torchrun started this process."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def count(distributed: Distributed) -> int:
    """Return the number of processes that the section asks for on this machine."""
    if distributed.processes != "auto":
        return distributed.processes
    import torch

    return max(1, torch.cuda.device_count())


def device() -> str:
    """Return where this process computes: on its own GPU, or on the CPU where there is none."""
    import torch

    return f"cuda:{world().local_rank}" if torch.cuda.is_available() else "cpu"


def gathered(mine: dict[int, Any]) -> dict[int, Any]:
    """Return the entries of all processes, in each of them; all must call this."""
    if world().size == 1:
        return mine
    from torch import distributed

    if not distributed.is_initialized():
        distributed.init_process_group("gloo")
    found: list[Any] = [None] * world().size
    distributed.all_gather_object(found, mine)
    return {key: value for part in found for key, value in part.items()}


def check(distributed: Distributed) -> None:
    """Check that this process' surroundings are as the section says.

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


@contextmanager
def shared(processes: int, as_group: bool = False) -> Iterator[bool]:
    """Run the block in several processes of this machine.

    Yields True in each process that is to do the work, and False in the one that has launched them and waited for
    their end: its own command line is theirs.

    Args:
        processes: how many.
        as_group: launch even one, for work that needs a process group (DeepSpeed does).

    Raises:
        LostProcessError, PreemptedError: as `launch`.
    """
    if not is_launched() and (processes > 1 or as_group):
        launch(processes)
        yield False
        return
    yield True
    if is_launched():
        import torch

        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def launch(processes: int) -> None:
    """Run this process' command line, `python -m pipeline ...`, in several processes of this machine.

    SIGTERM is passed on to them. When this process dies, even by SIGKILL, the kernel ends them (Linux).

    Raises:
        LostProcessError: one failed or was killed; all others have been ended.
        PreemptedError: one ended with PREEMPTED, or this process got SIGTERM before all had ended well.
    """
    from torch import distributed
    from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException, start_processes

    # The store is here, on a port that the kernel chose: no race for a port that was free a moment ago.
    store = distributed.TCPStore(  # pyright: ignore[reportPrivateImportUsage]
        "127.0.0.1", 0, is_master=True, wait_for_workers=False
    )
    arguments = (processes, store.port, sys.argv)
    group: Any = start_processes(run_rank, arguments, processes, join=False, start_method="spawn")
    is_asked = False

    def pass_on(*_: Any) -> None:
        nonlocal is_asked
        is_asked = True
        for process in group.processes:
            process.terminate()

    before = signal.signal(signal.SIGTERM, pass_on)
    try:
        while not group.join():
            pass
    except (ProcessExitedException, ProcessRaisedException) as error:
        if is_asked or getattr(error, "exit_code", None) == PREEMPTED:
            raise PreemptedError(
                "ended by SIGTERM; repeat the command to go on from the last checkpoint"
            ) from error
        raise LostProcessError(
            f"{str(error).strip()} (pid {error.error_pid}): see the error above; SIGKILL may mean a lack of memory; "
            "the others were ended; repeat the command to go on from the last checkpoint"
        ) from error
    finally:
        signal.signal(signal.SIGTERM, before)
        for process in group.processes:
            process.kill()


def run_rank(rank: int, processes: int, port: int, argv: list[str]) -> None:
    """Run the command line `argv` of the pipeline as one of several processes, whose store the launcher holds."""
    import torch

    if (
        sys.platform == "linux"
    ):  # the kernel ends this process when the launcher dies; torch's SIGINT may be ignored
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    os.environ |= environment(rank, processes, port)
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    sys.argv = argv
    runpy.run_module("pipeline", run_name="__main__", alter_sys=True)


def environment(rank: int, processes: int, port: int) -> dict[str, str]:
    """Return the variables of one of several processes on this machine."""
    threads = max(1, (os.cpu_count() or 1) // processes)
    return {
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads)),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",  # the store is the launcher's
    }

"""A worker of Prefect's that is started again when it dies, and takes up what was left behind."""

import ctypes
import fcntl
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from uuid import uuid4

import httpx

from flows import lifetime
from flows.claim import claim

POLL_SECONDS = 5.0
STOP_SECONDS = 20.0
PR_SET_PDEATHSIG = 1  # linux/prctl.h


def lock_of(root: Path, pool: str) -> Path:
    """The file that the worker of a pool holds; of this machine, for several may share the project's folder."""
    return root / ".runs" / f"worker-{socket.gethostname()}-{pool}.lock"


def work(root: Path, pool: str, joins: bool = False) -> int:
    """Keep a worker at work until SIGTERM or SIGINT. What runs then is ended, and goes on when a worker is back.

    Raises:
        RuntimeError: the pool has a worker of this project on this machine already, or is another clone's and this one
            does not join it.
    """
    file = lock_of(root, pool)
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RuntimeError(
                f"{root} has a worker of pool {pool} already; `make flows-stop` ends it"
            ) from None
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        os.environ[lifetime.KEEPER] = uuid4().hex  # of the flows that its worker begins
        stopped = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stopped.set())
        process = None
        try:
            while not stopped.is_set():
                _take_up(root)
                if (process is None or process.poll() is not None) and _is_ours(root, pool, joins):
                    process = _begin(pool)
                stopped.wait(POLL_SECONDS)
        finally:
            if process is not None:
                _end(process)
    return 0


def _take_up(root: Path) -> None:
    try:
        for name in lifetime.take_up(root):
            print(f"{name} was left behind; scheduled again", flush=True)
    except (httpx.HTTPError, OSError) as error:
        print(
            f"the server does not answer ({type(error).__name__}); next try in {POLL_SECONDS:g} s", flush=True
        )
    except RuntimeError as error:
        print(f"what was left behind is not taken up: {error}; next try in {POLL_SECONDS:g} s", flush=True)


def _is_ours(root: Path, pool: str, joins: bool) -> bool:
    """Whether a worker may begin: False as long as the server cannot tell whose the pool is."""
    try:
        claim(root, pool, joins)
    except httpx.HTTPError as error:
        print(
            f"the server does not answer ({type(error).__name__}); next try in {POLL_SECONDS:g} s", flush=True
        )
        return False
    return True


def _begin(pool: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", pool]
    return subprocess.Popen(command, preexec_fn=_die_with_parent if sys.platform == "linux" else None)


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Flows notice by themselves that their worker is gone."""
    process.kill()
    process.wait(timeout=STOP_SECONDS)

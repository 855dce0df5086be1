"""Prefect's server, the work pool, the deployments and a worker: started and stopped together."""

import contextlib
import fcntl
import ipaddress
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import psutil
from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound
from prefect.settings import get_current_settings

from flows import slots
from flows.__main__ import ROOT_SETTING
from flows.claim import claim
from flows.worker import lock_of

SERVER_SECONDS = 180.0
STOP_SECONDS = 60.0
LOG, SERVER_LOG = Path(".runs") / "worker.log", Path(".runs") / "server.log"
SERVER = Path(".runs") / f"server-{socket.gethostname()}.pid"


def start(root: Path, pool: str, joins: bool = False) -> int:
    """Start what does not run yet, and say how to go on; `joins`: in the pool of another clone, too.

    Raises:
        RuntimeError: a part that does not come up, with what it said; the pool is another clone's.
    """
    api = _api()
    if not _is_healthy(api):
        _start_server(root, api)
    if not _is_there(pool):  # else it stays as it was set: limit, pause, job template
        _prefect("work-pool", "create", pool, "--type", "process")
    claim(root, pool, joins)
    deployed = re.findall(r"Deployment '([^']+)' successfully", _prefect("deploy", "--all", "--no-prompt"))
    pid = _worker(lock_of(root, pool))
    if pid is None:
        _start_worker(root, pool, joins)
        devices = ", ".join(f"GPU {device}" for device in slots.gpus()) or "no GPU"
        print(f"{slots.number()} slots ({devices}); the worker's log: {LOG}")
    else:
        print(f"the worker (process {pid}) runs already, with the slots that it began with; its log: {LOG}")
    print(f"run:  prefect deployment run NAME, of {', '.join(deployed)}")
    print(f"look: {api.removesuffix('/api')}\nstop: make flows-stop")
    return 0


def stop(root: Path) -> int:
    """Stop this machine's workers, and the server if it was started here. What ran goes on after the next start."""
    for lock in sorted((root / ".runs").glob(lock_of(root, "*").name)):
        pid = _worker(lock)
        if pid is None:
            continue
        os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + STOP_SECONDS
        while _worker(lock) is not None:
            if time.monotonic() > deadline:
                raise RuntimeError(f"the worker (process {pid}) does not end")
            time.sleep(0.2)
    _stop_server(root)
    return 0


def _api() -> str:
    api = get_current_settings().api.url
    if not api:
        raise RuntimeError("no address of a server: [api] url in prefect.toml, or PREFECT_API_URL")
    return api


def _is_healthy(api: str) -> bool:
    with contextlib.suppress(httpx.HTTPError):
        return httpx.get(f"{api}/health", timeout=5).status_code == 200
    return False


def _is_there(pool: str) -> bool:
    with get_client(sync_client=True) as client, contextlib.suppress(ObjectNotFound):
        client.read_work_pool(pool)
        return True
    return False


def _start_server(root: Path, api: str) -> None:
    address = urlsplit(api)
    host, port = address.hostname or "", str(address.port or 80)
    if host != "localhost" and not _is_loopback(host):
        raise RuntimeError(f"{api} does not answer; a server on another machine is started there")
    # Not `--background`: that ties the server's output to a pipe whose other end is closed at once.
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", host, "--port", port]
    process = _detached(root, command, SERVER_LOG)
    (root / SERVER).write_text(f"{process.pid} {psutil.Process(process.pid).create_time()}\n")
    deadline = time.monotonic() + SERVER_SECONDS
    while not _is_healthy(api):
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"the server does not answer at {api}; see {root / SERVER_LOG}")
        time.sleep(0.5)


def _stop_server(root: Path) -> None:
    """End the server that was started here, if there is one; a process of another time with its number is not it."""
    with contextlib.suppress(FileNotFoundError, psutil.NoSuchProcess):
        pid, began = (root / SERVER).read_text().split()
        process = psutil.Process(int(pid))
        if process.create_time() == float(began):
            family = [process, *process.children(recursive=True)]
            process.terminate()
            for left in psutil.wait_procs(family, timeout=STOP_SECONDS)[1]:
                left.kill()
    (root / SERVER).unlink(missing_ok=True)


def _detached(root: Path, command: list[str], log: Path) -> subprocess.Popen[bytes]:
    """A process that outlives this one and its terminal."""
    (root / log).parent.mkdir(parents=True, exist_ok=True)
    with (root / log).open("a") as file:
        return subprocess.Popen(
            command, cwd=root, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True
        )


def _is_loopback(host: str) -> bool:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return False


def _start_worker(root: Path, pool: str, joins: bool) -> None:
    command = [sys.executable, "-m", "flows", "worker", "--pool", pool, *(["--join"] if joins else [])]
    process = _detached(root, command, LOG)
    deadline = time.monotonic() + STOP_SECONDS
    while _worker(lock_of(root, pool)) is None:
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"the worker did not start; see {root / LOG}")
        time.sleep(0.2)


def _worker(file: Path) -> int | None:
    """The process that keeps the worker of a lock, if there is one."""
    with contextlib.suppress(FileNotFoundError), file.open() as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            text = lock.read().strip()
            return int(text) if text else None
    return None


def _prefect(*command: str) -> str:
    """What a command of Prefect's says. It does not see ROOT_SETTING, which it would write into deployments."""
    words = [sys.executable, "-m", "prefect", *command]
    inherited = {name: value for name, value in os.environ.items() if name != ROOT_SETTING}
    done = subprocess.run(
        words, env=inherited, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    if done.returncode != 0:
        said = (done.stdout + done.stderr).strip()[-2000:]
        raise RuntimeError(f"prefect {shlex.join(command)} ended with {done.returncode}: {said}")
    return done.stdout.strip()

"""Prefect's server, the work pool, the deployments and a worker: started and stopped together."""

import contextlib
import fcntl
import ipaddress
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import httpx
from prefect.settings import get_current_settings

from flows import slots
from flows.worker import LOCK

SERVER_SECONDS = 180.0
STOP_SECONDS = 60.0
LOG = Path(".runs") / "worker.log"


def start(root: Path, pool: str) -> int:
    """Start what does not run yet, and say how to go on.

    Raises:
        RuntimeError: a part that does not come up, with what it said.
    """
    api = _api()
    if not _is_healthy(api):
        _start_server(api)
    _prefect("work-pool", "create", pool, "--type", "process", "--overwrite")
    deployed = re.findall(r"Deployment '([^']+)' successfully", _prefect("deploy", "--all", "--no-prompt"))
    if _worker(root) is None:
        _start_worker(root, pool)
    devices = ", ".join(f"GPU {device}" for device in slots.gpus()) or "no GPU"
    print(f"{slots.number()} slots ({devices}); the worker's log: {LOG}")
    print(f"run:  prefect deployment run NAME, of {', '.join(deployed)}")
    print(f"look: {api.removesuffix('/api')}\nstop: make flows-stop")
    return 0


def stop(root: Path) -> int:
    """Stop the worker, and the server if it was started here. What ran goes on after the next start."""
    pid = _worker(root)
    if pid is not None:
        os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + STOP_SECONDS
        while _worker(root) is not None:
            if time.monotonic() > deadline:
                raise RuntimeError(f"the worker (process {pid}) does not end")
            time.sleep(0.2)
    with contextlib.suppress(RuntimeError):  # none that was started here
        _prefect("server", "stop")
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


def _start_server(api: str) -> None:
    address = urlsplit(api)
    host, port = address.hostname or "", str(address.port or 80)
    if host != "localhost" and not _is_loopback(host):
        raise RuntimeError(f"{api} does not answer; a server on another machine is started there")
    _prefect("server", "start", "--background", "--host", host, "--port", port)
    deadline = time.monotonic() + SERVER_SECONDS
    while not _is_healthy(api):
        if time.monotonic() > deadline:
            raise RuntimeError(f"the server does not answer at {api} after {SERVER_SECONDS:g} s")
        time.sleep(0.5)


def _is_loopback(host: str) -> bool:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return False


def _start_worker(root: Path, pool: str) -> None:
    (root / LOG).parent.mkdir(parents=True, exist_ok=True)
    with (root / LOG).open("a") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "flows", "worker", "--pool", pool],
            cwd=root, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    deadline = time.monotonic() + STOP_SECONDS
    while _worker(root) is None:
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"the worker did not start; see {root / LOG}")
        time.sleep(0.2)


def _worker(root: Path) -> int | None:
    """The process that keeps this project's worker, if there is one."""
    with contextlib.suppress(FileNotFoundError), (root / LOCK).open() as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            text = lock.read().strip()
            return int(text) if text else None
    return None


def _prefect(*command: str) -> str:
    words = [sys.executable, "-m", "prefect", *command]
    done = subprocess.run(words, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        said = (done.stdout + done.stderr).strip()[-2000:]
        raise RuntimeError(f"prefect {shlex.join(command)} ended with {done.returncode}: {said}")
    return done.stdout.strip()

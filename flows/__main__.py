"""`python -m flows start | stop`: Prefect's server, work pool, deployments and worker for this project."""

import argparse
import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

try:
    import httpx
    import psutil
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolUpdate
    from prefect.client.schemas.filters import FlowRunFilter
    from prefect.exceptions import ObjectNotFound
    from prefect.settings import get_current_settings
    from prefect.states import AwaitingRetry
except ImportError as error:
    sys.exit(f"flows: {error}; `make setup` or pip install 'steermoe[flows]'")

from flows import slots

POOL, ROOT_SETTING = (
    "steermoe",
    "STEERMOE_ROOT",
)  # of prefect.yaml: work pool, and the folder in which flows run
RUNS = Path(".runs")
PATIENCE_SECONDS = 180.0


def start(joins: bool) -> None:
    """Start what does not run yet, and print how to go on; `joins`: share the work pool of another folder."""
    api = get_current_settings().api.url or ""
    if not _is_healthy(api):
        address = urlsplit(api)
        if address.hostname not in ("localhost", "127.0.0.1", "::1"):
            raise RuntimeError(
                f"no server answers at {api!r} ([api] url in prefect.toml, or PREFECT_API_URL)"
            )
        process = _launch(
            "server", "server", "start", "--host", address.hostname, "--port", str(address.port or 80)
        )
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not _is_healthy(api):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the server does not answer at {api}; see {RUNS / 'server.log'}")
            time.sleep(0.5)
    _own_pool(joins)
    deployed = re.findall(r"Deployment '([^']+)' successfully", _prefect("deploy", "--all", "--no-prompt"))
    if _launched("worker") is None:
        _launch("worker", "worker", "start", "--pool", POOL)
    print(f"{slots.count()} slots, GPUs {slots.gpus()}; the worker's log: {RUNS / 'worker.log'}")
    print(f"run:  prefect deployment run NAME, of {', '.join(deployed)}")
    print(f"look: {api.removesuffix('/api')}\nstop: make flows-stop")


def stop() -> None:
    """Stop this machine's worker, and the server if it was started here; what runs goes on after the next start."""
    if worker := _launched("worker"):
        running = FlowRunFilter.model_validate({"state": {"type": {"any_": ["RUNNING"]}}})
        with get_client(sync_client=True) as client:
            ours = {str(child.pid) for child in worker.children(recursive=True)}
            runs = [
                run
                for run in client.read_flow_runs(flow_run_filter=running)
                if run.infrastructure_pid in ours
            ]
            _end(worker)
            for run in runs:
                client.set_flow_run_state(run.id, AwaitingRetry(message="flows were stopped"), force=True)
    if server := _launched("server"):
        _end(server)


def _is_healthy(api: str) -> bool:
    try:
        return httpx.get(f"{api}/health", timeout=5).status_code == 200
    except (httpx.HTTPError, httpx.UnsupportedProtocol):
        return False


def _own_pool(joins: bool) -> None:
    """Make the work pool, or make sure that it is not another folder's: each worker would take the other's runs."""
    ours = f"[project in {Path.cwd()}]"
    with get_client(sync_client=True) as client:
        try:
            description = client.read_work_pool(POOL).description or ""
        except ObjectNotFound:
            _prefect("work-pool", "create", POOL, "--type", "process")
            description = ""
        if "[project in " not in description:
            client.update_work_pool(POOL, WorkPoolUpdate(description=f"{description} {ours}".strip()))
        elif ours not in description and not joins:
            raise RuntimeError(
                f"work pool {POOL} of {client.api_url} belongs to another folder, {description}: join it (same "
                "code: make flows JOIN=1), or use a server and a database of your own (PREFECT_HOME=~/.prefect-2 "
                "PREFECT_API_URL=http://127.0.0.1:4201/api make flows), or delete it, if that folder is gone (prefect "
                f"work-pool delete {POOL})"
            )


def _prefect(*command: str) -> str:
    """Run a command of Prefect's, without ROOT_SETTING, which would be written into deployments."""
    inherited = {name: value for name, value in os.environ.items() if name != ROOT_SETTING}
    words = [sys.executable, "-m", "prefect", *command]
    done = subprocess.run(words, env=inherited, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        tail = (done.stdout + done.stderr).strip()[-2000:]
        raise RuntimeError(f"prefect {' '.join(command)} ended with {done.returncode}: {tail}")
    return done.stdout


def _note(name: str) -> Path:
    """Return the file that names the process of the server or the worker on this machine."""
    return RUNS / f"{name}-{socket.gethostname()}.json"


def _launch(name: str, *command: str) -> subprocess.Popen[bytes]:
    """Start a command of Prefect's in the background."""
    RUNS.mkdir(exist_ok=True)
    with (RUNS / f"{name}.log").open("a") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "prefect", *command], env=os.environ | {ROOT_SETTING: str(Path.cwd())},
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    _note(name).write_text(json.dumps([process.pid, psutil.Process(process.pid).create_time()]))
    return process


def _launched(name: str) -> psutil.Process | None:
    """Return the process that `_launch` started, or None if it has ended."""
    try:
        pid, began = json.loads(_note(name).read_text())
        process = psutil.Process(pid)
    except (FileNotFoundError, psutil.NoSuchProcess):
        return None
    return process if process.create_time() == began else None


def _end(process: psutil.Process) -> None:
    family = [*process.children(recursive=True), process]
    process.terminate()
    for left in psutil.wait_procs(family, timeout=PATIENCE_SECONDS)[1]:
        left.kill()


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m flows", description=__doc__)
    actions = parser.add_subparsers(dest="action", required=True)
    join = actions.add_parser("start", help="start what does not run yet")
    join.add_argument("--join", action="store_true", help="share the work pool of another folder")
    actions.add_parser("stop", help="stop worker and server; what runs goes on after the next start")
    given = parser.parse_args()
    try:
        start(given.join) if given.action == "start" else stop()
    except (RuntimeError, OSError) as error:
        print(f"flows {given.action}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

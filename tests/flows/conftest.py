"""A Prefect server and a worker, started as a user starts them, for a small project of waiting stages."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

ROOT = Path(__file__).parents[2]
TOY = Path(__file__).parent / "toy"
PATIENCE = 400.0  # seconds until something must have happened; a loaded machine is slow


def until(happened: Callable[[], Any], what: str, seconds: float = PATIENCE) -> Any:
    """What `happened` returns as soon as it is true."""
    deadline = time.monotonic() + seconds
    while not (found := happened()):
        assert time.monotonic() < deadline, f"{what}: not within {seconds:g} s"
        time.sleep(0.1)
    return found


class Project:
    """A project with its own Prefect: what `make flows` makes of a folder."""

    def __init__(self, root: Path, home: Path) -> None:
        self.root = root
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.api = f"http://127.0.0.1:{free.getsockname()[1]}/api"
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("DVC_", "GIT_", "PREFECT_"))}
        self.environment = inherited | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{inherited['PATH']}",
            "PREFECT_HOME": str(home),
            "PREFECT_API_URL": self.api,
            "STEERMOE_SLOTS": "2",
            "CUDA_VISIBLE_DEVICES": "4,7",  # nothing here opens them
            "OMP_NUM_THREADS": "1",
            # As with an editable install: the library, and this repository's own pipeline, which the clone's replaces.
            "PYTHONPATH": str(ROOT),
        }

    def shell(self, *command: str, code: int | None = 0) -> str:
        done = subprocess.run(
            command, cwd=self.root, env=self.environment, text=True, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=2 * PATIENCE,
        )  # fmt: skip
        assert code in (None, done.returncode), (
            f"{command}:\n{done.stdout[-6000:]}\n{self.worker_log()[-6000:]}"
        )
        return done.stdout

    def worker_log(self) -> str:
        log = self.root / ".runs" / "worker.log"
        return log.read_text() if log.exists() else ""

    def ask(self, method: str, path: str, **body: Any) -> Any:
        """What the pages of Prefect's UI ask the server."""
        # A busy database is answered with 503, which Prefect's own clients repeat, too.
        for _ in range(10):
            answer = httpx.request(method, f"{self.api}/{path}", json=body or None, timeout=60)
            if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE:
                break
            time.sleep(float(answer.headers.get("Retry-After", 1)))
        answer.raise_for_status()
        return answer.json() if answer.content else None

    def run(self, deployment: str, **parameters: Any) -> str:
        """Start a run of a deployment: its id."""
        found = self.ask("GET", f"deployments/name/{deployment}")
        return self.ask("POST", f"deployments/{found['id']}/create_flow_run", parameters=parameters)["id"]

    def state(self, run: str) -> str:
        return self.ask("GET", f"flow_runs/{run}")["state"]["type"]

    def ended(self, run: str, seconds: float = PATIENCE) -> str:
        """The state in which a run ends."""
        final = ("COMPLETED", "FAILED", "CANCELLED", "CRASHED")
        state = until(lambda: (now := self.state(run)) in final and now, f"end of {run}", seconds)
        return str(state)

    def logs(self, run: str) -> list[str]:
        chosen = {"logs": {"flow_run_id": {"any_": [run]}}, "sort": "TIMESTAMP_ASC", "limit": 200}
        return [row["message"] for row in self.ask("POST", "logs/filter", **chosen)]

    def artifacts(self, run: str) -> list[dict[str, Any]]:
        return self.ask("POST", "artifacts/filter", artifacts={"flow_run_id": {"any_": [run]}})

    def experiment(self, name: str) -> str:
        """The ref of an experiment."""
        refs = self.shell("git", "for-each-ref", "--format=%(refname)", "refs/exps").splitlines()
        (ref,) = (ref for ref in refs if ref.endswith(f"/{name}"))
        return ref

    def trace(self, variant: str) -> list[dict[str, Any]]:
        """The trainings of a variant that began, in order."""
        files = sorted((self.root / ".runs" / "trace").glob(f"{variant}-*.json"))
        return [json.loads(file.read_text()) for file in files]

    def trainer(self, variant: str, begun: int = 1) -> list[psutil.Process]:
        """The trainer of a variant that has begun so many times, and its rank."""
        last = until(
            lambda: len(self.trace(variant)) >= begun and self.trace(variant)[-1], f"training of {variant}"
        )
        return [psutil.Process(last[name]) for name in ("pid", "rank")]

    def processes(self) -> list[psutil.Process]:
        """All that runs for this project."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                is_ours = process.environ().get("PREFECT_HOME") == self.environment["PREFECT_HOME"]
                if is_ours and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found


def are_gone(processes: list[psutil.Process]) -> bool:
    """Whether none of them lives."""
    return not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in processes)


@pytest.fixture(scope="session")
def toy(
    tmp_path_factory: pytest.TempPathFactory, begin_repository: Callable[[Callable[..., Any]], None]
) -> Iterator[Project]:
    """The small pipeline of tests/flows/toy, in a git and DVC repository with a Prefect of its own."""
    root = tmp_path_factory.mktemp("toy")
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(TOY, root, dirs_exist_ok=True, ignore=ignored)
    shutil.copytree(ROOT / "flows", root / "flows", ignore=ignored)
    for file in ("prefect.toml", "prefect.yaml"):
        shutil.copy(ROOT / file, root)
    (root / "base").mkdir()  # another pipeline, which nobody runs
    (root / "base" / "dvc.yaml").write_text("stages: {make: {cmd: 'false', outs: [made]}}\n")
    (root / ".dvcignore").write_text("__pycache__\n/.runs\n")
    (root / ".gitignore").write_text("__pycache__/\n/.runs/\n/data/\n/models/\n/reports/\n")
    project = Project(root, tmp_path_factory.mktemp("home"))
    begin_repository(project.shell)
    try:
        project.shell("python", "-m", "flows", "start")
        yield project
        project.shell("python", "-m", "flows", "stop")
        assert not project.processes(), "left by `flows stop`"
    finally:
        for process in project.processes():
            process.kill()

"""A real MLflow server that is killed, comes back, or hangs: training goes on and loses no point."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest
import requests

from steermoe.training.mlflow_logger import Tracker
from steermoe.training.mlflow_store import UNSENT, open_store
from steermoe.training.train import train

Serve = Callable[[], subprocess.Popen]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def lost_quickly(monkeypatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "3")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    for variable in ("DVC_EXP_NAME", "STEERMOE_EXECUTION"):
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture
def serve(fresh_store, tmp_path, monkeypatch, lost_quickly) -> Iterator[Serve]:
    """Starts the server on one port and one store, as often as one likes."""
    folder, port = tmp_path / "server", free_port()
    folder.mkdir()
    shutil.copy(fresh_store / "mlflow.db", folder)
    address = f"http://127.0.0.1:{port}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    command = [
        sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
        "--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}",
        "--artifacts-destination", str(folder / "artifacts"),
    ]  # fmt: skip
    settings = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    started: list[subprocess.Popen] = []

    def start() -> subprocess.Popen:
        with (folder / "log").open("a") as log:
            process = subprocess.Popen(
                command, cwd=folder, env=os.environ | settings, stdout=log, stderr=log, start_new_session=True
            )
        started.append(process)
        until = time.monotonic() + 300
        while True:
            try:
                requests.get(f"{address}/health", timeout=1).raise_for_status()
                return process
            except requests.RequestException:
                assert time.monotonic() < until and process.poll() is None, (folder / "log").read_text()
                time.sleep(0.2)

    yield start
    for process in started:
        kill(process)


def kill(process: subprocess.Popen) -> None:
    """The server and its worker, without notice."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, 9)
    process.wait()


class Saboteur(Tracker):
    """A tracker to which something happens before it logs a step."""

    what: dict[int, Callable[[], object]]

    def log(self, metrics, step=0):
        self.what.pop(step, lambda: None)()
        super().log(metrics, step)


def test_a_server_that_dies_within_a_training_gets_everything_at_its_end(
    serve, shards, quick_variant, tmp_path, capsys
):
    server = serve()
    restarted: list[subprocess.Popen] = []
    tracker = Saboteur("mini", tmp_path)
    tracker.what = {4: lambda: kill(server), 6: lambda: restarted.append(serve())}
    results = train(quick_variant("steering"), shards, tmp_path / "out", tmp_path, tracker=tracker)
    assert not tracker.what and restarted
    assert results["steps"] == 6

    printed = capsys.readouterr().err
    assert "refuses" not in printed, printed
    assert printed.count("cannot be reached") == 1 and printed.count("can be reached again") == 1
    client = open_store(tmp_path)
    experiment = client.get_experiment_by_name("steermoe/mini")
    assert experiment is not None and experiment.artifact_location.startswith("mlflow-artifacts:")
    [run] = client.search_runs([experiment.experiment_id], "tags.`steermoe.kind` = 'variant'")
    assert run.info.status == "FINISHED"
    assert [point.step for point in client.get_metric_history(run.info.run_id, "dev/loss")] == [2, 4, 6]
    assert not list((tmp_path / UNSENT).glob("*.jsonl"))

    evaluation = Tracker("mini", tmp_path)  # the adapter goes through the server, too, at the latest now
    evaluation.attach(quick_variant("steering"), tmp_path / "out")
    evaluation.finish()
    model = client.get_logged_model(client.get_run(run.info.run_id).data.tags["steermoe.logged_model"])
    assert model.status == "READY"


def test_a_server_that_does_not_answer_keeps_no_stage_waiting(
    quick_variant, tmp_path, monkeypatch, lost_quickly
):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(64)  # takes connections, and never answers
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{silent.getsockname()[1]}")
        tracker = Tracker("mini", tmp_path)
        began = time.monotonic()
        tracker.start(quick_variant("linear"), "f", "data")
        for step in range(200):
            tracker.log({"x": 1.0}, step=step)
        assert time.monotonic() - began < 60  # 3 s for the first request, not for each
        tracker.finish()
    [kept] = (tmp_path / UNSENT).glob("*.jsonl")
    assert len(kept.read_text().splitlines()) == 203

"""A real MLflow server that is killed, comes back, or hangs: training goes on, and nothing that it logged is lost."""

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
from steermoe.training.callbacks import Tracking

from steermoe.training import sender
from steermoe.training.store import open_store
from steermoe.training.tracking import JOURNALS, Tracker
from steermoe.training.train import train

Serve = Callable[[], subprocess.Popen]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def lost_quickly(monkeypatch) -> None:
    monkeypatch.setattr(sender, "PAUSE", 0.5)
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


class Saboteur(Tracking):
    """Tracking, but something happens at a step."""

    def __init__(self, tracker: Tracker, what: dict[int, Callable[[], object]]) -> None:
        super().__init__(tracker)
        self.what = what

    def on_step_begin(self, args, state, *rest, **kwargs):
        self.what.pop(state.global_step, lambda: None)()
        super().on_step_begin(args, state, *rest, **kwargs)


def test_a_server_that_dies_and_comes_back_within_a_training_gets_everything(
    serve, shards, quick_variant, tmp_path, monkeypatch, capsys
):
    server = serve()
    restarted: list[subprocess.Popen] = []
    what: dict[int, Callable[[], object]] = {2: lambda: kill(server), 5: lambda: restarted.append(serve())}
    monkeypatch.setattr("steermoe.training.train.Tracking", lambda tracker: Saboteur(tracker, what))
    results = train(
        quick_variant("steering"), shards, tmp_path / "out", tmp_path, tracker=Tracker("mini", tmp_path)
    )
    assert not what and restarted
    assert results["steps"] == 6

    told = capsys.readouterr().out
    assert "refused" not in told, told
    assert told.count("cannot be reached") == 1 and told.count("answers again") == 1
    client = open_store(tmp_path)
    experiment = client.get_experiment_by_name("steermoe/mini")
    assert experiment is not None and experiment.artifact_location.startswith("mlflow-artifacts:")
    [run] = client.search_runs([experiment.experiment_id], "tags.`steermoe.kind` = 'variant'")
    assert run.info.status == "FINISHED"
    assert [point.step for point in client.get_metric_history(run.info.run_id, "dev/loss")] == [2, 4, 6]
    # The adapter went through the server, too.
    model = client.get_logged_model(run.data.tags["steermoe.logged_model"])
    assert model.status == "READY"
    assert [path.name for path in (tmp_path / JOURNALS).iterdir()] == ["workspace"]


def test_a_server_that_is_away_to_the_end_gets_everything_from_the_next_stage(
    serve, shards, quick_variant, tmp_path, capsys
):
    variant = quick_variant("linear")
    tracker = Tracker("mini", tmp_path)
    train(variant, shards, tmp_path / "out", tmp_path, tracker=tracker)
    assert tracker.run_id is None
    assert "to be sent by the next stage" in capsys.readouterr().out

    serve()
    evaluation = Tracker("mini", tmp_path)
    evaluation.attach(variant, tmp_path / "out")
    evaluation.log({"eval/tones/dev/wer": 0.5})
    evaluation.finish()
    client = open_store(tmp_path)
    run = client.get_run(str(evaluation.run_id))
    assert [point.step for point in client.get_metric_history(run.info.run_id, "dev/loss")] == [2, 4, 6]
    assert run.data.metrics["eval/tones/dev/wer"] == 0.5
    assert run.info.status == "FINISHED"


def test_a_server_that_hangs_keeps_no_stage_waiting(
    shards, quick_variant, tmp_path, monkeypatch, lost_quickly
):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(64)  # takes connections, and never says a word
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setattr(sender, "PATIENCE", 5.0)
        tracker = Tracker("mini", tmp_path)
        began = time.monotonic()
        tracker.start(quick_variant("linear"), "f", "data")
        for step in range(200):
            tracker.log({"x": 1.0}, step=step)
        assert time.monotonic() - began < 200 * 5  # no step waited its PATIENCE for the server
        tracker.finish()
    [journal] = [path for path in (tmp_path / JOURNALS).iterdir() if path.is_dir()]
    assert len((journal / "entries.jsonl").read_text().splitlines()) >= 202

"""What DVC offers beside flows, on the small pipeline: a queue whose experiments resume, a shared remote."""

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.flows.conftest import PATIENCE, TOY, Project, are_gone, until

pytestmark = pytest.mark.slow
STEP = ".runs/*/scratch/step"  # of every training that is under way


@pytest.fixture
def plain(tmp_path: Path, begin_repository: Callable[[Callable[..., Any]], None]) -> Iterator[Project]:
    """The small pipeline without Prefect; whatever works in it at the end is killed."""
    root = tmp_path / "toy"
    shutil.copytree(TOY, root, ignore=shutil.ignore_patterns("__pycache__"))
    (root / ".dvcignore").write_text("__pycache__\n/.runs\n")
    (root / ".gitignore").write_text("__pycache__/\n/.runs/\n/data/\n/models/\n/reports/\n")
    project = Project(root, tmp_path / "home")
    (root / ".runs").mkdir()
    begin_repository(project.shell)
    yield project
    for process in project.processes():
        process.kill()


def test_remote_spares_a_clone_all_work(plain: Project, tmp_path: Path) -> None:
    plain.shell("dvc", "remote", "add", "--default", "shared", str(tmp_path / "remote"))
    plain.shell("dvc", "repro")
    plain.shell("dvc", "push")
    plain.shell("git", "add", "dvc.lock", ".dvc/config")
    plain.shell("git", "commit", "-qm", "trained")
    clone = Project(tmp_path / "clone", tmp_path / "home")
    subprocess.run(["git", "clone", "-q", str(plain.root), str(clone.root)], check=True)
    (clone.root / ".runs").mkdir()
    clone.shell("dvc", "pull")
    assert "Running stage" not in clone.shell("dvc", "repro")
    trained = Path("models") / "small" / "a" / "weights"
    assert (clone.root / trained).read_bytes() == (plain.root / trained).read_bytes()


def test_queued_experiment_resumes(plain: Project) -> None:
    """Killed in the queue and queued again, a training goes on where it was: `.runs` outlives the task."""
    options = ["-S", "compare=[medium]", "-S", "variants.medium.steps=60", "train@small-medium"]
    plain.shell("dvc", "exp", "run", "--queue", "--name", "first", *options)
    start = subprocess.Popen(["dvc", "queue", "start"], cwd=plain.root, env=plain.environment)
    trainer = plain.trainer("medium")
    until(lambda: any(int(file.read_text()) >= 2 for file in plain.root.glob(STEP)), "some steps")
    os.kill(trainer[0].pid, signal.SIGKILL)
    trainer[1].kill()
    until(lambda: are_gone(trainer), "end of the trainer")
    assert start.wait(timeout=PATIENCE) == 0
    until(lambda: "Failed" in plain.shell("dvc", "queue", "status"), "a failed task")
    plain.shell("dvc", "exp", "run", "--queue", "--name", "second", *options)
    plain.shell("dvc", "queue", "start")
    until(lambda: "second" in plain.shell("dvc", "exp", "list", "--name-only"), "the experiment")
    began = plain.trace("medium")
    assert [line["experiment"] for line in began] == ["first", "second"]
    assert began[0]["step"] == 0 < began[1]["step"]
    plain.shell("dvc", "queue", "stop")
    until(lambda: not [p for p in plain.processes() if is_worker(p)], "end of the queue's worker")


def test_two_queued_experiments_train_the_same_variant(plain: Project) -> None:
    """At once: the second waits for the first, and both end with the same weights."""
    for name, beams in (("first", 2), ("second", 4)):
        options = ["-S", "compare=[medium]", "-S", f"generation.num_beams={beams}", "eval"]
        plain.shell("dvc", "exp", "run", "--queue", "--name", name, *options)
    plain.shell("dvc", "queue", "start", "-j", "2")
    listed = {"first", "second"}
    until(
        lambda: (
            "Failed" in plain.shell("dvc", "queue", "status")
            or listed <= set(plain.shell("dvc", "exp", "list", "--name-only").split())
        ),
        "the experiments",
    )
    logs = [plain.shell("dvc", "queue", "logs", name, code=None) for name in sorted(listed)]
    assert "Failed" not in plain.shell("dvc", "queue", "status"), logs
    began, ended = plain.trace("medium"), plain.trace("medium", "end")
    assert sum("Waiting for process" in log for log in logs) == 1, logs
    assert len(began) == len(ended) == 2 and ended[0]["time"] < began[1]["time"]
    assert plain.trained("first", "medium") == plain.trained("second", "medium")
    plain.shell("dvc", "queue", "stop")
    until(lambda: not [p for p in plain.processes() if is_worker(p)], "end of the queue's worker")


def is_worker(process: psutil.Process) -> bool:
    try:
        return "celery" in " ".join(process.cmdline()) or "dvc" in process.name()
    except psutil.Error:
        return False

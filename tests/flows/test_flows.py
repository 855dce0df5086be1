"""Flows on a real server with a real worker: parallel variants, faults, and what one sees of them."""

import subprocess
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.flows.conftest import Project, are_gone, until

pytestmark = pytest.mark.slow
PARAMETERS = {"profile": "small"}


def name_of(toy: Project, run: str) -> str:
    return toy.ask("GET", f"flow_runs/{run}")["name"]


def message_of(toy: Project, run: str) -> str:
    return toy.ask("GET", f"flow_runs/{run}")["state"]["message"]


def test_variants_in_parallel(toy: Project) -> None:
    """Two slots, variants with names of a run's own parts, one of them preempted; the user's files stay."""
    edited = toy.root / "pipeline.py"
    edited.write_text(edited.read_text() + "# not committed\n")
    (toy.root / "notes.txt").write_text("not in git\n")
    before = toy.shell("git", "status", "--porcelain")
    variants = ["a", "preempted", "data", "baselines"]
    run = toy.run("ablations/mini", variants=variants, **PARAMETERS)
    until(lambda: any("step 2/6" in line for line in toy.logs(run)), "a line of a stage in Prefect")
    assert toy.state(run) == "RUNNING"  # the line came while it ran
    assert toy.ended(run) == "COMPLETED", toy.worker_log()[-3000:]
    name = name_of(toy, run)

    began = {variant: toy.trace(variant) for variant in variants}
    assert [line["step"] for line in began["preempted"]] == [0, 2]  # it resumed where it was
    assert [len(lines) for lines in began.values()] == [1, 2, 1, 1]
    assert {line["gpu"] for lines in began.values() for line in lines} == {"4", "7"}
    for variant, (first, *_) in began.items():
        # The code of the experiment, not what PYTHONPATH finds, and with the edit.
        assert Path(first["code"]).parent == toy.root / ".runs" / "checkouts" / f"{name}-{variant}"
        assert first["experiment"] == f"{name}-{variant}"

    listed = toy.shell("dvc", "exp", "list", "--name-only").split()
    assert set(listed) == {name, *(f"{name}-{variant}" for variant in began)}
    assert toy.shell("git", "show", f"{toy.experiment(name)}:pipeline.py").endswith("# not committed\n")
    compared = toy.shell("git", "show", f"{toy.experiment(name)}:params.yaml")
    assert (
        "compare:\n- a\n- preempted\n- data\n- baselines\n" in compared
        and "# a comment that stays" in compared
    )
    assert toy.shell("git", "status", "--porcelain") == before
    assert any("notes.txt" in line and "git add" in line for line in toy.logs(run))
    assert list((toy.root / ".runs" / "checkouts").iterdir()) == []

    found = {artifact["key"]: artifact for artifact in toy.artifacts(run)}
    assert "| variant |" in found["comparison"]["data"] and "p.png)" not in found["comparison"]["data"]
    assert found["expert-use"]["data"].startswith("data:image/png;base64,")
    progress = [a["data"] for a in toy.artifacts(run) if a["type"] == "progress"]
    assert progress and max(progress) == 100.0

    output = toy.shell("dvc", "repro", "train@small-a")  # what was trained is there
    assert "Running stage 'train@" not in output and "is cached" in output
    edited.write_text(edited.read_text().removesuffix("# not committed\n"))
    (toy.root / "notes.txt").unlink()


def test_failing_variant_fails_the_command(toy: Project) -> None:
    """`--watch` tells a script; the other variant is finished and listed."""
    output = toy.shell(
        "prefect", "deployment", "run", "ablations/mini", "-p", "profile=small", "-p", 'variants=["failing", "b"]',
        "-p", "retries=1", "--watch", code=1,
    )  # fmt: skip
    assert "Failed" in output
    assert len(toy.trace("failing")) == 2  # tried, and tried again
    assert any(name.endswith("-b") for name in toy.shell("dvc", "exp", "list", "--name-only").split())


def test_cancel_and_time_limit_end_everything(toy: Project) -> None:
    """Trainers and their ranks are gone, slots are free, and a later run resumes."""
    first = toy.run("ablations/mini", variants=["long"], **PARAMETERS)
    second = toy.run("experiment/mini", settings=["compare=[longer]", "reference=longer"], **PARAMETERS)
    trainers = [*toy.trainer("long"), *toy.trainer("longer")]
    for run in (first, second):
        until(lambda run=run: any("step 2/" in line for line in toy.logs(run)), "some steps")
        toy.ask("POST", f"flow_runs/{run}/set_state", state={"type": "CANCELLING"})
    until(lambda: are_gone(trainers), "end of the trainers and their ranks", 100)
    assert [toy.ended(run) for run in (first, second)] == ["CANCELLED", "CANCELLED"]

    limited = toy.run("ablations/mini", variants=["long"], slots_each=2, hours=15 / 3600, **PARAMETERS)
    assert toy.ended(limited) == "FAILED" and "took longer than" in message_of(toy, limited)
    again = toy.trace("long")[1:]
    assert len(again) <= 1  # not tried again; a loaded machine may not even begin in time
    for training in again:
        assert training["step"] >= 2 and training["gpu"] == "4,7"
        until(lambda pids=(training["pid"], training["rank"]): not any(map(is_alive, pids)), "its end", 100)


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that has ended may wait for its parent."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_experiment_and_evaluation_with_settings(toy: Project) -> None:
    wrong = [
        (toy.run("evaluate/mini", settings=["variants.a.steps=3"], **PARAMETERS), "generation."),
        (toy.run("experiment/mini", settings=["nothing=3"], **PARAMETERS), "nothing"),
        (toy.run("ablations/mini", variants=["nobody"], **PARAMETERS), "nobody"),
    ]
    settings = ["compare=[b]", "reference=b", "generation.num_beams=2"]
    run = toy.run("experiment/mini", settings=settings, **PARAMETERS)
    assert toy.ended(run) == "COMPLETED"
    params = toy.shell("git", "show", f"{toy.experiment(name_of(toy, run))}:params.yaml")
    assert "num_beams: 2" in params and "reference: b" in params
    trained = len(toy.trace("b"))
    run = toy.run("evaluate/mini", settings=["generation.num_beams=4"], variants=["b"], **PARAMETERS)
    assert toy.ended(run) == "COMPLETED"
    assert len(toy.trace("b")) == trained  # scored anew, not trained
    for run, text in wrong:
        assert toy.ended(run) == "FAILED" and text in message_of(toy, run)


def test_what_is_stopped_goes_on(toy: Project) -> None:
    """`flows stop` ends a run's processes; after the next `flows start` the same run resumes."""
    run = toy.run("ablations/mini", variants=["longer"], **PARAMETERS)
    trainer = toy.trainer("longer", 2)
    toy.shell("python", "-m", "flows", "stop")
    assert are_gone(trainer) and not toy.processes()
    toy.shell("python", "-m", "flows", "start")
    trainer = toy.trainer("longer", 3)
    assert toy.trace("longer")[-1]["step"] > 0
    toy.ask("POST", f"flow_runs/{run}/set_state", state={"type": "CANCELLING"})
    assert toy.ended(run) == "CANCELLED" and are_gone(trainer)


def test_starting_again_changes_no_pool_and_takes_no_other_folders(toy: Project, tmp_path: Path) -> None:
    pool = "work_pools/steermoe"
    described = {"description": f"of the lab {toy.ask('GET', pool)['description']}"}
    toy.ask("PATCH", pool, concurrency_limit=3, is_paused=True, **described)
    toy.shell("python", "-m", "flows", "start")
    found = toy.ask("GET", pool)
    toy.ask("PATCH", pool, concurrency_limit=None, is_paused=False)
    assert (found["concurrency_limit"], found["is_paused"]) == (3, True)
    assert found["description"] == described["description"]
    toy.shell("git", "clone", "--quiet", str(toy.root), str(tmp_path / "clone"))
    words = ["python", "-m", "flows", "start"]
    options: Any = {"cwd": tmp_path / "clone", "env": toy.environment, "capture_output": True, "text": True}
    refused = subprocess.run(words, **options)
    assert refused.returncode == 1
    assert f"belongs to another folder, of the lab [project in {toy.root}]" in refused.stderr


def test_server_keeps_to_itself(toy: Project) -> None:
    settings = toy.shell("prefect", "config", "view", "--show-defaults")
    assert "PREFECT_SERVER_ANALYTICS_ENABLED='False'" in settings.replace("false", "False")
    for process in toy.processes():
        for connection in process.net_connections():
            assert connection.laddr.ip.startswith(("127.", "::1")) or connection.status != "LISTEN"

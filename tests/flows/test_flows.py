"""Flows on a real server with a real worker: parallel variants, faults, and what one sees of them."""

import copy
import dataclasses
import fcntl
import os
import signal
import time
from pathlib import Path

import pytest

from flows import lifetime
from tests.flows.conftest import Project, are_gone, until

pytestmark = pytest.mark.slow
PARAMETERS = {"profile": "small"}


def test_variants_in_parallel(toy: Project) -> None:
    """Two slots, three variants, one of which is preempted; the user's files stay as they are."""
    edited = toy.root / "toy.py"
    edited.write_text(edited.read_text() + "# not committed\n")
    (toy.root / "notes.txt").write_text("not in git\n")
    before = toy.shell("git", "status", "--porcelain")
    run = toy.run("ablations/mini", variants=["a", "b", "preempted"], **PARAMETERS)
    until(lambda: any("step 2/6" in line for line in toy.logs(run)), "a line of a stage in Prefect")
    assert toy.state(run) == "RUNNING"  # the line came while it ran
    assert toy.ended(run) == "COMPLETED"
    name = toy.ask("GET", f"flow_runs/{run}")["name"]

    began = {variant: toy.trace(variant) for variant in ("a", "b", "preempted")}
    assert [line["step"] for line in began["preempted"]] == [0, 2]  # it went on where it was
    assert len(began["a"]) == len(began["b"]) == 1
    everything = sorted(
        (line["time"], line["kind"], line.get("gpu"))
        for variant in began
        for line in toy.trace(variant) + toy.trace(variant, "end")
    )
    at_once = 0
    for _, kind, _ in everything:
        at_once += 1 if kind == "begin" else -1
        assert at_once <= 2
    assert {line["gpu"] for variant in began.values() for line in variant} <= {"4", "7"}
    overlapping = [b for b in began["b"] if b["time"] < toy.trace("a", "end")[0]["time"]]
    assert all(b["gpu"] != began["a"][0]["gpu"] for b in overlapping)
    for variant, (first, *_) in began.items():
        # The code of the experiment, not what PYTHONPATH finds, and with the edit.
        assert Path(first["code"]).parent == toy.root / ".runs" / "checkouts" / f"{name}-{variant}"
        assert first["experiment"] == f"{name}-{variant}"

    listed = toy.shell("dvc", "exp", "list", "--name-only").split()
    assert {name, *(f"{name}-{variant}" for variant in began)} <= set(listed)
    assert toy.shell("git", "show", f"{toy.experiment(name)}:toy.py").endswith("# not committed\n")
    assert toy.shell("git", "status", "--porcelain") == before
    assert any("notes.txt" in line and "git add" in line for line in toy.logs(run))
    assert list((toy.root / ".runs" / "checkouts").iterdir()) == []
    assert "refs/flows" not in toy.shell("git", "for-each-ref")

    found = {artifact["key"]: artifact for artifact in toy.artifacts(run)}
    assert "| variant |" in found["comparison"]["data"] and "p.png)\n" not in found["comparison"]["data"]
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
        "prefect", "deployment", "run", "ablations/mini", "-p", "profile=small", "-p", 'variants=["failing", "c"]',
        "-p", "retries=1", "--watch", code=1,
    )  # fmt: skip
    assert "Failed" in output
    assert len(toy.trace("failing")) == 2  # tried, and tried again
    assert any(name.endswith("-c") for name in toy.shell("dvc", "exp", "list", "--name-only").split())


def test_two_runs_train_the_same_variant(toy: Project) -> None:
    """At once: one waits for the other, then takes from DVC's cache what that has trained."""
    runs = [toy.run("ablations/mini", variants=["shared"], retries=1, **PARAMETERS) for _ in range(2)]
    assert [toy.ended(run) for run in runs] == ["COMPLETED", "COMPLETED"], toy.worker_log()[-3000:]
    assert len(toy.trace("shared")) == 1
    names = [toy.ask("GET", f"flow_runs/{run}")["name"] for run in runs]
    first, second = (toy.trained(f"{name}-shared", "shared") for name in names)
    assert first == second
    told = [line for run in runs for line in toy.logs(run) if "Waiting for process" in line]
    assert len(told) == 1, told


def test_variants_may_have_any_name(toy: Project) -> None:
    """Also those of a run's own parts."""
    variants = ["data", "baselines", "comparison"]
    run = toy.run("ablations/mini", variants=variants, retries=0, **PARAMETERS)
    assert toy.ended(run) == "COMPLETED", toy.worker_log()[-3000:]
    name = toy.ask("GET", f"flow_runs/{run}")["name"]
    for variant in variants:
        assert [line["experiment"] for line in toy.trace(variant)] == [f"{name}-{variant}"]
    compared = toy.shell("git", "show", f"{toy.experiment(name)}:params.yaml")
    assert "compare:\n- data\n- baselines\n- comparison\n" in compared


ONE_VARIANT = {
    "ablations": lambda variant: {"variants": [variant]},
    "evaluate": lambda variant: {"variants": [variant], "settings": ["generation.num_beams=3"]},
    "experiment": lambda variant: {"settings": [f"compare=[{variant}]", f"reference={variant}"]},
}


@pytest.mark.parametrize("flow", ONE_VARIANT)
def test_cancel_ends_everything(toy: Project, flow: str) -> None:
    begun = len(toy.trace("long"))
    run = toy.run(f"{flow}/mini", **ONE_VARIANT[flow]("long"), **PARAMETERS)
    trainer = toy.trainer("long", begun + 1)
    time.sleep(1.5)  # some steps
    began = time.monotonic()
    toy.ask("POST", f"flow_runs/{run}/set_state", state={"type": "CANCELLING"})
    until(lambda: are_gone(trainer), "end of the trainer and its rank", 60)
    print(f"gone {time.monotonic() - began:.1f} s after the cancel")
    assert toy.ended(run) == "CANCELLED"
    slots_are_free(toy)


@pytest.mark.parametrize("flow", ["ablations", "experiment"])
def test_time_limit_ends_everything(toy: Project, flow: str) -> None:
    begun = len(toy.trace("long"))
    run = toy.run(f"{flow}/mini", **ONE_VARIANT[flow]("long"), hours=25 / 3600, **PARAMETERS)
    trainer = toy.trainer("long", begun + 1)
    assert toy.trace("long")[-1]["step"] > 0  # what the cancelled run had done
    until(lambda: are_gone(trainer), "end of the trainer", 60)
    assert toy.ended(run) == "FAILED"
    assert len(toy.trace("long")) == begun + 1  # not tried again
    assert "took longer than 25 s" in toy.ask("GET", f"flow_runs/{run}")["state"]["message"]
    slots_are_free(toy)


def test_a_preempted_experiment_goes_on(toy: Project) -> None:
    run = toy.run("experiment/mini", **ONE_VARIANT["experiment"]("again"), retries=1, **PARAMETERS)
    assert toy.ended(run) == "COMPLETED", toy.worker_log()[-3000:]
    assert [line["step"] for line in toy.trace("again")] == [0, 2]


def test_killed_processes_are_taken_up(toy: Project) -> None:
    """SIGKILL of the flow's process, then of the worker: no orphan, and the same run goes on to its end."""
    run = toy.run("ablations/mini", variants=["medium"], **PARAMETERS)
    for number, killed in enumerate(("engine", "worker"), 1):
        trainer = toy.trainer("medium", number)
        time.sleep(1)
        process = toy.engine(run) if killed == "engine" else worker(toy)
        began = time.monotonic()
        process.send_signal(signal.SIGKILL)
        until(lambda gone=trainer: are_gone(gone), f"end of the trainer after its {killed}'s", 60)
        print(f"gone {time.monotonic() - began:.1f} s after SIGKILL of the {killed}")
    toy.trainer("medium", 3)
    print(f"trains again {time.monotonic() - began:.1f} s after SIGKILL of the worker")
    assert toy.ended(run) == "COMPLETED", toy.worker_log()[-3000:]
    steps = [line["step"] for line in toy.trace("medium")]
    assert len(steps) == 3 and 0 == steps[0] < steps[1] < steps[2]
    slots_are_free(toy)


def worker(toy: Project):
    found = [p for p in toy.processes() if "worker" in p.cmdline() and "prefect" in p.cmdline()]
    assert len(found) == 1, [p.cmdline() for p in found]
    return found[0]


def slots_are_free(toy: Project) -> None:
    files = list((toy.root / ".runs").glob("slot-*.lock"))
    assert files
    for file in files:
        with file.open() as lock:
            until(lambda held=lock: not is_held(held.fileno()), f"freeing of {file.name}", 30)
            fcntl.flock(lock, fcntl.LOCK_UN)


def is_held(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


def test_experiment_and_evaluation_with_settings(toy: Project) -> None:
    wrong = toy.run("evaluate/mini", settings=["variants.a.steps=3"], **PARAMETERS)
    settings = ["compare=[b]", "reference=b", "generation.num_beams=2"]
    run = toy.run("experiment/mini", settings=settings, **PARAMETERS)
    assert toy.ended(run) == "COMPLETED"
    assert toy.ended(wrong) == "FAILED"
    assert "generation." in toy.ask("GET", f"flow_runs/{wrong}")["state"]["message"]
    name = toy.ask("GET", f"flow_runs/{run}")["name"]
    params = toy.shell("git", "show", f"{toy.experiment(name)}:params.yaml")
    assert "num_beams: 2" in params and "reference: b" in params and "# a comment that stays" in params
    trained = len(toy.trace("b"))
    run = toy.run("evaluate/mini", settings=["generation.num_beams=4"], variants=["b"], **PARAMETERS)
    assert toy.ended(run) == "COMPLETED"
    assert len(toy.trace("b")) == trained  # scored anew, not trained


def test_starting_again_leaves_the_pool_as_it_was_set(toy: Project) -> None:
    pool = "work_pools/steermoe"
    template = toy.ask("GET", pool)["base_job_template"]
    template["variables"]["properties"]["stream_output"]["default"] = False
    mark = toy.ask("GET", pool)["description"]
    described = {"description": f"of the lab {mark}"}
    toy.ask("PATCH", pool, concurrency_limit=3, is_paused=True, base_job_template=template, **described)
    toy.shell("python", "-m", "flows", "start")
    found = toy.ask("GET", pool)
    toy.ask("PATCH", pool, concurrency_limit=None, is_paused=False)
    assert (found["concurrency_limit"], found["is_paused"]) == (3, True)
    assert found["base_job_template"] == template and found["description"] == f"of the lab {mark}"


def test_another_clone_does_not_take_its_runs_unless_it_joins(toy: Project, tmp_path: Path) -> None:
    toy.shell("git", "clone", "--quiet", str(toy.root), str(tmp_path / "clone"))
    other = copy.copy(toy)
    other.root = tmp_path / "clone"
    pool, deployment = (
        toy.ask("GET", "work_pools/steermoe"),
        toy.ask("GET", "deployments/name/ablations/mini"),
    )
    for action in ("start", "worker"):
        said = other.shell("python", "-m", "flows", action, code=1)
        assert f"belongs to the project in {toy.root}" in said and "JOIN=1" in said
    join = (
        "from pathlib import Path; from flows.claim import claim; claim(Path.cwd(), 'steermoe', joins=True)"
    )
    other.shell("python", "-c", join)
    assert toy.ask("GET", "work_pools/steermoe")["description"] == pool["description"]
    assert toy.ask("GET", "deployments/name/ablations/mini")["updated"] == deployment["updated"]


def test_only_its_own_deaths_count_against_a_run(toy: Project) -> None:
    """Stopping flows as often as one likes does not; what dies by itself is taken up so many times, no more."""
    run = toy.run("ablations/mini", variants=["stopped"], **PARAMETERS)
    toy.trainer("stopped")
    for _ in range(lifetime.TAKE_UPS):  # as if begun so often, which counts every stop
        toy.ask("POST", f"flow_runs/{run}/set_state", state={"type": "RUNNING"}, force=True)
    assert toy.ask("GET", f"flow_runs/{run}")["run_count"] > lifetime.TAKE_UPS
    toy.shell("python", "-m", "flows", "stop")
    toy.shell("python", "-m", "flows", "start")
    trainer = toy.trainer("stopped", 2)
    assert toy.trace("stopped")[-1]["step"] > 0

    toy.engine(run).kill()
    until(lambda: are_gone(trainer), "end of the trainer", 60)
    trainer = toy.trainer("stopped", 3)
    file = toy.root / lifetime.RUNS / run
    assert lifetime.Record.read(file).deaths == 1
    record = lifetime.Record.read(file)
    dataclasses.replace(record, deaths=lifetime.TAKE_UPS).write(file)  # as if it had died so often
    toy.engine(run).kill()
    until(lambda: are_gone(trainer), "end of the trainer", 60)
    until(lambda: not file.exists(), "giving the run up")
    assert toy.state(run) == "CRASHED"
    assert len(toy.trace("stopped")) == 3


def test_unknown_variant_is_refused(toy: Project) -> None:
    run = toy.run("ablations/mini", variants=["nobody"], **PARAMETERS)
    assert toy.ended(run) == "FAILED"
    message = toy.ask("GET", f"flow_runs/{run}")["state"]["message"]
    assert "nobody" in message and "'preempted'" in message


def test_a_run_works_in_the_folder_of_its_worker(toy: Project) -> None:
    """Whoever deployed it: machines with clones of their own share a server."""
    for flow in ("reproduce", "ablations", "experiment", "evaluate"):
        (step,) = toy.ask("GET", f"deployments/name/{flow}/mini")["pull_steps"]
        assert {"directory": "{{ $STEERMOE_ROOT }}"} in step.values()


def test_server_keeps_to_itself(toy: Project) -> None:
    settings = toy.shell("prefect", "config", "view", "--show-defaults")
    assert "PREFECT_SERVER_ANALYTICS_ENABLED='False'" in settings.replace("false", "False")
    for process in toy.processes():
        for connection in process.net_connections():
            assert connection.laddr.ip.startswith(("127.", "::1")) or connection.status != "LISTEN"
    assert os.environ.get("PREFECT_API_URL") != toy.api

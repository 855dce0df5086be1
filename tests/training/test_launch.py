"""`python -m pipeline train` in two processes: killed, preempted, finished by the same command."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from benchmarks import processes as throughput
from steermoe import distributed as processes
from steermoe.config import Distributed
from steermoe.training.mlflow_store import open_store

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


@pytest.fixture
def command(tmp_path, shards, quick_variant) -> list[str]:
    """Trains in two processes, in a project of its own."""
    shutil.copy(ROOT / "params.yaml", tmp_path)
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    yaml, profile = YAML(), tmp_path / "configs" / "mini.yaml"
    tree = yaml.load(profile)
    tree["training"]["distributed"].update({"processes": 2, "strategy": "ddp"})
    yaml.dump(tree, profile)
    (tmp_path / "shards").mkdir()
    shutil.copytree(shards[0], tmp_path / "shards" / "tones")
    variant = quick_variant("steering", max_steps=60, eval_steps=10, patience=100)
    (tmp_path / "variant.json").write_text(variant.to_json())
    stage = "train --config variant.json --shards shards --out models/variant --history history.csv --timing timing.json"
    return [sys.executable, "-m", "pipeline", *stage.split()]


@pytest.fixture
def start(tmp_path, command) -> Iterator:
    begun: list[subprocess.Popen] = []

    def run() -> subprocess.Popen:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("DVC_")}
        environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        begun.append(
            subprocess.Popen(
                command, cwd=tmp_path, env=environment, text=True, start_new_session=True,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )
        )  # fmt: skip
        return begun[-1]

    yield run
    for process in begun:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def ranks_of(launcher: int) -> list[int]:
    children = Path(f"/proc/{launcher}/task/{launcher}/children")
    return [int(pid) for pid in children.read_text().split()] if children.exists() else []


def wait_for(condition, process: subprocess.Popen, seconds: float = 180) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


def test_killed_preempted_and_finished_by_the_same_command(start, tmp_path):
    def has_checkpoint() -> bool:
        return any(tmp_path.glob(".runs/*/scratch/checkpoint-*"))

    first = start()
    wait_for(has_checkpoint, first)
    ranks = ranks_of(first.pid)
    assert len(ranks) == 2
    os.kill(ranks[1], signal.SIGKILL)
    output = first.communicate(timeout=300)[0]
    assert first.returncode == 1
    assert f"train: process 1 of 2 (pid {ranks[1]}) was killed by SIGKILL" in output
    assert not any(map(is_alive, ranks))

    second = start()
    wait_for(lambda: len(ranks_of(second.pid)) == 2, second)
    ranks = ranks_of(second.pid)
    second.kill()  # the launcher itself: nothing outlives it
    second.communicate()
    deadline = time.monotonic() + 300
    while any(map(is_alive, ranks)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(is_alive, ranks))

    third = start()
    line = ""
    assert third.stdout is not None
    while "resumed at step" not in line:
        line = third.stdout.readline()
        assert line, "ended before it resumed"
    third.terminate()
    output = third.communicate(timeout=300)[0]
    assert third.returncode == processes.PREEMPTED == 75, output
    assert not (tmp_path / "models").exists() and "repeat the command" in output

    fourth = start()
    output = fourth.communicate(timeout=300)[0]
    assert fourth.returncode == 0, output
    assert "resumed at step" in output
    assert {path.name for path in (tmp_path / "models/variant").iterdir()} == {
        "adapter.safetensors",
        "config.json",
    }
    client = open_store(tmp_path)
    [experiment] = [e for e in client.search_experiments() if e.name.startswith("steermoe/")]
    runs = client.search_runs([experiment.experiment_id])
    [run] = [run for run in runs if "steermoe.fingerprint" in run.data.tags]  # one, not four
    assert run.info.status == "FINISHED"


def test_sigterm_to_a_group_that_ends_well_is_no_preemption(tmp_path, monkeypatch):
    """What is done is done: repeated, it would be trained anew."""
    monkeypatch.chdir(tmp_path)
    code = (
        "import os, signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(0)); "
        "open(os.environ['RANK'], 'w').close(); time.sleep(60)"
    )

    def end() -> None:
        while not all((tmp_path / rank).exists() for rank in "01"):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    ending = threading.Thread(target=end)
    ending.start()
    processes.launch([sys.executable, "-c", code], 2)
    ending.join()


def test_a_first_process_that_must_wait_is_waited_for(tmp_path, monkeypatch):
    """For another training of the same variant, longer than a collective has patience."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    code = (
        "import time; from datetime import timedelta; from torch import distributed\n"
        "from steermoe.training import processes\n"
        "if processes.world().rank == 0: time.sleep(6)\n"
        "processes.begin_together()\n"
        "distributed.init_process_group('gloo', timeout=timedelta(seconds=3))\n"
        "distributed.barrier(); distributed.destroy_process_group()"
    )
    monkeypatch.chdir(tmp_path)
    processes.launch([sys.executable, "-c", code], 2)
    with pytest.raises(processes.LostProcessError):  # without it
        processes.launch([sys.executable, "-c", code.replace("processes.begin_together()", "")], 2)


def test_their_throughput_is_measured(tmp_path, shards, quick_variant, monkeypatch, capsys):
    (tmp_path / "variant.json").write_text(quick_variant("steering").to_json())
    arguments = [
        "--variant",
        str(tmp_path / "variant.json"),
        "--shards",
        str(shards[0].parent),
        "--steps",
        "3",
    ]
    monkeypatch.setattr("sys.argv", ["processes", *arguments, "--repeats", "1"])
    with pytest.raises(SystemExit):  # its code says whether this machine gets the goal
        throughput.main()
    one, two = [line.split(" | ") for line in capsys.readouterr().out.splitlines()[-3:-1]]
    assert one[0] == "| 1" and two[0] == "| 2"
    assert one[2].startswith("1.00") and float(two[1].split()[0]) > 0


def test_zero_without_deepspeed_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    zero = Distributed(processes=1, strategy="zero2", offload="none")
    with pytest.raises(
        ValueError, match=r"found 'zero2', which needs DeepSpeed: pip install 'steermoe\[deepspeed\]'"
    ):
        processes.check(zero)
    processes.check(processes.ONE_PROCESS)

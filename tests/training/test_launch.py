"""`python -m pipeline train` in two processes: killed, preempted, finished by the same command."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from steermoe import distributed as processes
from steermoe.config import Distributed

ROOT = Path(__file__).parents[2]


@pytest.fixture
def start(tmp_path, shards, quick_variant) -> Iterator:
    """`start()` trains in two processes, in a project of its own."""
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
    paths = "--config variant.json --shards shards --out models/variant --history history.csv --timing timing.json"
    command = [sys.executable, "-m", "pipeline", "train", *paths.split()]
    begun: list[subprocess.Popen] = []

    def run() -> subprocess.Popen:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("DVC_")}
        environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        options = {
            "text": True,
            "start_new_session": True,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.STDOUT,
        }
        begun.append(subprocess.Popen(command, cwd=tmp_path, env=environment, **options))
        return begun[-1]

    yield run
    for process in begun:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def ranks_of(launcher: int) -> list[int]:
    """The children of a launcher, without multiprocessing's tracker of resources."""
    children = Path(f"/proc/{launcher}/task/{launcher}/children")
    found = [int(pid) for pid in children.read_text().split()] if children.exists() else []
    return [pid for pid in found if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def read_until(process: subprocess.Popen, text: str) -> None:
    assert process.stdout is not None
    lines = []
    while text not in (lines or [""])[-1]:
        lines.append(process.stdout.readline())
        assert lines[-1], "".join(lines)


def is_alive(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_killed_preempted_and_finished_by_the_same_command(start, tmp_path):
    first = start()
    read_until(first, "step 20/60")  # the checkpoint of step 10 is written
    ranks = ranks_of(first.pid)
    assert len(ranks) == 2
    os.kill(ranks[1], signal.SIGKILL)
    output = first.communicate(timeout=300)[0]
    assert first.returncode == 1, output
    assert "train: process 1 terminated with signal SIGKILL" in output and str(ranks[1]) in output
    assert not any(map(is_alive, ranks))

    second = start()
    read_until(second, "resumed at step")
    ranks = ranks_of(second.pid)
    second.kill()  # the launcher itself: nothing survives it
    second.communicate()
    deadline = time.monotonic() + 300
    while any(map(is_alive, ranks)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(is_alive, ranks))

    third = start()
    read_until(third, "resumed at step")
    third.terminate()
    output = third.communicate(timeout=300)[0]
    assert third.returncode == processes.PREEMPTED == 75, output
    assert not (tmp_path / "models").exists() and "repeat the command" in output

    fourth = start()
    output = fourth.communicate(timeout=300)[0]
    assert fourth.returncode == 0, output
    assert "resumed at step" in output
    names = {path.name for path in (tmp_path / "models/variant").iterdir()}
    assert names == {"adapter.safetensors", "config.json"}


def test_what_does_not_fit_the_machine_is_refused(monkeypatch):
    zero = Distributed(processes=1, strategy="zero2", offload="none")
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "deepspeed", None)
        with pytest.raises(ValueError, match=r"found 'zero2', which needs DeepSpeed: pip install 'steermoe"):
            processes.check(zero)
    processes.check(processes.ONE_PROCESS)
    for name, value in processes.environment(0, 2, 29500).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=r"found 1, but the launcher started 2 .* --nproc-per-node"):
        processes.check(processes.ONE_PROCESS)

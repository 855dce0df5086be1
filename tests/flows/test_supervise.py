"""Supervised commands end whole, whatever ends them; slots are held by one at a time."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from flows import slots, supervise

ROOT = Path(__file__).parents[2]
# A tree as training has it: a child, a daemon whose parent is gone (own session), and one that ignores SIGTERM.
TREE = """
import os, signal, subprocess, sys, time
from pathlib import Path
sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
child = subprocess.Popen(sleep)
apart = "start_new_session=True, stdout=-3, stderr=-3"  # -3: DEVNULL
launcher = f"import subprocess; print(subprocess.Popen({sleep!r}, {apart}).pid)"
daemon = subprocess.run([sys.executable, "-c", launcher], capture_output=True, text=True).stdout.strip()
wait = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(600)"
deaf = subprocess.Popen([sys.executable, "-c", wait], stdout=subprocess.PIPE)
deaf.stdout.readline()
Path("pids.tmp").write_text(f"{os.getpid()} {child.pid} {daemon} {deaf.pid}")
Path("pids.tmp").rename("pids")
print("ready", flush=True)
while True:
    time.sleep(0.05)
    print("silent it is not", flush=True)
"""


def command(root: Path, *options: str, code: str = TREE) -> list[str]:
    own = ["--root", str(root), "--folder", str(root), "--grace", "1", *options]
    return [sys.executable, "-m", "flows.supervise", *own, "--", sys.executable, "-c", code]


def environment(**changes: str) -> dict[str, str]:
    inherited = {k: v for k, v in os.environ.items() if k not in ("CUDA_VISIBLE_DEVICES", "SLURM_JOB_ID")}
    return inherited | {"PYTHONPATH": str(ROOT), slots.SETTING: "2"} | changes


Begin = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Begin]:
    """Starts processes that, with what they left behind, are ended after the test."""
    begun = []

    def start(words: list[str], **changes: str) -> subprocess.Popen[bytes]:
        pipe = subprocess.PIPE
        process = subprocess.Popen(
            words, env=environment(**changes), stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT
        )
        begun.append(process)
        return process

    yield start
    for process in begun:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()
    if (tmp_path / "pids").exists():
        for pid in (tmp_path / "pids").read_text().split():
            if psutil.pid_exists(int(pid)):
                os.kill(int(pid), signal.SIGKILL)


def finished(process: subprocess.Popen[bytes]) -> bytes:
    """The output; `communicate` would close standard input first, which ends the command."""
    assert process.stdout is not None
    output = process.stdout.read()
    process.wait(timeout=300)
    return output


def tree(root: Path) -> list[psutil.Process]:
    until(lambda: (root / "pids").exists())
    found = [psutil.Process(int(pid)) for pid in (root / "pids").read_text().split()]
    assert len(found) == 4
    return found


def until(happened, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


def are_gone(processes: list[psutil.Process]) -> bool:
    return not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in processes)


@pytest.mark.parametrize("how", ["told", "abandoned", "time", "interrupted"])
def test_nothing_of_a_command_is_left(tmp_path: Path, how: str, begin: Begin) -> None:
    limit = ["--limit", "4"] if how == "time" else []
    process = begin(command(tmp_path, *limit))
    processes = tree(tmp_path)
    assert process.stdin is not None
    if how == "told":
        process.terminate()
    elif how == "abandoned":
        process.stdin.close()
    elif how == "interrupted":
        process.send_signal(signal.SIGINT)
    code = process.wait(timeout=300)
    assert are_gone(processes)
    assert code == (supervise.TIME_OVER if how == "time" else supervise.TOLD)
    with slots.taken(tmp_path / ".runs", 1, lambda: True) as held:
        assert held == []  # given up at once


def test_death_of_the_starter_ends_the_command(tmp_path: Path, begin: Begin) -> None:
    """SIGKILL leaves it no time to tell anybody: the kernel closes the pipe."""
    words = command(tmp_path)
    options = "stdin=subprocess.PIPE, start_new_session=True"
    starter = f"import subprocess\np = subprocess.Popen({words!r}, {options})\np.wait()"
    process = begin([sys.executable, "-c", starter])
    processes = tree(tmp_path)
    process.kill()
    process.wait()
    until(lambda: are_gone(processes))


def test_exit_code_and_output_pass(tmp_path: Path, begin: Begin) -> None:
    process = begin(
        command(tmp_path, code="import sys; print('heard'); sys.exit(75)"), CUDA_VISIBLE_DEVICES="4,7"
    )
    output = finished(process)
    assert process.returncode == 75
    assert output.decode().splitlines() == ["slot 0 of 2 CUDA_VISIBLE_DEVICES=4", "heard"]


def test_what_a_finished_command_left_behind_is_ended(tmp_path: Path, begin: Begin) -> None:
    leave = "import subprocess, sys; print(subprocess.Popen(['sleep', '600'], stdout=subprocess.DEVNULL).pid)"
    process = begin(command(tmp_path, code=leave))
    output = finished(process)
    assert process.returncode == 0
    pid = int(output.decode().split()[-1])
    assert not psutil.pid_exists(pid)


def test_one_at_a_time_has_a_slot(tmp_path: Path, begin: Begin) -> None:
    note = (
        "import os, time; from pathlib import Path\n"
        "running = Path('running'); assert not running.exists(); running.touch()\n"
        "time.sleep(0.5); running.unlink()"
    )
    processes = [begin(command(tmp_path, code=note), STEERMOE_SLOTS="1") for _ in range(3)]
    outputs = [finished(process) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], outputs


def test_slots_are_taken_together_and_freed_by_death(
    tmp_path: Path, begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = begin(command(tmp_path, "--slots", "2"))
    processes = tree(tmp_path)
    monkeypatch.setenv(slots.SETTING, "2")
    asked = iter([False, False, True])
    with slots.taken(tmp_path / ".runs", 1, lambda: next(asked)) as held:
        assert held == []
    process.kill()  # the supervisor itself
    process.wait()
    with slots.taken(tmp_path / ".runs", 2, lambda: False) as held:
        assert held == [0, 1]
    for left in processes:
        left.kill()


def test_more_slots_than_there_are(tmp_path: Path, begin: Begin) -> None:
    process = begin(command(tmp_path, "--slots", "3"))
    output = finished(process)
    assert process.returncode == 2
    assert b"3 slots wanted, this machine has 2" in output


@pytest.mark.parametrize(
    ("chosen", "visible", "number", "held", "expected"),
    [
        ("", "4,7", 2, [1], {"CUDA_VISIBLE_DEVICES": "7"}),
        ("", "4,7", 2, [0, 1], {"CUDA_VISIBLE_DEVICES": "4,7"}),
        ("4", "4,7", 4, [2], {"CUDA_VISIBLE_DEVICES": "4"}),  # more slots than GPUs share them
        ("4", "4,7", 4, [0, 2], {"CUDA_VISIBLE_DEVICES": "4"}),
        ("1", "", 1, [0], {}),  # no GPU: the one slot has all cores
        ("", "", 1, [0], {}),
    ],
)
def test_share_of_the_machine(
    monkeypatch: pytest.MonkeyPatch,
    chosen: str,
    visible: str,
    number: int,
    held: list[int],
    expected: dict[str, str],
) -> None:
    monkeypatch.setenv(slots.SETTING, chosen)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert slots.number() == number
    assert slots.environment(held) == expected


def test_slots_without_gpu_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setenv(slots.SETTING, "4")
    assert slots.environment([2]) == {"OMP_NUM_THREADS": "2"}
    assert slots.environment([0, 1]) == {"OMP_NUM_THREADS": "4"}


@pytest.mark.parametrize("chosen", ["0", "two", "-1"])
def test_no_number_of_slots(monkeypatch: pytest.MonkeyPatch, chosen: str) -> None:
    monkeypatch.setenv(slots.SETTING, chosen)
    with pytest.raises(ValueError, match="from 1"):
        slots.number()

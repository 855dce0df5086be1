"""Workers of a folder: one a machine and pool, and none ends by what one run left behind."""

import fcntl
import os
import signal
import socket
from pathlib import Path

import pytest

from flows import lifetime, service, worker


def test_a_snapshot_that_git_keeps_ends_no_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def locked(_: Path) -> list[str]:
        raise RuntimeError("git update-ref -d ended with 128: cannot lock ref")

    monkeypatch.setattr(lifetime, "take_up", locked)
    worker._take_up(tmp_path)
    assert "cannot lock ref" in capsys.readouterr().out


def test_a_worker_of_another_machine_or_pool_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".runs").mkdir()
    told = []
    monkeypatch.setattr(os, "kill", lambda pid, number: told.append((pid, number)))
    monkeypatch.setattr(service, "STOP_SECONDS", 0.0)
    with worker.lock_of(tmp_path, "slurm").open("a+") as held:
        held.write("4711\n")
        held.flush()
        fcntl.flock(held, fcntl.LOCK_EX)
        assert service._worker(worker.lock_of(tmp_path, "steermoe")) is None
        with pytest.raises(RuntimeError, match="slurm already"):
            worker.work(tmp_path, "slurm")
        with pytest.raises(RuntimeError, match="process 4711"):
            service.stop(tmp_path)
        monkeypatch.setattr(socket, "gethostname", lambda: "another")
        service.stop(tmp_path)
    assert told == [(4711, signal.SIGTERM)]

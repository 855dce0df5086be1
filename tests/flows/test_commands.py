"""Commands of a run: what the server does not hear, and what somebody else ended."""

import logging
import sys
from pathlib import Path

import httpx
import pytest

from flows import commands


@pytest.fixture(autouse=True)
def _logger(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "get_run_logger", lambda: logging.getLogger("run"))


def test_a_server_that_is_away_ends_no_training(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise httpx.ConnectError("All connection attempts failed")

    monkeypatch.setattr(commands, "create_progress_artifact", unreachable)
    monkeypatch.setattr(commands, "PROGRESS_SECONDS", 0.0)
    progress = commands.Progress()
    for step in range(1, 4):
        progress.read(f"steermoe: step {step}/4")
    assert [record.message for record in caplog.records] == [
        "progress is not shown: ConnectError: All connection attempts failed"
    ]


def test_a_command_that_somebody_ended_may_be_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scheduler ends DVC, and the flow's run goes on: that is not its own end, after which nothing is repeated."""
    monkeypatch.setenv("STEERMOE_SLOTS", "1")
    code = "import os, signal; os.kill(os.getpid(), signal.SIGTERM)"
    with pytest.raises(RuntimeError, match="ended with 143") as caught:
        commands.run([sys.executable, "-c", code], tmp_path, tmp_path, {}, 1, None)
    assert not isinstance(caught.value, commands.EndedError)

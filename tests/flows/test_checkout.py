"""What a run's checkout is: for one at a time, and with all experiments of the run under one name in MLflow."""

from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flows import checkout, commands, supervise


@pytest.fixture
def snapshot(tmp_path: Path) -> Any:
    return SimpleNamespace(root=tmp_path, name="run", head="head", files="files", cache="cache")


def test_all_experiments_of_a_run_are_one_execution(snapshot: Any) -> None:
    found = [
        checkout.environment(snapshot, name, is_repeated=name == "run") for name in ("run", "run-linear")
    ]
    assert [each["DVC_EXP_NAME"] for each in found] == ["run", "run-linear"]
    assert [each["STEERMOE_EXECUTION"] for each in found] == ["run", "run"]
    assert [each.get("STEERMOE_REPEATED") for each in found] == ["1", None]


def test_a_checkout_is_made_anew_when_nothing_works_in_it(
    snapshot: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after SIGKILL of the flow's process: its trainer is still writing a checkpoint."""
    folder = tmp_path / checkout.CHECKOUTS / "run"
    folder.mkdir(parents=True)
    (folder / "of the trainer").touch()
    trainer, waited = ExitStack(), []
    trainer.enter_context(supervise.at_work(folder))

    def sleep(_: float) -> None:
        waited.append((folder / "of the trainer").exists())
        if len(waited) == 2:
            trainer.close()

    monkeypatch.setattr(checkout.time, "sleep", sleep)
    monkeypatch.setattr(checkout, "_output", lambda *_: "")
    with checkout.opened(snapshot, "run", []):
        assert waited == [True, True] and not folder.exists()


def test_a_run_that_ends_waits_for_no_checkout(
    snapshot: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / checkout.CHECKOUTS / "run"
    folder.mkdir(parents=True)
    monkeypatch.setattr(commands, "is_ending", lambda: True)
    with (
        supervise.at_work(folder),
        pytest.raises(commands.EndedError),
        checkout.opened(snapshot, "run", []),
    ):
        pass
    assert folder.exists()

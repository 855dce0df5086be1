"""What a run's checkout is: all experiments of the run are under one name in MLflow."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flows import checkout


@pytest.fixture
def snapshot(tmp_path: Path) -> Any:
    return SimpleNamespace(root=tmp_path, name="run", head="head", files="files", cache="cache")


def test_all_experiments_of_a_run_are_one_execution(snapshot: Any) -> None:
    found = [checkout.environment(snapshot, name) for name in ("run", "run-linear")]
    assert [each["DVC_EXP_NAME"] for each in found] == ["run", "run-linear"]
    assert [each["STEERMOE_EXECUTION"] for each in found] == ["run", "run"]

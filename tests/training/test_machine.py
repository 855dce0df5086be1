"""Samples of how busy the machine is."""

from pathlib import Path

import pytest

from steermoe.training.machine import Machine


def test_samples_make_no_store_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow's default one, mlflow.db in the current folder, is where ours is made at the same time."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    load = Machine().load()
    assert 0 <= load["system/cpu_utilization_percentage"] <= 100
    assert load["system/system_memory_usage_megabytes"] > 0
    assert not list(tmp_path.iterdir())

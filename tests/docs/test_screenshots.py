"""MLflow's own user interface in a real browser: what was logged is there to be seen."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from steermoe import config
from steermoe.training.mlflow_logger import Tracker

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def screenshots() -> ModuleType:
    spec = importlib.util.spec_from_file_location("screenshots", ROOT / "docs" / "screenshots.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_the_runs_of_an_execution_are_on_the_page(screenshots, tmp_path, monkeypatch) -> None:
    if screenshots.browser_path() is None:
        pytest.skip("needs Chromium")
    for variable in ("DVC_EXP_NAME", "STEERMOE_EXECUTION", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(variable, raising=False)
    loaded = config.load(ROOT / "params.yaml")
    for name in ("linear", "steermoe"):
        tracker = Tracker("mini", tmp_path)
        tracker.start(loaded.variant(name), f"fingerprint of {name}", "data")
        for step in (1, 2, 3):
            tracker.log({"dev/loss": 1 / step}, step)
        tracker.finish()
    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    experiment, runs = screenshots.runs_of(store, "mini")
    names = [run.info.run_name for run in runs]
    assert names[0].startswith("mini ") and names[1:] == ["linear", "steermoe"]
    picture = tmp_path / "runs.png"
    with screenshots.served(store) as address, screenshots.browsing() as page:
        text = screenshots.look(page, f"{address}/#/experiments/{experiment}/runs", names, picture)
    assert all(name in text for name in names)
    assert picture.read_bytes().startswith(b"\x89PNG") and 20_000 < picture.stat().st_size < 300_000

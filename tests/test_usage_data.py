"""No library sends or stores data about its use."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import steermoe

ROOT = Path(__file__).parents[1]
PROXIES = ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
SEES_SPEECH = """
import numpy as np
from steermoe.audio.vad import VoiceActivity
VoiceActivity()(np.zeros(5120, np.float32))
"""
TRACKS = """
from steermoe.training import mlflow_store
import mlflow
mlflow.set_tracking_uri(f"sqlite:///{sys.argv[1]}/mlflow.db")
mlflow.set_experiment("tried")
"""
TEN_SECONDS = """
import time
time.sleep(12)
"""


def run(code: str, home: Path, **environment: str) -> str:
    """What a script prints that runs as of a user who has set nothing; it is told a folder outside of its home."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
    words = [sys.executable, "-c", f"import sys\n{code}", str(home.parent)]
    settings = kept | {"HOME": str(home), "OMP_NUM_THREADS": "1"} | environment
    return subprocess.run(words, cwd=ROOT, env=settings, check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize("package", ["steermoe", "flows", "pipeline", "pretrained", "benchmarks"])
def test_every_package_switches_it_off_at_once(package: str, tmp_path: Path) -> None:
    code = f"import {package}, os, json\nprint(json.dumps([sorted(sys.modules), dict(os.environ)]))"
    modules, environment = json.loads(run(code, tmp_path, DO_NOT_TRACK="0"))
    assert not {"onnxruntime", "mlflow", "gradio", "prefect", "huggingface_hub", "dvc"} & set(modules)
    assert (
        environment.items() >= (steermoe.NO_USAGE_DATA | {"DO_NOT_TRACK": "0"}).items()
    )  # the user's choice


@pytest.mark.parametrize(
    "code",
    [
        SEES_SPEECH,
        pytest.param(SEES_SPEECH + TEN_SECONDS, marks=pytest.mark.slow),  # after which ONNX Runtime sends
        pytest.param(TRACKS, marks=pytest.mark.slow),
    ],
    ids=["voice activity", "ten seconds of it", "mlflow"],
)
def test_nothing_is_written_into_the_home_folder_or_sent(code: str, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        address = f"http://127.0.0.1:{proxy.getsockname()[1]}"
        run(code, home, **dict.fromkeys(PROXIES, address))
        assert [path for path in home.rglob("*") if path.is_file()] == []
        proxy.setblocking(False)
        with pytest.raises(BlockingIOError):  # nobody has tried to connect
            proxy.accept()

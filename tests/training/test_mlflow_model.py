"""Adapters as models in a real MLflow store: loaded elsewhere, used on speech, and the best registered."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import pytest
import soundfile
from mlflow import MlflowClient

from steermoe import SteerMoE
from steermoe.audio.synthesis import RATE, Synthesizer, Voice
from steermoe.config import VariantConfig
from steermoe.training.mlflow_logger import Tracker
from steermoe.training.mlflow_store import open_store, sqlite_address

ROOT = Path(__file__).parents[2]
QUESTION = "who bought apples?"
SCRIPT = """
import json, os, sys
import mlflow, pandas as pd
uri, audio, question, base_models, elsewhere = sys.argv[1:]
model = mlflow.pyfunc.load_model(uri)
frame = pd.DataFrame({"audio": [audio] * 2, "question": [None, question]})
texts = [model.predict(frame)["text"].tolist(), model.predict(frame[["audio"]])["text"].tolist()]
try:
    model.predict(pd.DataFrame({"sound": ["x"]}))
except mlflow.exceptions.MlflowException as error:
    texts.append(str(error))
os.unlink(base_models)  # the project has moved
os.environ["STEERMOE_BASE_MODELS"] = elsewhere
texts.append(mlflow.pyfunc.load_model(uri).predict(frame)["text"].tolist())
print(json.dumps(texts))
"""


@pytest.fixture
def project(request, fresh_store, tmp_path, monkeypatch) -> Path:
    """A project with the repository's base models, and a store of its own."""
    for variable in ("DVC_EXP_NAME", "STEERMOE_EXECUTION", "STEERMOE_BASE_MODELS", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(variable, raising=False)
    # With characters that mean something in addresses.
    root = tmp_path / getattr(request, "param", "a #project ?ü%")
    root.mkdir()
    shutil.copy(fresh_store / "mlflow.db", root)
    (root / "pretrained").symlink_to(ROOT / "pretrained")
    return root


def evaluated(root: Path, name: str) -> Path:
    """A trained adapter of the repository, logged as its evaluation logs it."""
    model = ROOT / "pretrained/adapters/mini" / name
    variant = VariantConfig.from_json(json.dumps(json.loads((model / "config.json").read_text())["variant"]))
    tracker = Tracker("mini", root)
    tracker.attach(variant, model)
    tracker.finish()
    return model


def compared(root: Path, winner: str, model: Path, error: float, measured_on: str = "dev:8") -> None:
    tracker = Tracker("mini", root)
    tracker.attach_execution({winner: model})
    tracker.register_best(winner, model, error, measured_on)
    tracker.finish()


def champion(root: Path) -> str:
    client = open_store(root)
    version = client.get_model_version_by_alias("steermoe-mini", "champion")
    assert version.run_id is not None
    return client.get_run(version.run_id).data.tags["steermoe.variant"]


def test_the_best_model_is_loaded_elsewhere_and_transcribes_speech(project, tmp_path, monkeypatch):
    model = evaluated(project, "steermoe")
    compared(project, "steermoe", model, 0.1)
    spoken, _ = Synthesizer().speak("anna bought three red apples", Voice("en-us", "adam", 160, 50, 50))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    soundfile.write(elsewhere / "anna.wav", spoken, RATE)

    monkeypatch.chdir(ROOT)  # where the paths in the adapter's configuration start
    reference = SteerMoE.from_pretrained(model)
    transcript = reference.transcribe(elsewhere / "anna.wav")
    answer = reference.ask(elsewhere / "anna.wav", QUESTION).text

    uri, base_models = "models:/steermoe-mini@champion", str(project / "pretrained")
    store = {"MLFLOW_TRACKING_URI": sqlite_address(project / "mlflow.db"), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", SCRIPT, uri, "anna.wav", QUESTION, base_models, str(ROOT)]
    result = subprocess.run(command, cwd=elsewhere, env=os.environ | store, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    both, alone, refusal, moved = json.loads(result.stdout.splitlines()[-1])
    assert both == moved == [transcript, answer] and alone == [transcript, transcript]
    assert "audio" in refusal and "sound" in refusal  # of the signature


@pytest.mark.parametrize("project", ["a%20x%2Fy#?"], indirect=True)
def test_a_logged_model_is_the_adapter_and_nothing_of_what_is_frozen(project):
    model = evaluated(project, "linear")
    evaluated(project, "linear")  # of another corpus: the model is there already
    client = open_store(project)
    experiment = client.get_experiment_by_name("steermoe/mini")
    assert experiment is not None
    [logged] = client.search_logged_models([experiment.experiment_id])
    assert (logged.name, logged.status) == ("linear", "READY")
    folder = Path(unquote(logged.artifact_location.removeprefix("file://")))
    assert folder.is_relative_to(project)
    weights = [path for path in folder.rglob("*") if path.suffix in (".safetensors", ".bin", ".pt", ".pkl")]
    assert [path.relative_to(folder).as_posix() for path in weights] == [
        "artifacts/linear/adapter.safetensors"
    ]
    assert weights[0].read_bytes() == (model / "adapter.safetensors").read_bytes()
    required = (folder / "requirements.txt").read_text().splitlines()
    assert {line.split("==")[0] for line in required} >= {"steermoe", "torch", "transformers", "safetensors"}
    assert all("==" in line for line in required)
    example = json.loads((folder / "input_example.json").read_text())
    assert example["columns"] == ["audio", "question"]


@pytest.mark.parametrize("where", ["log_model_artifacts", "log_outputs"])
def test_a_kill_amid_the_log_of_a_model_leaves_one(project, monkeypatch, where):
    def dying(*arguments: object, **options: object) -> None:
        raise OSError("the process is killed")

    with monkeypatch.context() as patched:
        patched.setattr(MlflowClient, where, dying)  # what is not done is kept
        evaluated(project, "linear")
    evaluated(project, "linear")
    client = open_store(project)
    experiment = client.get_experiment_by_name("steermoe/mini")
    assert experiment is not None
    [logged] = client.search_logged_models([experiment.experiment_id])
    assert logged.status == "READY"
    [run] = client.search_runs([experiment.experiment_id], "tags.`steermoe.kind` = 'variant'")
    assert run.data.tags["steermoe.logged_model"] == logged.model_id
    assert run.outputs is not None
    [output] = run.outputs.model_outputs
    assert output.model_id == logged.model_id


def test_the_alias_goes_to_the_lowest_error_by_the_same_measure(project):
    models = {name: evaluated(project, name) for name in ("linear", "steermoe", "lora")}
    compared(project, "linear", models["linear"], 0.3)
    assert champion(project) == "linear"
    compared(project, "steermoe", models["steermoe"], 0.2)
    assert champion(project) == "steermoe"
    compared(project, "lora", models["lora"], 0.25)
    assert champion(project) == "steermoe"
    compared(project, "lora", models["lora"], 0.25)  # a second time: no further version
    assert len(open_store(project).search_model_versions("name = 'steermoe-mini'")) == 3
    compared(project, "lora", models["lora"], 0.25, "dev:8 other:8")  # which says nothing about the other
    assert champion(project) == "lora"

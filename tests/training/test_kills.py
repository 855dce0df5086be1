"""SIGKILL at seeded random moments of every stage: the same command ends as if nobody had disturbed it."""

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from ruamel.yaml import YAML

from pipeline.__main__ import command
from steermoe.training.mlflow_store import open_store

ROOT = Path(__file__).parents[2]
KILLS = {
    "base": 2,
    "download": 5,
    "preprocess": 3,
    "configure": 2,
    "train": 6,
    "eval": 3,
    "baseline": 2,
    "ablate": 2,
}
DATA, MODELS, REPORTS = "data/mini", "models/mini", "reports/mini"
ARGUMENTS: dict[str, dict[str, Any]] = {  # as in dvc.yaml
    "base": {"out": f"{DATA}/base"},
    "download": {"corpus": "synthetic", "out": f"{DATA}/raw/synthetic"},
    "preprocess": {
        "corpus": "synthetic", "source": f"{DATA}/raw/synthetic", "out": f"{DATA}/shards/synthetic", "workers": 1,
    },
    "configure": {
        "out": f"{DATA}/variants", "inputs": f"{DATA}/inputs", "base": f"{DATA}/base", "shards": f"{DATA}/shards",
    },
    "train": {
        "config": f"{DATA}/variants/linear.json", "shards": f"{DATA}/shards", "out": f"{MODELS}/linear",
        "history": f"{REPORTS}/history/linear.csv", "timing": f"{REPORTS}/timing/linear.json",
        "run": f"{REPORTS}/runs/linear.json",
    },
    "eval": {
        "corpus": "synthetic", "model": f"{MODELS}/linear", "shards": f"{DATA}/shards/synthetic",
        "out": f"{REPORTS}/evaluations/linear/synthetic",
    },
    "baseline": {
        "corpus": "synthetic", "shards": f"{DATA}/shards/synthetic",
        "out": f"{REPORTS}/evaluations/baseline/synthetic",
    },
    "ablate": {
        "variants": f"{DATA}/variants", "models": MODELS, "evaluations": f"{REPORTS}/evaluations",
        "history": f"{REPORTS}/history", "timing": f"{REPORTS}/timing", "shards": f"{DATA}/shards",
        "out": f"{REPORTS}/comparison", "metrics": f"{REPORTS}/metrics.json",
    },
}  # fmt: skip
# What else than `out` a stage writes, the same in all runs, and what tells the time.
OUTPUTS = {"configure": ["inputs"], "train": ["history"], "ablate": ["metrics"]}
TIMED = {"train": ["timing", "run"]}

pytestmark = pytest.mark.slow


def _stage(project: Path, name: str) -> None:
    os.chdir(project)
    torch.set_num_threads(1)
    paths = {
        key: value if key in ("corpus", "workers") else Path(value) for key, value in ARGUMENTS[name].items()
    }
    command(name)(**paths)


@pytest.fixture
def project(tmp_path) -> Path:
    """A dozen synthetic utterances, four training steps, short answers."""
    shutil.copy(ROOT / "params.yaml", tmp_path)
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    (tmp_path / "pretrained").symlink_to(ROOT / "pretrained")
    yaml = YAML()
    profile, params = tmp_path / "configs" / "mini.yaml", tmp_path / "params.yaml"
    tree = yaml.load(profile)
    tree["corpora"]["synthetic"].update(
        utterances={"train": 8, "dev": 2, "clean": 3, "other": 2},
        questions={"train": 0, "dev": 0, "clean": 1, "other": 1},
    )
    del tree["corpora"]["digits"]
    tree["training"].update(
        max_steps=4, warmup_steps=1, eval_steps=2, max_batch_seconds=8, precision="float32", patience=9
    )
    yaml.dump(tree, profile)
    tree = yaml.load(params)
    tree.update(corpora=["synthetic"], compare=["linear"])
    tree["generation"].update(max_new_tokens=4)
    tree["evaluation"].update(bootstrap_samples=100, max_batch_seconds=8)
    yaml.dump(tree, params)
    return tmp_path


def outputs(project: Path, stage: str) -> list[Path]:
    return [project / ARGUMENTS[stage][name] for name in ("out", *OUTPUTS.get(stage, ()))]


def content(paths: Sequence[Path]) -> dict[str, bytes]:
    """Every file's bytes; of metrics, what does not tell the time."""
    found = {}
    for file in sorted(p for path in paths for p in (path, *path.rglob("*")) if p.is_file()):
        data = file.read_bytes()
        if file.name == "metrics.json":
            data = json.dumps({k: v for k, v in json.loads(data).items() if k != "speed"}).encode()
        found[str(file)] = data
    return found


def clear(project: Path, stage: str) -> None:
    """As DVC does before it runs a stage."""
    timed = [project / ARGUMENTS[stage][name] for name in TIMED.get(stage, ())]
    for path in outputs(project, stage) + timed:
        if path.is_dir():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)


def is_work_left(project: Path) -> bool:
    return any(not key.parent.name.startswith(".retired") for key in (project / ".runs").glob("*/key.json"))


def test_killed_at_random_every_stage_ends_as_undisturbed(forkserver, project) -> None:
    draw = random.Random(11)

    def start(stage: str) -> BaseProcess:
        process = forkserver.Process(target=_stage, args=(project, stage))
        process.start()
        return process

    def repeated(stage: str, kills: int) -> int:
        """Kill a stage, and repeat it until it ends; how often it was done to the end."""
        began = time.monotonic()
        undisturbed = start(stage)
        undisturbed.join()
        assert undisturbed.exitcode == 0
        seconds, reference = time.monotonic() - began, content(outputs(project, stage))
        assert reference
        done, killed = 1, 0
        while True:
            clear(project, stage)
            process = start(stage)
            process.join(draw.uniform(0, seconds) if killed < kills else None)
            if process.exitcode is None:
                process.kill()
                process.join()
            if process.exitcode == -signal.SIGKILL:
                killed += 1
                done += outputs(project, stage)[0].exists() and not is_work_left(project)
                continue
            assert process.exitcode == 0
            assert content(outputs(project, stage)) == reference, stage
            done += 1
            if killed == kills:
                return done

    done = {stage: repeated(stage, kills) for stage, kills in KILLS.items()}
    client = open_store(project)
    [experiment] = [e for e in client.search_experiments() if e.name.startswith("steermoe/")]
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    assert {run.info.status for run in runs} == {"FINISHED"}
    trained = [run for run in runs if "steermoe.fingerprint" in run.data.tags]
    assert len(trained) == done["train"]  # a run for each training, however often that was killed
    assert len([run for run in runs if run.data.tags["steermoe.kind"] == "execution"]) == 1
    models = client.search_logged_models([experiment.experiment_id])
    assert [model.status for model in models] == ["READY"]
    assert len(client.search_model_versions("name = 'steermoe-mini'")) == 1

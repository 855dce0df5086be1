"""SIGKILL at seeded random moments of every stage: the same command ends as if nobody had disturbed it."""

import importlib
import json
import os
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from ruamel.yaml import YAML

from steermoe.training.store import open_store

ROOT = Path(__file__).parents[2]
KILLS = {"download": 26, "preprocess": 6, "train": 14, "eval": 6}  # 52
ARGUMENTS: dict[str, dict[str, Any]] = {
    "download": {"corpus": "synthetic", "out": "raw"},
    "preprocess": {"corpus": "synthetic", "source": "raw", "out": "shards/synthetic", "workers": 1},
    "train": {
        "config": "arm.json", "shards": "shards", "out": "models/mini/linear", "history": "history.csv",
        "timing": "timing.json",
    },
    "eval": {"corpus": "synthetic", "model": "models/mini/linear", "shards": "shards/synthetic", "out": "evaluation"},
}  # fmt: skip

pytestmark = pytest.mark.slow


def _stage(project: Path, name: str) -> None:
    os.chdir(project)
    torch.set_num_threads(1)
    paths = {
        key: value if key in ("corpus", "workers") else Path(value) for key, value in ARGUMENTS[name].items()
    }
    importlib.import_module(f"pipeline.{name}").main(**paths)


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
        steps=4, warmup_steps=1, eval_every=2, batch_seconds=8, precision="float32", patience=9
    )
    yaml.dump(tree, profile)
    tree = yaml.load(params)
    tree.update(corpora=["synthetic"], compare=["linear"])
    tree["generation"].update(max_new_tokens=4)
    tree["evaluation"].update(bootstrap_samples=100, batch_seconds=8)
    yaml.dump(tree, params)
    from steermoe import config

    (tmp_path / "arm.json").write_text(config.load(params).arm("linear").to_json())
    return tmp_path


def content(path: Path) -> dict[str, bytes]:
    """Every file's bytes; of metrics and predictions, what does not tell the time."""
    found = {}
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        data = file.read_bytes()
        if file.name == "metrics.json":
            data = json.dumps({k: v for k, v in json.loads(data).items() if k != "speed"}).encode()
        found[file.relative_to(path).as_posix()] = data
    return found


def test_killed_at_random_every_stage_ends_as_undisturbed(forkserver, project) -> None:
    draw, completed = random.Random(11), 0

    def start(name: str):
        process = forkserver.Process(target=_stage, args=(project, name))
        process.start()
        return process

    for name, kills in KILLS.items():
        out = project / ARGUMENTS[name]["out"]
        began = time.monotonic()
        undisturbed = start(name)
        undisturbed.join()
        assert undisturbed.exitcode == 0
        seconds, reference = time.monotonic() - began, content(out)
        assert reference
        completed += name == "train"
        shutil.rmtree(out)
        done = 0
        while done < kills:
            process = start(name)
            process.join(draw.uniform(0, seconds))
            if process.exitcode is None:
                os.kill(process.pid, signal.SIGKILL)
                process.join()
            if process.exitcode == -signal.SIGKILL:
                done += 1
                if name == "train" and out.exists():  # only the end of the process was left
                    completed += 1
                    shutil.rmtree(out)
                continue
            assert process.exitcode == 0
            completed += name == "train"
            assert content(out) == reference, name
            shutil.rmtree(out)  # as DVC does before it runs a stage again
        last = start(name)
        last.join()
        assert last.exitcode == 0
        completed += name == "train"
        assert content(out) == reference, name
    client = open_store(project)
    [experiment] = [e for e in client.search_experiments() if e.name.startswith("steermoe/")]
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    trained = [run for run in runs if "steermoe.fingerprint" in run.data.tags]
    assert {run.info.status for run in trained} == {"FINISHED"}
    assert len(trained) <= completed  # a run for each training, however often that was killed

"""The real pipeline, as small as it goes, through the deployment that the README names."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from tests.flows.conftest import ROOT, Project

pytestmark = pytest.mark.slow
COPIED = ("configs", "pipeline", "steermoe", "params.yaml", "dvc.yaml", ".dvcignore", ".gitignore")


@pytest.fixture(scope="module")
def real(make_project: Callable[..., Project]) -> Project:
    """This repository with few utterances, three steps and two variants."""

    def fill(root: Path) -> None:
        ignored = shutil.ignore_patterns("__pycache__", "made", "*.py")
        shutil.copytree(ROOT / "pretrained", root / "pretrained", ignore=ignored)
        for name in COPIED:
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / name, root)
        yaml = YAML()
        profile = yaml.load(root / "configs" / "mini.yaml")
        synthetic = profile["corpora"]["synthetic"]
        synthetic["utterances"] = {"train": 12, "dev": 4, "clean": 3, "other": 3}
        synthetic["questions"] = {"train": 0, "dev": 0, "clean": 2, "other": 2}
        profile["corpora"] = {"synthetic": synthetic}
        profile["training"].update(
            {"max_steps": 2, "warmup_steps": 1, "eval_steps": 1, "max_batch_seconds": 20}
        )
        yaml.dump(profile, root / "configs" / "mini.yaml")
        params = yaml.load(root / "params.yaml")
        params.update({"corpora": ["synthetic"], "compare": ["steermoe", "linear"]})
        yaml.dump(params, root / "params.yaml")

    return make_project(fill, "real")


def test_ablations_of_the_mini_profile(real: Project) -> None:
    run = real.run("ablations/mini", profile="mini")
    assert real.ended(run, 1800) == "COMPLETED", "\n".join(real.logs(run)[-60:])
    name = real.ask("GET", f"flow_runs/{run}")["name"]
    found = real.artifacts(run)
    (table,) = (artifact["data"] for artifact in found if artifact["key"] == "comparison")
    assert "| steermoe |" in table and "| linear |" in table and "synthetic clean WER" in table
    pictures = {a["key"] for a in found if (a["type"] or "") == "image"}
    assert {"error-rates", "learning-curves"} <= pictures
    assert any("step 2/2" in line for line in real.logs(run))
    assert [a for a in found if a["type"] == "progress"]
    # The runs are in the project's own store, under the names of the experiments.
    code = (
        "from steermoe.training.mlflow_store import open_store; from pathlib import Path\n"
        "client = open_store(Path('.'))\n"
        "experiment = client.get_experiment_by_name('steermoe/mini')\n"
        "print(experiment.artifact_location)\n"
        "for run in client.search_runs([experiment.experiment_id]):\n"
        "    print(run.data.tags.get('dvc.exp_name'), run.info.status)\n"
        "    print('parent', run.data.tags.get('mlflow.parentRunId'))"
    )
    output = real.shell("python", "-c", code)
    assert (real.root / "mlartifacts").as_uri() in output
    for variant in ("steermoe", "linear"):
        assert f"{name}-{variant} FINISHED" in output
    parents = {line for line in output.splitlines() if line.startswith("parent")}
    assert len(parents) == 2 and "parent None" in parents  # one, which has none itself
    # The experiment applied: everything is in the workspace, and nothing is left to do.
    real.shell("dvc", "exp", "apply", name)
    stages = re.findall(r"Running stage '([^']+)'", real.shell("dvc", "repro"))
    assert stages == ["stamp@mini"]  # which always runs
    metrics = json.loads((real.root / "reports" / "mini" / "metrics.json").read_text())
    assert {"steermoe", "linear"} <= metrics.keys()
    left = {entry.name for entry in (real.root / ".runs").iterdir()}
    assert not [name for name in left if len(name) == 32], "training left its work folder behind"

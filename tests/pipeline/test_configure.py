"""What `configure` writes of a variant that reads an adapter: a changed adapter changes the variant's inputs."""

import json
import shutil
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from pipeline.configure import main
from steermoe.data.adapters import CONFIG, WEIGHTS
from steermoe.data.filters import write_skipped
from steermoe.hub import sha256

ROOT = Path(__file__).parents[2]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project of a variant with a teacher, one that begins with it and one without, no models and no shards."""
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    shutil.copytree(ROOT / "pretrained/adapters/linear", tmp_path / "teacher")
    yaml = YAML()
    values = yaml.load(ROOT / "params.yaml")
    lesson = {"teacher": str(tmp_path / "teacher"), "logits": 1.0, "temperature": 2.0, "hidden": 0.0}
    values["variants"]["taught"] = {"method": "linear", "overrides": {"training.distillation": lesson}}
    more = {"training.init_from": str(tmp_path / "teacher")}
    values["variants"]["begun"] = {"method": "linear", "overrides": more}
    values["compare"] = ["taught", "begun", "linear"]
    yaml.dump(values, tmp_path / "params.yaml")
    for variant in values["compare"]:
        for part in ("encoder", "llm"):
            (tmp_path / "base/variants" / variant).mkdir(parents=True, exist_ok=True)
            (tmp_path / "base/variants" / variant / f"{part}.json").write_text("{}")
    for corpus in values["corpora"]:
        write_skipped(tmp_path / "shards" / corpus, "a test")
    return tmp_path


def written(project: Path) -> dict[str, str]:
    main(
        project / "variants",
        project / "inputs",
        project / "base",
        project / "shards",
        project / "params.yaml",
    )
    return {path.stem: path.read_text() for path in (project / "inputs").iterdir()}


def test_the_inputs_of_an_variant_know_its_teacher(project: Path) -> None:
    before = written(project)
    hashes = {name: sha256(project / "teacher" / name) for name in (WEIGHTS, CONFIG)}
    assert json.loads(before["taught"])["teacher"] == json.loads(before["begun"])["init_from"] == hashes
    assert not {"teacher", "init_from"} & json.loads(before["linear"]).keys()
    (project / "teacher" / WEIGHTS).write_bytes(b"others")
    after = written(project)
    assert [name for name in before if before[name] == after[name]] == ["linear"]


def test_a_teacher_that_is_missing_is_told(project: Path) -> None:
    (project / "teacher" / CONFIG).unlink()
    with pytest.raises(
        ValueError, match=r"training\.distillation\.teacher: found .* which lacks config\.json"
    ):
        written(project)

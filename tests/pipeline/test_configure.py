"""What `configure` writes: the hashes of the shards and adapters that a variant reads, and no others."""

import json
import shutil
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from pipeline.configure import main
from steermoe import config
from steermoe.data.filters import write_skipped
from steermoe.hub import CONFIG, WEIGHTS, sha256

ROOT = Path(__file__).parents[2]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project of a variant with a teacher, one that begins with it and one without, no models and no shards."""
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    shutil.copytree(ROOT / "pretrained/adapters/mini/linear", tmp_path / "teacher")
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


def test_the_inputs_of_a_variant_have_the_hashes_of_its_teacher(project: Path) -> None:
    before = written(project)
    hashes = {name: sha256(project / "teacher" / name) for name in (WEIGHTS, CONFIG)}
    assert json.loads(before["taught"])["teacher"] == json.loads(before["begun"])["init_from"] == hashes
    assert not {"teacher", "init_from"} & json.loads(before["linear"]).keys()
    (project / "teacher" / WEIGHTS).write_bytes(b"others")
    after = written(project)
    assert [name for name in before if before[name] == after[name]] == ["linear"]


def test_a_missing_teacher_is_an_error(project: Path) -> None:
    (project / "teacher" / CONFIG).unlink()
    with pytest.raises(
        ValueError, match=r"training\.distillation\.teacher: found .* which lacks config\.json"
    ):
        written(project)


def test_only_shards_that_a_variant_reads_change_its_inputs(project: Path) -> None:
    params = project / "params.yaml"
    config.switch_profile(params, "paper", ["taught"], ["librispeech", "fleurs"], "taught")
    shards = project / "shards" / "librispeech"
    shards.mkdir()
    for split in ("train-clean-100", "train-clean-360", "dev-clean", "dev-other", "test-clean"):
        (shards / f"{split}-00000.parquet").write_text(split)
    before = written(project)
    (shards / "test-clean-00000.parquet").write_text("others")
    assert written(project) == before
    (shards / "dev-other-00000.parquet").write_text("others")
    assert written(project) != before

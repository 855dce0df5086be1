"""What pages tell to type puts selected what they say."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from dvc.utils.hydra import apply_overrides

from steermoe import config

ROOT = Path(__file__).parents[2]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copy(ROOT / "params.yaml", tmp_path)
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def commands(page: str, begin: str) -> list[list[str]]:
    """The commands of a page that begin so, word by word."""
    text = (ROOT / "docs" / page).read_text().replace("\\\n", "")
    return [shlex.split(line) for line in text.splitlines() if line.strip().startswith(begin)]


@pytest.mark.parametrize(
    ("page", "profile", "variants"),
    [
        ("distillation.md", "mini", ["steermoe-3layers", "steermoe-3layers-distilled", "linear"]),
        ("audiovisual.md", "audiovisual", ["audiovisual", "audiovisual-linear", "audio-only"]),
    ],
)
def test_profiles(page: str, profile: str, variants: list[str], project: Path) -> None:
    (command,) = commands(page, "python -m pipeline profile")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, *command[1:]], env=environment, check=True, capture_output=True)
    settings = config.load(project / "params.yaml")
    assert settings.profile == profile and settings.compare == variants
    for variant in variants:
        settings.variant(variant)


def test_a_student_of_all_variants(project: Path) -> None:
    (command,) = commands("distillation.md", "dvc exp run")
    chosen = [command[place + 1] for place, word in enumerate(command) if word == "-S"]
    for each in chosen:
        file, _, override = each.rpartition("yaml:")
        apply_overrides(f"{file}yaml" if file else "params.yaml", [override])
    variant = config.load(project / "params.yaml").variant("linear")
    assert variant.encoder.layers == 3 and variant.training.distillation is not None
    assert (ROOT / variant.training.distillation.teacher / "config.json").exists()

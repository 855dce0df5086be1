"""Profiles: the stages that each has, and commands that select them."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from dvc.utils.hydra import apply_overrides

from steermoe import config
from tests.pipeline.conftest import ROOT, run, stages


@pytest.fixture
def params(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the configuration, in the current folder."""
    shutil.copy(ROOT / "params.yaml", tmp_path)
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "params.yaml"


def select(*arguments: str, code: int = 0) -> str:
    """Run `python -m pipeline profile`."""
    command = [sys.executable, "-m", "pipeline", "profile", *arguments]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    return done.stderr


@pytest.mark.parametrize("arguments", [(), ("paper", "--compare", "steermoe,conformer-7b-aishell2")])
def test_a_profile_has_its_stages_and_no_others(project: Path, arguments: tuple[str, ...]) -> None:
    shutil.copy(ROOT / "params.yaml", project)
    run(project, "python", "-m", "pipeline", "profile", *arguments)
    loaded = config.load(project / "params.yaml")
    found = run(
        project, "dvc", "stage", "list", "--name-only"
    )  # `repro --dry` fails at folders that are not there
    assert set(found.split()) == stages(loaded.profile, loaded.compare, list(loaded.corpora))


def test_variants_come_with_the_corpora_that_they_need(params: Path) -> None:
    for arguments, profile, compare, reference, corpora in (
        ((), "mini", ["steermoe", "linear", "lora"], "linear", ["synthetic", "digits"]),
        (("--compare", "lora,steermoe-2"), "mini", ["lora", "steermoe-2"], "lora", ["synthetic", "digits"]),
        (("--corpora", "synthetic"), "mini", ["lora", "steermoe-2"], "lora", ["synthetic"]),
        (("mini", "--compare", "linear"), "mini", ["linear"], "linear", ["synthetic"]),  # as selected
        (("paper", "--compare", "linear"), "paper", ["linear"], "linear", ["librispeech"]),
        # More variants of the selected profile add corpora to those selected.
        (("--compare", "steermoe-clothoaqa"), "paper", ["steermoe-clothoaqa"], "steermoe-clothoaqa",
         ["librispeech", "clothoaqa"]),
        (("--corpora", "clothoaqa"), "paper", ["steermoe-clothoaqa"], "steermoe-clothoaqa", ["clothoaqa"]),
    ):  # fmt: skip
        select(*arguments)
        loaded = config.load(params)
        found = (loaded.profile, loaded.compare, loaded.reference, list(loaded.corpora))
        assert found == (profile, compare, reference, corpora), arguments
    select("mini", "--compare", "*")
    assert set(config.load(params).compare) >= {"steermoe", "linear", "lora", "steermoe-16", "slam-asr"}
    before = params.read_text()
    assert "profile: found" in select("big", code=1)
    assert 'compare: found "nobody"' in select("--compare", "nobody", code=1)
    assert params.read_text() == before


def commands(page: str, begin: str) -> list[list[str]]:
    """Return the commands of a page that begin so, word by word."""
    text = (ROOT / "docs" / page).read_text().replace("\\\n", "")
    return [shlex.split(line) for line in text.splitlines() if line.strip().startswith(begin)]


@pytest.mark.parametrize(
    ("page", "profile", "variants"),
    [
        ("distillation.md", "mini", ["steermoe-3layers", "steermoe-3layers-distilled", "linear"]),
        ("audiovisual.md", "audiovisual", ["audiovisual", "audiovisual-linear", "audio-only"]),
    ],
)
def test_commands_of_the_docs(page: str, profile: str, variants: list[str], params: Path) -> None:
    before = params.read_text()
    for command in commands(page, "python -m pipeline profile"):
        select(*command[4:])
    settings = config.load(params)
    assert (settings.profile, settings.compare) == (profile, variants)
    params.write_text(before)
    for command in commands(page, "dvc exp run"):
        for place, word in enumerate(command):
            if word == "-S":
                file, _, override = command[place + 1].rpartition("yaml:")
                apply_overrides(f"{file}yaml" if file else "params.yaml", [override])
        distillation = config.load(params).variant("linear").training.distillation
        assert distillation is not None and (ROOT / distillation.teacher / "config.json").exists()

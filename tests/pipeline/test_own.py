"""A folder of recordings: the profile that is written for it, and what a change of the folder reruns."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from dvc.utils.hydra import apply_overrides

from pipeline import own, sources
from steermoe import config
from steermoe.config.corpora import Folder
from tests.pipeline.conftest import ROOT, executed, run

RATE = 16_000


def record(path: Path, text: str, seconds: float = 0.6) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(len(path.name) + len(text)).normal(0, 0.1, round(seconds * RATE))
    soundfile.write(path, noise, RATE)
    path.with_suffix(".txt").write_text(text)


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    for number in range(20):
        record(tmp_path / "recordings" / f"said-{number:02d}.wav", f"the red house {number}")
    return tmp_path / "recordings"


@pytest.fixture
def params(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("DVC_ROOT", raising=False)
    shutil.copy(ROOT / "params.yaml", tmp_path)
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    return tmp_path / "params.yaml"


def test_a_profile_is_written_and_selected(recordings: Path, params: Path, capsys: Any) -> None:
    own.main("mine", recordings, language="en", params=params)
    loaded = config.load(params)
    folder = loaded.corpora["folder"]
    assert isinstance(folder, Folder) and folder.path == str(recordings)
    assert (loaded.profile, list(loaded.corpora)) == ("mine", ["folder"])
    assert loaded.training.max_seconds == loaded.preprocessing.max_seconds == 8.0
    assert loaded.training.max_steps is not None
    assert loaded.training.eval_steps <= loaded.training.max_steps <= 450
    printed = capsys.readouterr().out
    assert re.search(r"train: 14 rows(.|\n)*dev: 2 rows(.|\n)*test: 4 rows", printed)
    assert "cannot learn a person's speech" in printed and "test has 2 s" in printed
    before = (params.parent / "configs" / "mine.yaml").read_text()
    apply_overrides(
        str(params.parent / "configs" / "mine.yaml"), [f"training.max_steps={loaded.training.max_steps}"]
    )
    assert (params.parent / "configs" / "mine.yaml").read_text() == before
    with pytest.raises(ValueError, match="there already"):
        own.main("mine", recordings, params=params)
    with pytest.raises(config.ConfigError, match='language: found "en_US"; allowed: a BCP 47 tag'):
        own.main("another", recordings, language="en_US", params=params)
    own.main("other", recordings, encoder="openai/whisper-small", llm="owner/llm", base="mine", params=params)
    assert config.load(params).training.max_seconds == 30.0
    assert "cannot learn" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("names", "seconds", "message"),
    [
        ([], 1.0, "no utterances"),
        (["a.wav", "b.wav"], 1.0, "2 recordings, at least one"),
        (["train/a.wav", "test/b.wav"], 1.0, "split 'dev': no utterances"),
        (["train/a.wav", "dev/b.wav", "test/c.wav"], 9.0, "2 recordings are longer than 8 s"),
        (["train/a.wav", "dev/b.wav", "c.wav"], 1.0, "c.wav: no split"),
    ],
)
def test_what_cannot_be_used_is_refused_and_nothing_written(
    tmp_path: Path, params: Path, names: list[str], seconds: float, message: str
) -> None:
    folder = tmp_path / "few"
    folder.mkdir()
    for name in names:
        record(folder / name, "words", seconds)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.yaml")}
    with pytest.raises(ValueError, match=message):
        own.main("mine", folder, params=params)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.yaml")} == before


def test_texts_longer_than_the_limits_raise_them(recordings: Path, params: Path) -> None:
    (recordings / "said-00.txt").write_text("the red house " * 30)
    own.main("mine", recordings, params=params)
    loaded = config.load(params)
    assert (loaded.preprocessing.max_tokens or 0) >= 90 <= loaded.generation.max_new_tokens


def test_stamp_notes_changes_outside_the_repository(recordings: Path, params: Path, tmp_path: Path) -> None:
    own.main("mine", recordings, llm=str(tmp_path / "llm"), params=params)
    (tmp_path / "llm").mkdir()
    (tmp_path / "llm" / "model.safetensors").write_text("weights")

    def stamps() -> dict[str, Any]:
        sources.stamp(tmp_path / "stamps", params)
        return {path.stem: json.loads(path.read_text()) for path in (tmp_path / "stamps").rglob("*.json")}

    before = stamps()
    assert len(before["folder"][str(recordings)]) == 40 and stamps() == before
    (tmp_path / "llm" / "model.safetensors").write_text("WEIGHTS")
    (recordings / "added.wav").write_bytes(b"")
    after = stamps()
    assert {name for name in before if before[name] != after[name]} == {"folder", "models"}


@pytest.mark.slow
def test_a_change_reruns_what_depends_on_it(project: Path, recordings: Path) -> None:
    shutil.copy(ROOT / "params.yaml", project)
    printed = run(project, "python", "-m", "pipeline", "own", "mine", str(recordings), "--language", "en")
    assert "selected" in printed
    always = {"stamp@mine"}
    data = {"download@mine-folder", "preprocess@mine-folder", "configure@mine"}
    first = executed(run(project, "dvc", "repro", "configure"))
    assert first == always | data | {"base@mine"}
    (recordings / "said-03.wav").touch()
    (recordings / "notes.md").write_text("of no interest")
    assert executed(run(project, "dvc", "repro", "configure")) == always | {"download@mine-folder"}
    (recordings / "said-03.txt").write_text("the red house three")
    assert executed(run(project, "dvc", "repro", "configure")) == always | data

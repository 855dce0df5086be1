"""Spoken questions: rows with the LLM's answers, unseen voices and words in dev and test; the LLM is the profile's."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from steermoe import config, corpora
from steermoe.audio.io import encode_flac
from steermoe.audio.neural_voices import Spoken
from steermoe.config.corpora import SpokenQuestions
from steermoe.config.errors import located
from steermoe.corpora import neural
from steermoe.corpora import spoken_questions as corpus
from steermoe.corpora.answers import INSTRUCTION

ROOT = Path(__file__).parents[2]
LLM = {
    "path": str(ROOT / "pretrained/llm"),
    "revision": None,
    "dtype": "float32",
    "quantization": "none",
    "layers": "all",
}


def settings(**changed: Any) -> SpokenQuestions:
    values = {
        "train": ["train"], "dev": ["dev"], "test": ["test"], "seed": 1, "limit": None,
        "questions": {"train": 40, "dev": 6, "test": 9}, "llm": LLM,
    }  # fmt: skip
    return SpokenQuestions.model_validate(values | changed)


@pytest.fixture
def parts_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Questions and answers without WordNet and an LLM, and voices that hum."""
    asked = {split: [f"{split} {n}?" for n in range(60)] for split in corpus.SPLITS}

    def record(spoken: list[Spoken], models: Any, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for each in spoken:
            sound = 0.1 * np.sin(np.arange(8000 + len(each.text)))
            (folder / each.file).write_bytes(encode_flac(sound.astype(np.float32), 16_000))

    monkeypatch.setattr(corpus, "fetched", lambda name: tmp_path)
    monkeypatch.setattr(corpus, "cache", lambda: tmp_path / "cache")
    monkeypatch.setattr(corpus, "questions", lambda folder, seed: asked)
    monkeypatch.setattr(corpus.neural_voices, "record", record)
    given = lambda llm, asked, folder: (("" if "7" in each else each.upper()) for each in asked)  # noqa: E731
    monkeypatch.setattr(corpus, "answers", given)


def test_rows(parts_of_it: None, fetched: Any, left_out: Any) -> None:
    rows = fetched("spokenquestions", settings())
    assert [sum(row["split"] == split for row in rows) for split in corpus.SPLITS] == [40, 6, 9]
    for row in rows:
        assert row["target"] == row["transcript"].upper() and row["transcript"].startswith(row["split"])
        assert (row["task"], row["prompt"], row["language"]) == ("answer", INSTRUCTION, "en")
        assert row["speaker"] in neural.VOICES[row["split"]] and "7" not in row["target"]
    assert "train 7?: no answer that ends after 24 tokens" in left_out("spokenquestions")
    assert not [line for line in left_out("spokenquestions") if "57" in line]  # not asked any more


def test_more_than_there_are(parts_of_it: None, root: Path) -> None:
    wrong = settings(questions={"train": 55, "dev": 6, "test": 9})
    with pytest.raises(
        ValueError, match=r"questions\.train: found 55; legal: at most 54, as many as have an answer"
    ):
        corpora.fetch("spokenquestions", wrong, root / "raw")


@pytest.mark.parametrize(("key", "value"), [("layers", 2), ("quantization", "int8")])
def test_a_part_of_an_llm_is_refused(key: str, value: Any) -> None:
    with pytest.raises(ValidationError) as caught:
        settings(llm=LLM | {key: value})
    ((place, line),) = located(caught.value, SpokenQuestions)
    assert place == "llm" and "quantization none and layers all" in line


def test_the_llm_is_the_profiles(tmp_path: Path) -> None:
    from ruamel.yaml import YAML

    yaml = YAML()
    params, profile = yaml.load(ROOT / "params.yaml"), yaml.load(ROOT / "configs/mini.yaml")
    profile["corpora"]["spokenquestions"] = json.loads(settings().model_dump_json())
    params["corpora"].append("spokenquestions")
    (tmp_path / "configs").mkdir()
    yaml.dump(params, tmp_path / "params.yaml")
    yaml.dump(profile, tmp_path / "configs/mini.yaml")
    with pytest.raises(config.ConfigError, match=r"corpora\.spokenquestions\.llm: .*the LLM of the profile"):
        config.load(tmp_path / "params.yaml")
    profile["corpora"]["spokenquestions"]["llm"] = dict(profile["llm"])
    yaml.dump(profile, tmp_path / "configs/mini.yaml")
    assert config.load(tmp_path / "params.yaml").corpora["spokenquestions"]

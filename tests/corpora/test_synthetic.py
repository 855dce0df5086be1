"""The synthetic corpus: test voices and texts are new, and the same seed gives the same bytes."""

import hashlib
import multiprocessing
from pathlib import Path

import pytest

from steermoe import config, corpora
from steermoe.corpora import grammar, synthetic
from steermoe.data.preprocess import preprocess
from steermoe.data.shards import read_rows

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def settings() -> config.Synthetic:
    section = config.load(ROOT / "params.yaml").corpora["synthetic"]
    assert isinstance(section, config.Synthetic)
    few = {"train": 6, "dev": 2, "clean": 4, "other": 4}
    return section.model_copy(update={"utterances": few, "questions": few | {"train": 0, "dev": 0}})


@pytest.fixture(scope="module")
def shards(settings: config.Synthetic, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("synthetic")
    (root / "raw").mkdir()
    synthetic.fetch(settings, root / "raw")
    preprocess(corpora.reader("synthetic"), settings, root / "raw", root / "shards")
    return root / "shards"


def test_counts_tasks_and_questions(shards: Path) -> None:
    clean = read_rows(shards, ["clean"])
    assert dict(clean["task"].value_counts().rows()) == {"transcribe": 4, "answer": 4}
    asked = clean.filter(task="answer")
    assert all(asked["prompt"]) and all(asked["target"])
    assert set(clean["language"]) == {"en"}
    assert clean.filter(task="transcribe")["target"].equals(clean.filter(task="transcribe")["transcript"])


def test_splits_share_no_voice_and_no_text(shards: Path) -> None:
    seen = {split: read_rows(shards, [split]) for split in synthetic.SPLITS}
    for split, part in synthetic.TEXTS.items():
        if split in seen:
            assert {grammar.part_of(text) for text in seen[split]["transcript"]} == {part}
    casts = [set(cast.variants) for cast in synthetic.CASTS.values()]
    assert sum(map(len, casts)) == len(set().union(*casts))


def digest(job: tuple[config.Synthetic, synthetic.Part]) -> str:
    rows = synthetic.rows(job[0], Path(), job[1])
    return hashlib.sha256(b"".join(row["audio"] for row in rows)).hexdigest()


def test_a_part_in_a_fresh_process_gives_the_same_bytes(settings: config.Synthetic) -> None:
    part = synthetic.parts(settings, Path())[0]
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        first, second = (pool.apply(digest, ((settings, part),)) for _ in range(2))
    assert first == second

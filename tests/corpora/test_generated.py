"""Generated corpora: sentences and answers, unseen voices and texts, drawn videos, the same bytes by the seed."""

import itertools
import subprocess
import sys
from typing import Any

import numpy as np
import polars as pl
import pytest
from scipy import ndimage

from steermoe import corpora
from steermoe.config.corpora import Shapes, Synthetic
from steermoe.corpora import grammar, shapes, synthetic
from steermoe.data import video
from steermoe.data.schema import validate_shard
from steermoe.data.shards import shard_name, write_shard
from tests.data.conftest import frame_of

VIDEOS = {"train": 8, "dev": 1, "test": 2}
FEW = {"train": 6, "dev": 2, "clean": 4, "other": 4}
SETTINGS: dict[str, Any] = {
    "synthetic": Synthetic(
        train=["train"], dev=["dev"], test=["clean", "other"], seed=23, utterances=FEW,
        questions=FEW | {"train": 0, "dev": 0}, noisy_share=0.5,
    ),
    "shapes": Shapes(train=["train"], dev=["dev"], test=["test"], seed=3, videos=VIDEOS),
}  # fmt: skip


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, pl.DataFrame]:
    """All rows of both corpora, checked as those of a shard."""
    found = {}
    for name, settings in SETTINGS.items():
        reader, root = corpora.reader(name), tmp_path_factory.mktemp(name)
        reader.fetch(settings, root)
        made = []
        for part in reader.parts(settings, root):
            path, part_rows = (
                root / shard_name(part.split, part.number),
                list(reader.rows(settings, root, part)),
            )
            made.append(frame_of(part_rows))
            write_shard(part_rows, path)
            validate_shard(path, audio="decode")
        found[name] = pl.concat(made)
    return found


def some(part: str, count: int = 400, shares: Any = None, seed: int = 0) -> list[grammar.Sentence]:
    return list(itertools.islice(grammar.sentences(np.random.default_rng(seed), part, shares), count))


def test_sentences_use_known_words_and_parts_share_none() -> None:
    words, texts = set(grammar.vocabulary()), {}
    for part in ("train", "dev", "test"):
        texts[part] = {sentence.text for sentence in some(part, 1000)}
        assert {word for text in texts[part] for word in text.split()} <= words
        assert {grammar.part_of(text) for text in texts[part]} == {part}
    assert not texts["train"] & texts["dev"] | texts["dev"] & texts["test"] | texts["test"] & texts["train"]
    assert some("dev", 20, seed=3) == some("dev", 20, seed=3) != some("dev", 20, seed=4)
    assert all({s.kind for s in some("train", 30, {kind: 1.0})} == {kind} for kind in grammar.KINDS)


def test_answers_are_words_of_the_text_and_sums_are_right() -> None:
    asked = [s for s in some("train", 1500) if s.question]
    assert {s.kind for s in asked} == {"deal", "place", "own", "meet", "sum"}
    for sentence in asked:
        words = sentence.text.split()
        if sentence.kind != "sum":
            assert sentence.answer in words
            continue
        before, change = grammar.NUMBERS.index(words[2]), grammar.NUMBERS.index(words[6])
        after = before + change if words[5] in ("got", "found") else before - change
        assert grammar.NUMBERS[after] == sentence.answer


def test_synthetic_splits_share_no_voice_and_no_text(rows: dict[str, pl.DataFrame]) -> None:
    found = rows["synthetic"]
    for split, part in synthetic.TEXTS.items():
        texts = found.filter(split=split)["transcript"]
        assert {grammar.part_of(text) for text in texts} <= {part}
    casts = [set(cast.variants) for cast in synthetic.CASTS.values()]
    assert sum(map(len, casts)) == len(set().union(*casts))
    clean = found.filter(split="clean")
    assert dict(clean["task"].value_counts().iter_rows()) == {"transcribe": 4, "answer": 4}
    asked, spoken = clean.filter(task="answer"), clean.filter(task="transcribe")
    assert all(asked["prompt"]) and all(asked["target"]) and set(clean["language"]) == {"en"}
    assert spoken["target"].equals(spoken["transcript"])


def test_every_video_has_three_questions_that_need_it(rows: dict[str, pl.DataFrame]) -> None:
    found = rows["shapes"]
    assert dict(found["split"].value_counts().iter_rows()) == {s: 3 * count for s, count in VIDEOS.items()}
    scene = found.with_columns(pl.col("source_id").str.split("-").list.slice(0, 4).list.join("-"))
    for asked in scene.partition_by("source_id"):
        assert asked["video"].n_unique() == 1
        assert asked["transcript"].n_unique() == asked["target"].n_unique() == 3
    assert found["prompt"].unique().to_list() == [shapes.WRITTEN]
    assert not set(found.filter(split="test")["speaker"]) & set(found.filter(split="train")["speaker"])
    assert {*shapes.COLOURS, *shapes.NUMBERS, *shapes.SHAPES} <= set(grammar.vocabulary())


def test_answers_are_in_every_frame_and_shapes_move(rows: dict[str, pl.DataFrame]) -> None:
    """Found again by other means: connected pixels, the nearest colour, the drawn form."""
    lengths = set()
    for row in rows["shapes"].iter_rows(named=True):
        frames = video.load(row["video"])
        lengths.add(len(frames))
        assert all(not np.array_equal(*pair) for pair in itertools.pairwise(frames))
        for frame in frames:
            lit = frame.max(2) > 100
            labels: Any = np.zeros(lit.shape, np.int32)
            count = ndimage.label(lit, np.ones((3, 3)), output=labels)
            colour = np.median(frame[lit], 0)
            nearest = min(shapes.COLOURS, key=lambda name: np.abs(colour - shapes.COLOURS[name]).sum())
            forms = {
                tuple("".join(".#"[pixel] for pixel in line) for line in lit[place].astype(int))
                for place in ndimage.find_objects(labels)
            }
            names = [name for name, form in shapes.SHAPES.items() if forms == {form}]
            numbers = [name for name, number in shapes.NUMBERS.items() if number == count]
            answers = dict(zip(shapes.QUESTIONS, ([nearest], numbers, names), strict=True))
            assert answers[row["source_id"].rpartition("-")[2]] == [row["target"]]
    assert len(lengths) > 2 and lengths <= set(range(shapes.SHORTEST, shapes.LONGEST + 1))


PARTS = """
import hashlib
from pathlib import Path
from steermoe import corpora
from steermoe.config import corpora as sections
found = hashlib.sha256()
for name, settings in (("synthetic", {synthetic!r}), ("shapes", {shapes!r})):
    settings = getattr(sections, name.capitalize()).model_validate_json(settings)
    reader = corpora.reader(name)
    for row in reader.rows(settings, Path(), reader.parts(settings, Path())[2]):
        found.update(row["audio"] + row.get("video", b""))
print(found.hexdigest())
"""


def test_parts_in_a_fresh_process_have_the_same_bytes() -> None:
    code = PARTS.format(**{name: settings.model_dump_json() for name, settings in SETTINGS.items()})
    run = [sys.executable, "-c", code]
    first, second = (subprocess.run(run, capture_output=True, text=True, check=True).stdout for _ in range(2))
    assert first == second and len(first) == 65


def test_the_seed_decides_what_is_drawn() -> None:
    scene = shapes.Scene("red", "two", "kites")
    drawn = [video.encode(shapes.draw(np.random.default_rng(seed), scene)) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]

"""The corpus of drawn shapes: its answers are in its pictures, and the same seed gives the same bytes."""

import hashlib
import multiprocessing
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from scipy import ndimage

from steermoe import config, corpora
from steermoe.corpora import grammar, shapes
from steermoe.data import video
from steermoe.data.preprocess import preprocess
from steermoe.data.shards import read_rows

VIDEOS = {"train": 8, "dev": 1, "test": 2}


@pytest.fixture(scope="module")
def settings() -> config.Shapes:
    return config.Shapes(train=["train"], dev=["dev"], test=["test"], seed=3, videos=VIDEOS)


@pytest.fixture(scope="module")
def shards(settings: config.Shapes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shapes")
    (root / "raw").mkdir()
    shapes.fetch(settings, root / "raw")
    preprocess(corpora.reader("shapes"), settings, root / "raw", root / "shards", workers=1)
    return root / "shards"


@pytest.fixture(scope="module")
def rows(shards: Path) -> pl.DataFrame:
    return read_rows(shards, shapes.SPLITS)


def test_every_video_is_asked_after_three_times(rows: pl.DataFrame) -> None:
    assert dict(rows["split"].value_counts().rows()) == {split: 3 * count for split, count in VIDEOS.items()}
    scene = rows.with_columns(pl.col("source_id").str.split("-").list.slice(0, 4).list.join("-"))
    for asked in scene.partition_by("source_id"):
        assert (
            asked["video"].n_unique() == 1
            and asked["transcript"].n_unique() == asked["target"].n_unique() == 3
        )
    assert rows["prompt"].unique().to_list() == [shapes.WRITTEN]
    assert not set(rows.filter(split="test")["speaker"]) & set(rows.filter(split="train")["speaker"])


def test_the_llm_can_write_every_answer() -> None:
    words = set(grammar.vocabulary())
    assert {*shapes.COLOURS, *shapes.NUMBERS, *shapes.SHAPES} <= words


def test_answers_are_in_every_frame(rows: pl.DataFrame) -> None:
    """Found again by other means: connected pixels, the nearest colour, the drawn form."""
    for row in rows.iter_rows(named=True):
        for frame in video.load(row["video"]):
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


def test_shapes_move(rows: pl.DataFrame) -> None:
    lengths = set()
    for data in rows["video"].unique():
        frames = video.load(data)
        lengths.add(len(frames))
        assert all(not np.array_equal(*pair) for pair in pairwise(frames))
    assert len(lengths) > 2 and lengths <= set(range(shapes.SHORTEST, shapes.LONGEST + 1))


def digest(job: tuple[config.Shapes, shapes.Part]) -> str:
    found = shapes.rows(job[0], Path(), job[1])
    return hashlib.sha256(b"".join(row["audio"] + row["video"] for row in found)).hexdigest()


def test_a_part_in_a_fresh_process_gives_the_same_bytes(settings: config.Shapes) -> None:
    part = shapes.parts(settings, Path())[2]
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        first, second = (pool.apply(digest, ((settings, part),)) for _ in range(2))
    assert first == second


def test_the_seed_decides_what_is_drawn() -> None:
    scene = shapes.Scene("red", "two", "kites")
    drawn = [video.encode(shapes.draw(np.random.default_rng(seed), scene)) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]

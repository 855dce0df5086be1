"""ROUGE-L against a library's subsequences and the properties of its definition."""

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rapidfuzz.distance import LCSseq

from steermoe.config import Evaluation
from steermoe.evaluation.captions import longest_common, rouge_l
from steermoe.evaluation.evaluator import System, batchwise, measure
from steermoe.evaluation.predictions import summarise

WORDS = st.lists(st.sampled_from(["a", "dog", "barks", "rain", "falls"]), max_size=8)
TEXTS = WORDS.map(" ".join)
CAPTIONS = ["A dog barks twice.", "A dog is barking.", "Someone's dog barks.", "Dog", "Rain falls on a roof."]


@given(WORDS, WORDS)
def test_longest_common_is_a_librarys(first: list[str], second: list[str]) -> None:
    assert longest_common(first, second) == LCSseq.similarity(first, second)


@given(st.lists(TEXTS, min_size=1, max_size=5), TEXTS)
def test_bounds_and_references(references: list[str], text: str) -> None:
    """From 0 to 1, 1 for a reference itself; never less with a reference more, whatever their order."""
    value = rouge_l(references, text)
    assert 0 <= value <= 1 + 1e-12
    assert value >= rouge_l(references[:1], text) - 1e-12
    assert value == pytest.approx(rouge_l(references[::-1], text))
    if text:
        assert rouge_l([*references, text], text) == pytest.approx(1)


def test_by_hand() -> None:
    """Two of three words are common with a reference of four: P 2/3, R 1/2, beta 1.2."""
    assert rouge_l(["a dog barks loudly"], "the dog barks") == pytest.approx(
        2.44 * (2 / 3) * (1 / 2) / (1 / 2 + 1.44 * 2 / 3)
    )
    assert rouge_l(["a dog"], "rain") == rouge_l(["a dog"], "") == rouge_l([""], "dog") == 0
    with pytest.raises(ValueError, match="without a reference; give at least one"):
        rouge_l([], "a dog")


def test_captions_are_scored_against_all_that_people_wrote(
    utterances: pl.DataFrame, settings: Evaluation
) -> None:
    rows = utterances.head(3).with_columns(
        pl.lit("caption").alias("task"),
        pl.lit("").alias("prompt"),
        pl.lit(CAPTIONS[0]).alias("target"),
        pl.Series("answers", [CAPTIONS, CAPTIONS, []], dtype=pl.List(pl.String)),
    )
    texts = ["rain falls on a roof", "no", "a dog barks twice"]
    said = dict(zip(rows["source_id"], texts, strict=True))
    system = System(batchwise(lambda batch: [said[name] for name in batch["source_id"]]), "by hand", "cpu")
    (scores,) = (
        tasks["caption"] for tasks in summarise(measure(system, rows, settings, 2), settings)["own"].values()
    )
    assert set(scores) == {"n", "seconds", "clusters", "unit", "rouge_l"}
    assert scores["rouge_l"]["value"] == pytest.approx(2 / 3) and scores["rouge_l"]["n"] == 3

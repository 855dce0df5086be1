"""Answers: protocols of question sets against counts made by hand, ROUGE-L, and multiple choice."""

import json
from collections.abc import Sequence
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from steermoe.config import Evaluation
from steermoe.corpora import mmau
from steermoe.evaluation.evaluator import measure
from steermoe.evaluation.metrics import metric
from steermoe.evaluation.normalizers import folded, whisper_english
from steermoe.evaluation.predictions import Predictions, System, batchwise, summarise
from steermoe.evaluation.qa import choice, count_answers, rouge_l, token_f1

# Three people's answers, and a system's.
ASKED = [
    (["yes", "Yes", "yes"], "yes"),
    (["yes", "yes", "no"], "no"),
    (["no", "no", "yes"], "No."),
    (["dog", "dog", "cat"], "dog"),
    (["a dog", "a dog", "a dog"], "dog"),
    (["one", "two", "three"], "two"),
    (["rain"], "rain"),  # one person alone: there is nothing to agree on
    ([], "rain"),
]
# [text, options, the chosen option or null]
CHOICES = json.loads(Path(__file__).with_name("choices.json").read_text(encoding="utf-8"))


def measured(rows: pl.DataFrame, texts: Sequence[str], settings: Evaluation) -> Predictions:
    """Predictions of a system that gives these texts."""
    said = dict(zip(rows["source_id"], texts, strict=True))
    system = System(batchwise(lambda batch: [said[name] for name in batch["source_id"]]), "by hand", "cpu")
    return measure(system, rows, settings, seed=2)


@pytest.fixture
def rows(utterances: pl.DataFrame) -> pl.DataFrame:
    return utterances.head(len(ASKED)).with_columns(
        pl.lit("answer").alias("task"),
        pl.lit("what?").alias("prompt"),
        pl.Series("answers", [answers for answers, _ in ASKED], pl.List(pl.String)),
        pl.Series("target", [answers[0] if answers else "snow" for answers, _ in ASKED]),
    )


def test_protocols(rows: pl.DataFrame, settings: Evaluation) -> None:
    predictions = measured(rows, [text for _, text in ASKED], settings)
    scores = summarise(predictions, settings)["own"]["clean"]["answer"]
    for name, right, of, count in (
        ("accuracy", 4, 8, 8),  # the first answer is the target
        ("any_accuracy", 6, 7, 7),
        ("raw_accuracy", 9, 18, 6),
        ("clean_accuracy", 3, 5, 5),
        ("unanimous_accuracy", 1, 2, 2),
        ("binary_accuracy", 1, 1, 1),
        ("single_word_accuracy", 1, 1, 1),
    ):
        assert tuple(part.sum() for part in metric(name).counts(predictions.frame)) == (right, of), name
        assert scores[name]["value"] == pytest.approx(right / of) and scores[name]["n"] == count, name
        assert scores[name]["low"] <= scores[name]["value"] <= scores[name]["high"]
    assert "choice_accuracy" not in scores
    f1 = predictions.frame["token_f1"].to_list()  # against the nearest answer
    assert f1[4] == pytest.approx(2 / 3) and f1[5] == 1.0 and f1[7] == 0.0


def test_token_f1_of_known_pairs() -> None:
    assert token_f1("a big dog", "dog a") == pytest.approx(2 * 2 / 5)
    assert token_f1("dog", "cat") == 0 and token_f1("", "") == 1 and token_f1("dog", "") == 0
    assert token_f1("dog dog", "dog") == pytest.approx(2 / 3)  # a word counts as often as it is there


WORDS = st.lists(st.sampled_from(["a", "dog", "barks", "rain", "falls"]), max_size=8)
TEXTS = WORDS.map(" ".join)


@given(st.lists(TEXTS, min_size=1, max_size=5), TEXTS)
def test_rouge_l_has_bounds(references: list[str], text: str) -> None:
    """From 0 to 1, 1 for a reference itself; never less with a reference more, whatever their order."""
    value = rouge_l(references, text)
    assert 0 <= value <= 1 + 1e-12
    assert value >= rouge_l(references[:1], text) - 1e-12
    assert value == pytest.approx(rouge_l(references[::-1], text))
    if text:
        assert rouge_l([*references, text], text) == pytest.approx(1)


def test_rouge_l_by_hand(rows: pl.DataFrame, settings: Evaluation) -> None:
    """Two of three words are common with a reference of four: P 2/3, R 1/2, beta 1.2."""
    expected = 2.44 * (2 / 3) * (1 / 2) / (1 / 2 + 1.44 * 2 / 3)
    assert rouge_l(["a dog barks loudly"], "the dog barks") == pytest.approx(expected)
    assert rouge_l(["a dog"], "rain") == rouge_l(["a dog"], "") == rouge_l([""], "dog") == 0
    captions = ["A dog barks twice.", "A dog is barking.", "Rain falls on a roof."]
    captioned = rows.head(3).with_columns(
        pl.lit("caption").alias("task"),
        pl.lit(captions[0]).alias("target"),
        pl.Series("answers", [captions, captions, []], dtype=pl.List(pl.String)),
    )
    texts = ["rain falls on a roof", "no", "a dog barks twice"]
    scores = summarise(measured(captioned, texts, settings), settings)["own"]["clean"]["caption"]
    assert scores["rouge_l"]["value"] == pytest.approx(2 / 3) and scores["rouge_l"]["n"] == 3


@pytest.mark.parametrize(("text", "options", "chosen"), CHOICES)
def test_what_is_read_as_the_choice_of_an_option(text: str, options: list[str], chosen: int | None) -> None:
    assert choice(text, options, folded) == chosen
    if options[0] == "London" and chosen is not None:
        assert choice(text, options, whisper_english) == chosen


def test_choices_are_scored(rows: pl.DataFrame, settings: Evaluation) -> None:
    two = rows.head(2).with_columns(
        pl.Series("choices", [["dog", "cat"], ["dog", "cat"]]), pl.Series("target", ["cat", "dog"])
    )
    scores = summarise(measured(two, ["B", "B"], settings), settings)["own"]["clean"]["answer"]
    assert scores["choice_accuracy"]["value"] == 0.5 and scores["choice_accuracy"]["n"] == 2


@pytest.mark.parametrize(
    ("texts", "answer", "right"),
    [
        (["London", "Paris"], "B", True),
        (["London", "Paris"], "It's Paris.", True),
        (["London", "Paris"], "London", False),
        (["London", "Paris"], "A. Paris", True),
        (["B", "C", "D"], "B", True),  # a list of keys: the letter of the list
        (["B", "C", "D"], "C", False),
        (["two\nlines", "one"], "B", True),
    ],
)
def test_where_letters_are_asked_for_a_text_counts_too(texts: list[str], answer: str, right: bool) -> None:
    row = {
        "task": "answer", "language": "en", "prompt": mmau.ask("Where?", texts),
        "choices": mmau.offered(texts, "letter"), "target": "B", "answers": [],
    }  # fmt: skip
    lists = {"answers": pl.List(pl.String), "choices": pl.List(pl.String)}
    found = count_answers(pl.DataFrame([row], schema_overrides=lists), [answer], folded)
    assert found["choice_exact"].to_list() == [right]

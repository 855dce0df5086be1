"""Protocols of question sets against counts made by hand."""

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from steermoe.config import Evaluation
from steermoe.evaluation.answers import count_answers, most_alike, token_f1
from steermoe.evaluation.evaluator import System, batchwise, measure
from steermoe.evaluation.metrics import metric
from steermoe.evaluation.normalizers import folded
from steermoe.evaluation.predictions import Predictions, summarise

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


@pytest.fixture
def rows(utterances: pl.DataFrame) -> pl.DataFrame:
    return utterances.head(len(ASKED)).with_columns(
        pl.lit("answer").alias("task"),
        pl.lit("what?").alias("prompt"),
        pl.Series("answers", [answers for answers, _ in ASKED], pl.List(pl.String)),
        pl.Series("target", [answers[0] if answers else "snow" for answers, _ in ASKED]),
        pl.Series("choices", [[]] * len(ASKED), pl.List(pl.String)),
    )


@pytest.fixture
def predictions(rows: pl.DataFrame, settings: Evaluation) -> Predictions:
    said = dict(zip(rows["source_id"], (text for _, text in ASKED), strict=True))
    system = System(batchwise(lambda batch: [said[name] for name in batch["source_id"]]), "by hand", "cpu")
    return measure(system, rows, settings, seed=2)


@pytest.mark.parametrize(
    ("name", "right", "of", "constant"),
    [
        ("accuracy", 4, 8, ("yes", 2 / 8)),  # the first answer is the target
        ("any_accuracy", 6, 7, ("yes", 3 / 7)),
        ("raw_accuracy", 9, 18, ("yes", 6 / 18)),
        ("clean_accuracy", 3, 5, ("yes", 2 / 5)),
        ("unanimous_accuracy", 1, 2, ("yes", 1 / 2)),
        ("binary_accuracy", 1, 1, ("yes", 1.0)),
        ("single_word_accuracy", 1, 1, ("dog", 1.0)),
    ],
)
def test_protocols(
    predictions: Predictions, settings: Evaluation, name: str, right: int, of: int, constant: tuple | None
) -> None:
    hits, total = (part.sum() for part in metric(name).counts(predictions.frame))
    assert (hits, total) == (right, of)
    figure = predictions.figure(name, predictions.frame, settings)
    assert figure is not None and figure.value == pytest.approx(right / of)
    assert figure.low <= figure.value <= figure.high
    assert figure.n == metric(name).rows(predictions.frame)
    assert (figure.floor and (figure.floor.text, figure.floor.value)) == constant
    assert figure.protocol.normalizer == "folded" and figure.protocol.decoding == "by hand"


def test_the_summary_has_what_the_rows_have(
    predictions: Predictions, rows: pl.DataFrame, settings: Evaluation
) -> None:
    scores = summarise(predictions, settings)["own"]["clean"]["answer"]
    assert scores["raw_accuracy"]["n"] == 6 and scores["raw_accuracy"]["floor"]["text"] == "yes"
    assert "choice_accuracy" not in scores
    bare = rows.drop("answers", "choices")
    system = System(batchwise(lambda batch: ["yes"] * len(batch)), "yes", "cpu")
    plain = summarise(measure(system, bare, settings, seed=2), settings)["own"]["clean"]["answer"]
    assert set(plain) == {"n", "seconds", "clusters", "unit", "accuracy"}


def test_token_f1_of_known_pairs() -> None:
    assert token_f1("a big dog", "dog a") == pytest.approx(2 * 2 / 5)
    assert token_f1("dog", "cat") == 0 and token_f1("", "") == 1 and token_f1("dog", "") == 0
    assert token_f1("dog dog", "dog") == pytest.approx(2 / 3)  # a word counts as often as it is there


def test_token_f1_is_against_the_nearest_answer(rows: pl.DataFrame) -> None:
    found = count_answers(rows, [text for _, text in ASKED], folded)["token_f1"].to_list()
    assert found[4] == pytest.approx(2 / 3) and found[5] == 1.0 and found[7] == 0.0


ANSWERS = st.lists(st.sampled_from(["dog", "dogs", "a", "big", "yes"]), min_size=1, max_size=3).map(" ".join)


@given(st.lists(st.lists(ANSWERS, min_size=1, max_size=3), min_size=1, max_size=6))
def test_the_constant_beside_token_f1_is_the_best_of_the_answers(answers: list[list[str]]) -> None:
    """As found by trying each of them on all rows."""
    rows = pl.DataFrame({"said": answers}, schema={"said": pl.List(pl.String)})
    reached = {
        text: sum(max(token_f1(said, text) for said in given) for given in answers) / len(answers)
        for text in {text for given in answers for text in given}
    }
    found = most_alike(rows)
    assert found is not None and found[1] == pytest.approx(max(reached.values()))
    assert reached[found[0]] == pytest.approx(found[1])


def test_choices_are_scored(rows: pl.DataFrame, settings: Evaluation) -> None:
    two = rows.head(2).with_columns(
        pl.Series("choices", [["dog", "cat"], ["dog", "cat"]]), pl.Series("target", ["cat", "dog"])
    )
    system = System(batchwise(lambda batch: ["B"] * len(batch)), "B", "cpu")
    figure = summarise(measure(system, two, settings, seed=2), settings)["own"]["clean"]["answer"]
    assert figure["choice_accuracy"]["value"] == 0.5 and figure["choice_accuracy"]["n"] == 2

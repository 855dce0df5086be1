import jiwer
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from steermoe.data.schema import TASKS
from steermoe.evaluation.metrics import METRICS, count_errors, metric, metrics_of
from steermoe.evaluation.normalizers import as_written, folded
from steermoe.evaluation.qa import count_answers

SENTENCES = st.lists(st.sampled_from(["one", "two", "three", "four"]), max_size=6).map(" ".join)


def frame(
    references: list[str], hypotheses: list[str], language: str = "en", task: str = "answer"
) -> pl.DataFrame:
    """Rows to be scored by any metric: each is a question that three people answered alike, with two options."""
    rows = pl.DataFrame(
        {
            "task": task,
            "language": language,
            "target": references,
            "prompt": "",
            "answers": [[text] * 3 for text in references],
            "choices": [[text, "none of these"] for text in references],
        },
        schema_overrides={"answers": pl.List(pl.String), "choices": pl.List(pl.String)},
    )
    return rows.hstack(
        pl.DataFrame(count_errors(references, hypotheses, as_written, rows["language"].to_list()))
    ).hstack(count_answers(rows, hypotheses, as_written))


def test_counts_of_known_pairs() -> None:
    pairs = ["Ann has two cats.", "a b", "", "x"], ["ann has three cats", "b a b", "y z", ""]
    counts = count_errors(*pairs, folded, ["en"] * 4)
    assert counts["errors"] == [1, 1, 2, 1]
    assert counts["words"] == [4, 2, 0, 1]
    assert counts["char_errors"] == [4, 2, 3, 1]
    assert counts["chars"] == [16, 3, 0, 1]
    assert counts["exact"] == [False, False, False, False]
    assert count_errors(["Hello!"], ["hello"], folded, ["en"])["exact"] == [True]
    assert count_errors(["Hello!"], ["hello"], as_written, ["en"])["exact"] == [False]
    assert frame([], []).height == 0


@given(st.lists(st.tuples(SENTENCES, SENTENCES), min_size=1, max_size=8))
def test_sums_of_counts_give_jiwers_rates(pairs: list[tuple[str, str]]) -> None:
    references, hypotheses = [r for r, _ in pairs], [h for _, h in pairs]
    predictions = frame(references, hypotheses)
    for name, reference in (("wer", jiwer.process_words), ("cer", jiwer.process_characters)):
        errors, units = metric(name).counts(predictions)
        output = reference(references, hypotheses)
        assert errors.sum() == output.substitutions + output.insertions + output.deletions
        assert units.sum() == sum(len(r) for r in output.references)
        if units.sum():
            assert errors.sum() / units.sum() == pytest.approx(getattr(output, name))


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_prefers_the_perfect_system(name: str) -> None:
    row = metric(name)
    references, others = (
        (["yes", "no"], ["no", "maybe"]) if "binary" in name else (["two", "six"], ["one", "x y"])
    )
    task = "caption" if row.tasks == {"caption"} else "answer"
    perfect, wrong = (row.counts(frame(references, texts, task=task)) for texts in (references, others))
    value, worse = (n.sum() / d.sum() for n, d in (perfect, wrong))
    assert value < worse if row.lower_is_better else value > worse
    assert value == (0 if row.lower_is_better else 1)
    assert row.tasks <= set(TASKS)


def test_languages_without_spaces_have_no_word_error_rate() -> None:
    mixed = pl.concat([frame(["one two"], ["one"]), frame(["一 二"], ["一"], "zh-Hans")])
    errors, words = metric("wer").counts(mixed)
    assert errors.tolist() == [1, 0] and words.tolist() == [2, 0]
    assert metric("cer").counts(mixed)[1].tolist() == [7, 3]


def test_tasks_have_their_metrics() -> None:
    assert list(metrics_of("transcribe")) == ["wer", "cer", "exact_match"]
    assert next(iter(metrics_of("answer"))) == "accuracy"
    assert list(metrics_of("caption")) == ["rouge_l"]
    assert {name for task in TASKS for name in metrics_of(task)} == METRICS.keys()


def test_unknown_metric_lists_the_legal_ones() -> None:
    with pytest.raises(
        ValueError, match="unknown metric 'bleu'; known: wer, cer, exact_match, accuracy, token_f1"
    ):
        metric("bleu")


def test_spaces_are_no_errors_in_languages_written_without() -> None:
    texts = ["今日 は いい 天気", "two words"], ["今日はいい天気", "twowords"]
    counts = count_errors(*texts, folded, ["ja", "en"])
    assert counts["char_errors"] == [0, 1] and counts["chars"] == [7, 9] and counts["exact"] == [True, False]

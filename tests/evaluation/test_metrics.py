import jiwer
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from steermoe.evaluation.metrics import METRICS, count_errors, metric, metrics_of
from steermoe.evaluation.normalizers import as_written, folded

SENTENCES = st.lists(st.sampled_from(["one", "two", "three", "four"]), max_size=6).map(" ".join)


def frame(references: list[str], hypotheses: list[str]) -> pl.DataFrame:
    return pl.DataFrame(count_errors(references, hypotheses, as_written))


def test_counts_of_known_pairs() -> None:
    counts = count_errors(
        ["Ann has two cats.", "a b", "", "x"], ["ann has three cats", "b a b", "y z", ""], folded
    )
    assert counts["errors"] == [1, 1, 2, 1]
    assert counts["words"] == [4, 2, 0, 1]
    assert counts["char_errors"] == [4, 2, 3, 1]
    assert counts["chars"] == [16, 3, 0, 1]
    assert counts["exact"] == [False, False, False, False]


def test_normalisation_decides_what_is_exact() -> None:
    assert count_errors(["Hello!"], ["hello"], folded)["exact"] == [True]
    assert count_errors(["Hello!"], ["hello"], as_written)["exact"] == [False]


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


def test_exact_match_and_accuracy_count_whole_utterances() -> None:
    hits, ones = metric("accuracy").counts(frame(["a", "b", "c d"], ["a", "x", "c d"]))
    assert hits.tolist() == [1, 0, 1] and ones.tolist() == [1, 1, 1]


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_prefers_the_perfect_system(name: str) -> None:
    row, references = metric(name), ["one two", "three"]
    perfect, wrong = (row.counts(frame(references, texts)) for texts in (references, ["two", "four"]))
    value, worse = (n.sum() / d.sum() for n, d in (perfect, wrong))
    assert value < worse if row.lower_is_better else value > worse
    assert row.tasks <= {"transcribe", "answer"}


def test_tasks_have_their_metrics() -> None:
    assert list(metrics_of("transcribe")) == ["wer", "cer", "exact_match"]
    assert list(metrics_of("answer")) == ["accuracy"]


def test_no_pairs_no_counts() -> None:
    assert frame([], []).height == 0


def test_unknown_metric_lists_the_legal_ones() -> None:
    with pytest.raises(ValueError, match="unknown metric 'bleu'; known: wer, cer, exact_match, accuracy"):
        metric("bleu")

"""Count the errors of each utterance, and define the metrics.

A metric has a numerator and a denominator for each utterance; its value over a set is the ratio of the two sums
(micro average), so that the same counts give the value, its interval and paired comparisons.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import jiwer
import numpy as np
import polars as pl
from jiwer import AlignmentChunk

from steermoe.evaluation import qa
from steermoe.evaluation.normalizers import UNSPACED, Normalizer

Counts = tuple[np.ndarray, np.ndarray]  # (utterances,) numerators, (utterances,) denominators, float64
EVERY, ONE = pl.lit(True), pl.lit(1.0)
SPACED = ~pl.col("language").str.to_lowercase().str.split("-").list.first().is_in(UNSPACED)


@dataclass(frozen=True)
class Metric:
    """A row of METRICS: expressions over the columns of `Predictions.frame`, for rows of the given tasks.

    `concerns` selects the rows that it is defined for.
    """

    title: str
    numerator: pl.Expr
    denominator: pl.Expr
    tasks: frozenset[str]
    lower_is_better: bool
    concerns: pl.Expr = EVERY

    def counts(self, predictions: pl.DataFrame) -> Counts:
        """Evaluate both expressions for every row; 0 and 0 where the metric is not defined."""
        parts = (
            pl.when(self.concerns).then(part.cast(pl.Float64)).otherwise(0.0).alias(name)
            for name, part in (("numerator", self.numerator), ("denominator", self.denominator))
        )
        found = predictions.select(*parts)
        return found["numerator"].to_numpy(), found["denominator"].to_numpy()


def edits(alignments: Sequence[Sequence[AlignmentChunk]]) -> list[int]:
    """Return the number of substitutions, insertions and deletions of each aligned pair."""

    def cost(chunk: AlignmentChunk) -> int:
        if chunk.type == "equal":
            return 0
        return max(chunk.ref_end_idx - chunk.ref_start_idx, chunk.hyp_end_idx - chunk.hyp_start_idx)

    return [sum(cost(chunk) for chunk in alignment) for alignment in alignments]


def count_errors(
    references: Sequence[str],
    hypotheses: Sequence[str],
    normalize: Normalizer,
    languages: Sequence[str],
) -> dict[str, list[int] | list[bool]]:
    """Return columns errors, words, char_errors, chars and exact of the pairs, after `normalize` on both sides.

    jiwer aligns words and characters (spaces count as characters). An empty reference has no words, and every word
    of its hypothesis is an error, as for sclite and Kaldi. `languages` are BCP 47 tags.
    """
    if not references:
        return {"errors": [], "words": [], "char_errors": [], "chars": [], "exact": []}
    said = list(map(normalize, references, languages))
    read = list(map(normalize, hypotheses, languages))
    words = jiwer.process_words(said, read)
    characters = jiwer.process_characters(said, read)
    return {
        "errors": edits(words.alignments),
        "words": [len(reference) for reference in words.references],
        "char_errors": edits(characters.alignments),
        "chars": [len(reference) for reference in characters.references],
        "exact": [a == b for a, b in zip(said, read, strict=True)],
    }


def metric(name: str) -> Metric:
    """Return a metric by its name; ValueError for an unknown one."""
    if name not in METRICS:
        raise ValueError(f"unknown metric {name!r}; known: {', '.join(METRICS)}")
    return METRICS[name]


def metrics_of(task: str) -> dict[str, Metric]:
    """Return the metrics of a task."""
    return {name: row for name, row in METRICS.items() if task in row.tasks}


_LISTED = pl.col("said").list.len() > 0  # rows with the answers of people
_SPOKEN, _ASKED, _CAPTIONED = frozenset({"transcribe"}), frozenset({"answer"}), frozenset({"caption"})


def _accuracy(title: str, hits: pl.Expr, of: pl.Expr = ONE, concerns: pl.Expr = EVERY) -> Metric:
    return Metric(title, hits, of, _ASKED, lower_is_better=False, concerns=concerns)


_AGREED, _HITS = pl.col("agreed_exact"), pl.col("said_hits")
METRICS: dict[str, Metric] = {
    "wer": Metric("WER", pl.col("errors"), pl.col("words"), _SPOKEN, True, concerns=SPACED),
    "cer": Metric("CER", pl.col("char_errors"), pl.col("chars"), _SPOKEN, True),
    "exact_match": Metric("exact match", pl.col("exact"), ONE, _SPOKEN, False),
    "accuracy": _accuracy("accuracy", pl.col("exact")),
    "token_f1": _accuracy("token F1", pl.col("token_f1")),
    "any_accuracy": _accuracy("accuracy, any answer", _HITS > 0, concerns=_LISTED),
    "raw_accuracy": _accuracy("accuracy, every answer", _HITS, pl.col("said").list.len(), qa.SEVERAL),
    "clean_accuracy": _accuracy("accuracy where most agree", _AGREED, concerns=qa.CLEAN),
    "unanimous_accuracy": _accuracy("accuracy where all agree", _AGREED, concerns=qa.UNANIMOUS),
    "binary_accuracy": _accuracy("accuracy where all agree on yes or no", _AGREED, concerns=qa.BINARY_ONLY),
    "single_word_accuracy": _accuracy(
        "accuracy where most agree on another word", _AGREED, concerns=qa.SINGLE_WORD
    ),
    "choice_accuracy": _accuracy(
        "accuracy of choices", pl.col("choice_exact"), concerns=pl.col("choice_exact").is_not_null()
    ),
    "rouge_l": Metric("ROUGE-L", pl.col("rouge_l"), ONE, _CAPTIONED, False),
}

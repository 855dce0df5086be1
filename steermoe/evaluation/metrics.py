"""Error counts of every utterance, and the metrics that are ratios of their sums.

A metric is a numerator and a denominator for each utterance; its value over a set is the ratio of the two
sums (micro average), so that the same counts serve the value, its interval and paired comparisons.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jiwer
import numpy as np
import polars as pl
from jiwer import AlignmentChunk

from steermoe.evaluation.normalizers import Normalizer

Counts = tuple[np.ndarray, np.ndarray]  # (utterances,) numerators, (utterances,) denominators, float64


@dataclass(frozen=True)
class Metric:
    """One row of METRICS: `counts(predictions)` for rows of the given tasks."""

    title: str
    counts: Callable[[pl.DataFrame], Counts]
    tasks: frozenset[str]
    lower_is_better: bool


def edits(alignments: Sequence[Sequence[AlignmentChunk]]) -> list[int]:
    """Substitutions, insertions and deletions of each aligned pair."""

    def cost(chunk: AlignmentChunk) -> int:
        if chunk.type == "equal":
            return 0
        return max(chunk.ref_end_idx - chunk.ref_start_idx, chunk.hyp_end_idx - chunk.hyp_start_idx)

    return [sum(cost(chunk) for chunk in alignment) for alignment in alignments]


def count_errors(
    references: Sequence[str], hypotheses: Sequence[str], normalize: Normalizer
) -> dict[str, list[int] | list[bool]]:
    """Columns errors, words, char_errors, chars and exact, one entry a pair, after `normalize` on both sides.

    Word and character alignments are jiwer's; spaces count as characters, as in jiwer's CER. An empty
    reference has no words, and every word of its hypothesis is an error.
    """
    if not references:
        return {"errors": [], "words": [], "char_errors": [], "chars": [], "exact": []}
    said = [normalize(text) for text in references]
    read = [normalize(text) for text in hypotheses]
    words = jiwer.process_words(said, read)
    characters = jiwer.process_characters(said, read)
    return {
        "errors": edits(words.alignments),
        "words": [len(reference) for reference in words.references],
        "char_errors": edits(characters.alignments),
        "chars": [len(reference) for reference in characters.references],
        "exact": [a == b for a, b in zip(said, read, strict=True)],
    }


def word_errors(predictions: pl.DataFrame) -> Counts:
    """Word errors against words of the reference."""
    return _columns(predictions, "errors", "words")


def character_errors(predictions: pl.DataFrame) -> Counts:
    """Character errors against characters of the reference."""
    return _columns(predictions, "char_errors", "chars")


def exact(predictions: pl.DataFrame) -> Counts:
    """Utterances that are right as a whole, after normalisation."""
    hits = predictions["exact"].cast(pl.Float64).to_numpy()
    return hits, np.ones_like(hits)


def _columns(predictions: pl.DataFrame, numerator: str, denominator: str) -> Counts:
    return (
        predictions[numerator].cast(pl.Float64).to_numpy(),
        predictions[denominator].cast(pl.Float64).to_numpy(),
    )


def metric(name: str) -> Metric:
    """The metric of that name; ValueError for another."""
    if name not in METRICS:
        raise ValueError(f"unknown metric {name!r}; known: {', '.join(METRICS)}")
    return METRICS[name]


def metrics_of(task: str) -> dict[str, Metric]:
    """The metrics that say something about rows of this task."""
    return {name: row for name, row in METRICS.items() if task in row.tasks}


METRICS: dict[str, Metric] = {
    "wer": Metric("WER", word_errors, frozenset({"transcribe"}), lower_is_better=True),
    "cer": Metric("CER", character_errors, frozenset({"transcribe"}), lower_is_better=True),
    "exact_match": Metric("exact match", exact, frozenset({"transcribe"}), lower_is_better=False),
    "accuracy": Metric("accuracy", exact, frozenset({"answer"}), lower_is_better=False),
}

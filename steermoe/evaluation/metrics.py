"""Error counts of every utterance, and the metrics that are ratios of their sums.

A metric is a numerator and a denominator for each utterance; its value over a set is the ratio of the two
sums (micro average), so that the same counts serve the value, its interval and paired comparisons.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import jiwer
import numpy as np
import polars as pl
from jiwer import AlignmentChunk

from steermoe.evaluation import answers
from steermoe.evaluation.answers import Constant, Floor, constant_of, most_alike
from steermoe.evaluation.normalizers import UNSPACED, Normalizer

Counts = tuple[np.ndarray, np.ndarray]  # (utterances,) numerators, (utterances,) denominators, float64
EVERY, ONE = pl.lit(True), pl.lit(1.0)
SPACED = ~pl.col("language").str.to_lowercase().str.split("-").list.first().is_in(UNSPACED)


@dataclass(frozen=True)
class Metric:
    """One row of METRICS: expressions over the columns of `Predictions.frame`, for rows of the given tasks.

    `concerns` are the rows that it says something about. `floor` finds the best constant answer, where one
    belongs beside it.
    """

    title: str
    numerator: pl.Expr
    denominator: pl.Expr
    tasks: frozenset[str]
    lower_is_better: bool
    concerns: pl.Expr = EVERY
    floor: Floor | None = None

    def counts(self, predictions: pl.DataFrame) -> Counts:
        """Both expressions of every row; 0 and 0 where the metric says nothing."""
        parts = (
            pl.when(self.concerns).then(part.cast(pl.Float64)).otherwise(0.0).alias(name)
            for name, part in (("numerator", self.numerator), ("denominator", self.denominator))
        )
        found = predictions.select(*parts)
        return found["numerator"].to_numpy(), found["denominator"].to_numpy()

    def rows(self, predictions: pl.DataFrame) -> int:
        """How many rows it says something about."""
        return predictions.filter(self.concerns).height

    def constant(self, predictions: pl.DataFrame) -> Constant | None:
        """The best constant answer and what it reaches; None where none belongs beside the metric."""
        return None if self.floor is None else self.floor(predictions.filter(self.concerns))


def edits(alignments: Sequence[Sequence[AlignmentChunk]]) -> list[int]:
    """Substitutions, insertions and deletions of each aligned pair."""

    def cost(chunk: AlignmentChunk) -> int:
        if chunk.type == "equal":
            return 0
        return max(chunk.ref_end_idx - chunk.ref_start_idx, chunk.hyp_end_idx - chunk.hyp_start_idx)

    return [sum(cost(chunk) for chunk in alignment) for alignment in alignments]


def count_errors(
    references: Sequence[str],
    hypotheses: Sequence[str],
    normalize: Normalizer,
    languages: Sequence[str] | None = None,
) -> dict[str, list[int] | list[bool]]:
    """Columns errors, words, char_errors, chars and exact, one entry a pair, after `normalize` on both sides.

    Word and character alignments are jiwer's; spaces count as characters, as in jiwer's CER. An empty
    reference has no words, and every word of its hypothesis is an error, as for sclite and Kaldi. `languages`
    are BCP 47 tags.
    """
    languages = ["und"] * len(references) if languages is None else languages
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
    """The metric of that name; ValueError for another."""
    if name not in METRICS:
        raise ValueError(f"unknown metric {name!r}; known: {', '.join(METRICS)}")
    return METRICS[name]


def metrics_of(task: str) -> dict[str, Metric]:
    """The metrics that say something about rows of this task, or some of them."""
    return {name: row for name, row in METRICS.items() if task in row.tasks}


_LISTED = pl.col("said").list.len() > 0  # rows whose answers are listed
_SPOKEN, _ASKED, _CAPTIONED = frozenset({"transcribe"}), frozenset({"answer"}), frozenset({"caption"})


def _of_answers(title: str, concerns: pl.Expr) -> Metric:
    floor = constant_of(pl.concat_list("agreed"))
    return Metric(title, pl.col("agreed_exact"), ONE, _ASKED, False, concerns, floor)


METRICS: dict[str, Metric] = {
    "wer": Metric("WER", pl.col("errors"), pl.col("words"), _SPOKEN, True, concerns=SPACED),
    "cer": Metric("CER", pl.col("char_errors"), pl.col("chars"), _SPOKEN, True),
    "exact_match": Metric("exact match", pl.col("exact"), ONE, _SPOKEN, False),
    "accuracy": Metric(
        "accuracy", pl.col("exact"), ONE, _ASKED, False,
        floor=constant_of(pl.concat_list("expected")),
    ),
    "token_f1": Metric(
        "token F1", pl.col("token_f1"), ONE, _ASKED, False,
        concerns=_LISTED, floor=most_alike,
    ),
    "any_accuracy": Metric(
        "accuracy, any answer", pl.col("said_hits") > 0, ONE, _ASKED, False,
        concerns=_LISTED, floor=constant_of(pl.col("said").list.unique(maintain_order=True)),
    ),
    "raw_accuracy": Metric(
        "accuracy, every answer", pl.col("said_hits"), pl.col("said").list.len(), _ASKED, False,
        concerns=answers.SEVERAL, floor=constant_of(pl.col("said"), answers_count=True),
    ),
    "clean_accuracy": _of_answers("accuracy where most agree", answers.CLEAN),
    "unanimous_accuracy": _of_answers("accuracy where all agree", answers.UNANIMOUS),
    "binary_accuracy": _of_answers("accuracy where all agree on yes or no", answers.BINARY_ONLY),
    "single_word_accuracy": _of_answers("accuracy where most agree on another word", answers.SINGLE_WORD),
    "choice_accuracy": Metric(
        "accuracy of choices", pl.col("choice_exact"), ONE, _ASKED, False,
        concerns=pl.col("choice_exact").is_not_null(),
    ),
    "rouge_l": Metric("ROUGE-L", pl.col("rouge_l"), ONE, _CAPTIONED, False),
}  # fmt: skip

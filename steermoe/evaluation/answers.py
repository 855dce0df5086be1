"""Answers against what people answered: protocols of question sets, token F1, and multiple choice.

Clotho-AQA (Lipping et al. 2022) has three people's answers to every question, and published figures on it differ
in which of them count:

- raw: every person's answer is an item. Where they disagree nobody can be right about all.
- clean: questions on which more than half agree; right is what they agree on.
- unanimous: questions on which all agree.
- binary, single-word: the clean questions on which they agree on yes or no, or on another single word.

Always giving the same answer reaches much of each, so the best constant answer belongs beside every figure.
"""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import polars as pl

from steermoe.evaluation.normalizers import Normalizer

BINARY = ("yes", "no")
COLUMNS = pl.Schema(
    {
        "said": pl.List(pl.String()),
        "said_hits": pl.Int64(),
        "agreed": pl.String(),
        "agreeing": pl.Int64(),
        "agreed_exact": pl.Boolean(),
        "token_f1": pl.Float64(),
        "choice_exact": pl.Boolean(),
    }
)
# Of the questions that several people answered, after normalisation; a question that one answered has no protocol.
SEVERAL = pl.col("said").list.len() > 1
CLEAN = SEVERAL & (2 * pl.col("agreeing") > pl.col("said").list.len())
UNANIMOUS = SEVERAL & (pl.col("agreeing") == pl.col("said").list.len())
BINARY_ONLY = CLEAN & pl.col("agreed").is_in(BINARY)
SINGLE_WORD = CLEAN & ~pl.col("agreed").is_in(BINARY) & ~pl.col("agreed").str.contains(" ")

# "B", "(b)", "B. a dog", "B: a dog"; "A dog" is no letter.
_LETTER = re.compile(r"\s*\(?([A-Za-z])(?:\)|[.:,]|\s*$)")
_NAMED = re.compile(r"\banswer(?:\s+is|\s*:)\s*(?:option\s+)?\(?([A-Z])\b(?!['\u2019])")


def count_answers(frame: pl.DataFrame, hypotheses: Sequence[str], normalize: Normalizer) -> pl.DataFrame:
    """Columns COLUMNS, a row for each of `frame` (columns task, target, answers, choices).

    said: the people's answers, normalised; empty for other tasks. said_hits: how many of them the hypothesis
    equals. agreed: the commonest of them (the first of several), agreeing: how many say it, agreed_exact:
    whether the hypothesis does. token_f1: against the nearest answer. choice_exact: whether the right option
    is chosen; null where there are none.
    """
    rows = [
        _counted(row, hypothesis, normalize)
        for row, hypothesis in zip(frame.iter_rows(named=True), hypotheses, strict=True)
    ]
    return pl.DataFrame(rows, schema=COLUMNS)


def _counted(row: dict[str, Any], hypothesis: str, normalize: Normalizer) -> dict[str, Any]:
    asked = row["task"] == "answer"
    said = [normalize(answer) for answer in row["answers"]] if asked else []
    read = normalize(hypothesis)
    (agreed, agreeing), *_ = Counter(said).most_common(1) or [("", 0)]
    references = said or ([normalize(row["target"])] if asked else [])
    chosen = None
    if row["choices"]:
        chosen = choice(hypothesis, row["choices"], normalize) == list(row["choices"]).index(row["target"])
    return {
        "said": said,
        "said_hits": said.count(read),
        "agreed": agreed,
        "agreeing": agreeing,
        "agreed_exact": bool(said) and read == agreed,
        "token_f1": max((token_f1(reference, read) for reference in references), default=0.0),
        "choice_exact": chosen,
    }


def token_f1(reference: str, hypothesis: str) -> float:
    """Harmonic mean of precision and recall over words, order apart (Rajpurkar et al. 2016); 1 if both are empty."""
    words, read = reference.split(), hypothesis.split()
    if not words or not read:
        return float(words == read)
    return 2 * sum((Counter(words) & Counter(read)).values()) / (len(words) + len(read))


def choice(hypothesis: str, choices: Sequence[str], normalize: Normalizer) -> int | None:
    """The option that a text chooses: by its letter at the start or after "answer is", or by being that option.

    None where it chooses none of them.
    """
    found = _LETTER.match(hypothesis) or _NAMED.search(hypothesis)
    if found:
        number = ord(found[1].upper()) - ord("A")
        return number if number < len(choices) else None
    options = [normalize(option) for option in choices]
    read = normalize(hypothesis)
    return options.index(read) if options.count(read) == 1 else None


def best_constant(rows: pl.DataFrame, concerns: pl.Expr, every: bool) -> tuple[str, float] | None:
    """The one answer that is right most often on the rows concerned, and its accuracy; None without such rows.

    `every` counts each person's answer, else what they agree on. Chosen on the rows themselves: no constant,
    wherever it was chosen, does better.
    """
    rows = rows.filter(concerns)
    texts = rows["said"].explode().to_list() if every and len(rows) else rows["agreed"].to_list()
    if not texts:
        return None
    text, count = Counter(texts).most_common(1)[0]
    return text, count / len(texts)

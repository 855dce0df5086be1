"""Answers against what people answered: protocols of question sets, token F1, and multiple choice.

Clotho-AQA (Lipping et al. 2022) has three people's answers to every question, and published figures on it differ
in which of them count:

- raw: every person's answer is an item. Where they disagree nobody can be right about all.
- clean: questions on which more than half agree; right is what they agree on.
- unanimous: questions on which all agree.
- binary: the unanimous ones on which they agree on yes or no.
- single-word: the clean ones on which they agree on another single word.

Always giving the same answer reaches much of each, so the best constant answer belongs beside every figure.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import polars as pl

from steermoe.evaluation.captions import rouge_l
from steermoe.evaluation.choosing import choice, spelled_out
from steermoe.evaluation.normalizers import Normalizer

Constant = tuple[str, float]  # a text, and what it reaches
Floor = Callable[[pl.DataFrame], Constant | None]  # the best constant of some rows; None without rows
BINARY = ("yes", "no")
COLUMNS = pl.Schema(
    {
        "expected": pl.String(),
        "said": pl.List(pl.String()),
        "said_hits": pl.Int64(),
        "agreed": pl.String(),
        "agreeing": pl.Int64(),
        "agreed_exact": pl.Boolean(),
        "token_f1": pl.Float64(),
        "choice_exact": pl.Boolean(),
        "rouge_l": pl.Float64(),
    }
)
# Of the questions that several people answered, after normalisation; a question that one answered has no protocol.
SEVERAL = pl.col("said").list.len() > 1
CLEAN = SEVERAL & (2 * pl.col("agreeing") > pl.col("said").list.len())
UNANIMOUS = SEVERAL & (pl.col("agreeing") == pl.col("said").list.len())
BINARY_ONLY = UNANIMOUS & pl.col("agreed").is_in(BINARY)
SINGLE_WORD = CLEAN & ~pl.col("agreed").is_in(BINARY) & ~pl.col("agreed").str.contains(" ")


def count_answers(frame: pl.DataFrame, hypotheses: Sequence[str], normalize: Normalizer) -> pl.DataFrame:
    """Columns COLUMNS, a row for each of `frame` (columns task, target, answers, choices; language and prompt,
    where there are any).

    expected: the target, normalised. said: the people's answers, normalised; empty for other tasks. said_hits:
    how many of them the hypothesis equals. agreed: the commonest of them (the first of several), agreeing: how
    many say it, agreed_exact: whether the hypothesis does. token_f1: against the nearest answer. choice_exact:
    whether the right option is chosen; null where there are none. rouge_l: of a caption, against all that people
    gave.
    """
    rows = [
        _counted(row, hypothesis, normalize)
        for row, hypothesis in zip(frame.iter_rows(named=True), hypotheses, strict=True)
    ]
    return pl.DataFrame(rows, schema=COLUMNS)


def _counted(row: dict[str, Any], hypothesis: str, normalize: Normalizer) -> dict[str, Any]:
    asked, captioned = row["task"] == "answer", row["task"] == "caption"
    language = row.get("language", "und")
    given = [normalize(answer, language) for answer in row["answers"]]
    expected, read = normalize(row["target"], language), normalize(hypothesis, language)
    said = given if asked else []
    (agreed, agreeing), *_ = Counter(said).most_common(1) or [("", 0)]
    references = said or [expected] * asked
    chosen = None
    if row["choices"]:
        options = spelled_out(row.get("prompt", ""), row["choices"])
        chosen = choice(hypothesis, options, normalize) == list(row["choices"]).index(row["target"])
    return {
        "expected": expected,
        "said": said,
        "said_hits": said.count(read),
        "agreed": agreed,
        "agreeing": agreeing,
        "agreed_exact": bool(said) and read == agreed,
        "token_f1": max((token_f1(reference, read) for reference in references), default=0.0),
        "choice_exact": chosen,
        "rouge_l": rouge_l(given or [expected], read) if captioned else 0.0,
    }


def token_f1(reference: str, hypothesis: str) -> float:
    """Harmonic mean of precision and recall over words, order apart (Rajpurkar et al. 2016); 1 if both are empty."""
    words, read = reference.split(), hypothesis.split()
    if not words or not read:
        return float(words == read)
    return 2 * sum((Counter(words) & Counter(read)).values()) / (len(words) + len(read))


def constant_of(right: pl.Expr, answers_count: bool = False) -> Floor:
    """A floor: the text that is right most often, and its accuracy.

    Chosen on the rows themselves: no constant, wherever it was chosen, does better.

    Args:
        right: expression of the list of texts that are right about a row.
        answers_count: accuracy is a share of all those texts, not of the rows.
    """

    def floor(rows: pl.DataFrame) -> Constant | None:
        texts = rows.select(right.explode()).to_series().drop_nulls().to_list()
        if not texts:
            return None
        text, count = Counter(texts).most_common(1)[0]
        return text, count / (len(texts) if answers_count else len(rows))

    return floor


def most_alike(rows: pl.DataFrame) -> Constant | None:
    """A floor: of the answers that people gave to these rows, the one of the highest mean token F1.

    A constant that nobody gave ("yes no") may reach more. Rows without a word in common count 0, so an answer is
    tried only on the others.
    """
    answers: list[list[str]] = rows["said"].to_list()
    with_word: defaultdict[str, set[int]] = defaultdict(set)
    for row, texts in enumerate(answers):
        for word in " ".join(texts).split():
            with_word[word].add(row)
    reached: dict[str, set[int]] = {}
    for text in dict.fromkeys(text for texts in answers for text in texts):
        reached[text] = set().union(*(with_word[word] for word in text.split()))
    best: Constant | None = None
    for text, near in sorted(reached.items(), key=lambda item: -len(item[1])):
        if best is not None and len(near) <= best[1] * len(answers):
            break  # none of the rest can do better
        total = sum(max(token_f1(answer, text) for answer in answers[row]) for row in near)
        if best is None or total > best[1] * len(answers):
            best = text, total / len(answers)
    return best

"""What a score on Clotho-AQA can be at all: an oracle over the three answers, and a constant answer.

Protocols: raw, every row of the csv; clean, questions on whose answer at least two of three agree; unanimous,
all three; binary, the unanimous ones answered with yes or no.
"""

from pathlib import Path
from typing import Literal

import polars as pl

Protocol = Literal["raw", "clean", "unanimous", "binary"]
PROTOCOLS: tuple[Protocol, ...] = ("raw", "clean", "unanimous", "binary")
COLUMNS = ("file_name", "QuestionText", "answer")
ANSWERS = 3  # to a question


def read(path: Path) -> pl.DataFrame:
    """The answers of a csv of Clotho-AQA, case and surrounding blanks aside.

    Raises:
        ValueError: it is no such csv, or a question has not three answers.
    """
    try:
        rows = pl.read_csv(path, infer_schema=False)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise ValueError(f"{path}: no csv that can be read: {error}") from error
    if missing := [name for name in COLUMNS if name not in rows.columns]:
        raise ValueError(f"{path}: lacks the columns {', '.join(missing)}; found: {', '.join(rows.columns)}")
    rows = rows.select(COLUMNS).with_columns(pl.col("answer").str.strip_chars().str.to_lowercase())
    per_question = rows.group_by("file_name", "QuestionText").len().filter(pl.col("len") % ANSWERS != 0)
    if per_question.height:
        name, question, count = per_question.row(0)
        raise ValueError(f"{path}: {name}, {question!r}: found {count} answers; legal: {ANSWERS} a question")
    return rows


def ceilings(rows: pl.DataFrame) -> dict[str, dict[str, float]]:
    """For every protocol: `items` scored, share that an `oracle` gets right, and the best `constant` answer."""
    votes = rows.group_by("file_name", "QuestionText", "answer").len("votes")
    keys = ["file_name", "QuestionText"]
    asked = votes.group_by(keys).agg(
        pl.col("votes").max().alias("most"),
        pl.col("votes").sum().alias("answers"),
        pl.col("answer").sort_by("votes", "answer", descending=[True, False]).first(),
    )
    found = {"raw": _figures(rows["answer"], int(asked["most"].sum()) / rows.height)}
    agreed = {
        "clean": asked.filter(pl.col("most") * 3 >= pl.col("answers") * 2),
        "unanimous": asked.filter(pl.col("most") == pl.col("answers")),
    }
    agreed["binary"] = agreed["unanimous"].filter(pl.col("answer").is_in(["yes", "no"]))
    for protocol, kept in agreed.items():
        found[protocol] = _figures(kept["answer"], 1.0)
    return found


def _figures(answers: pl.Series, oracle: float) -> dict[str, float]:
    if answers.is_empty():
        return {"items": 0, "oracle": float("nan"), "constant": float("nan")}
    return {
        "items": answers.len(),
        "oracle": oracle,
        "constant": (answers == answers.mode().sort()[0]).mean(),
    }

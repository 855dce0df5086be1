"""Questions with a choice of answers, as text: the question, then `(A) first`, `(B) second`, a line each."""

import string
from collections.abc import Sequence

from steermoe.corpora.archives import ArchiveError


def ask(question: str, choices: Sequence[str]) -> str:
    """The question with its choices; the question alone where there are none."""
    listed = [f"({letter}) {choice}" for letter, choice in zip(string.ascii_uppercase, choices, strict=False)]
    return "\n".join([question, *listed])


def offered(choices: Sequence[str], kind: str) -> tuple[str, ...]:
    """The options as one of them is to be given: letters or texts (`kind` as in `right`)."""
    return tuple(choices) if kind == "text" else tuple(string.ascii_uppercase[: len(choices)])


def fault(answer: str | None, choices: Sequence[str]) -> str | None:
    """What is wrong with an answer: it is not among the choices, or those are too many for letters; else None."""
    if answer in choices and len(choices) <= len(string.ascii_uppercase):
        return None
    return f"found answer {answer!r}, expected one of {list(choices)}"


def right(answer: str, choices: Sequence[str], kind: str, place: str) -> str:
    """The right answer as it is to be given.

    Args:
        kind: `letter` of the choice, or its `text`.
        place: of the question, for messages.

    Raises:
        ArchiveError: the answer is not among the choices, or there are too many of them.
    """
    if wrong := fault(answer, choices):
        raise ArchiveError(f"{place}: {wrong}")
    return answer if kind == "text" else string.ascii_uppercase[list(choices).index(answer)]

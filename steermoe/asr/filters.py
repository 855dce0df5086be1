"""What cannot be what was said, although an LLM wrote it."""

import re

LETTERS_A_SECOND = 40  # that nobody exceeds: fast English has 20 to 25
REFUSALS = re.compile(
    r"\bas an ai\b|\bas a (large )?language model\b"
    r"|\b(can ?not|can't|unable to|not able to) (transcribe|listen|hear|process|access)\b.*\b(audio|recording)",
    re.IGNORECASE,
)


def doubt(text: str, seconds: float) -> str:
    """Why a text cannot be what was said in so many seconds; "" where it can."""
    if refusal := REFUSALS.search(text):
        return f"a refusal ({refusal.group()!r})"
    if len(text) > LETTERS_A_SECOND * seconds:
        return f"{len(text)} letters in {seconds:.1f} s"
    return ""

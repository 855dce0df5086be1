"""The sections about language: what the LLM is asked, and how it answers."""

import string
from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from steermoe.config.problems import illegal
from steermoe.config.sections import Count, Positive, Section, Text


class Prompts(Section):
    """What the LLM reads around the audio: its format, and the text between audio and answer, per task."""

    format: Literal["plain", "chat"]
    system: Text | None
    transcribe: Text
    answer: Text
    caption: Text
    summarize: Text
    emotion: Text

    @field_validator("system")
    @classmethod
    def _in_a_chat(cls, text: str | None, info: ValidationInfo) -> str | None:
        if text is not None and info.data.get("format") == "plain":
            raise illegal("null, as prompts.format is plain")
        return text

    @field_validator("transcribe", "answer", "caption", "summarize", "emotion")
    @classmethod
    def _placeholders(cls, template: str, info: ValidationInfo) -> str:
        asks = info.field_name == "answer"
        try:
            parsed = list(string.Formatter().parse(template))
        except ValueError:
            parsed = [("", "", "", "")]
        if [tuple(parts) for _, *parts in parsed if parts[0] is not None] != [("question", "", None)] * asks:
            raise illegal("text with {question} in it, once" if asks else "text without { and }")
        return template


class Generation(Section):
    """How answers are decoded."""

    max_new_tokens: Count
    min_new_tokens: Annotated[int, Field(ge=0)]
    strategy: Literal["greedy", "beam", "sample"]
    num_beams: Annotated[int, Field(ge=2)] | None
    temperature: Positive | None
    top_p: Annotated[float, Field(gt=0, le=1)] | None
    no_repeat_ngram_size: Count | None
    max_repeats: Count | None

    @field_validator("min_new_tokens")
    @classmethod
    def _within(cls, least: int, info: ValidationInfo) -> int:
        most = info.data.get("max_new_tokens", least)
        if least > most:
            raise illegal(f"at most generation.max_new_tokens, which is {most}")
        return least

    @field_validator("num_beams", "temperature", "top_p")
    @classmethod
    def _of_the_strategy(cls, value: float | None, info: ValidationInfo) -> float | None:
        strategy, needs = info.data.get("strategy"), "beam" if info.field_name == "num_beams" else "sample"
        if strategy is not None and strategy != needs and value is not None:
            raise illegal(f"null, as generation.strategy is {strategy}")
        if strategy == needs and value is None and info.field_name != "top_p":
            raise illegal(f"a number, as generation.strategy is {strategy}")
        return value

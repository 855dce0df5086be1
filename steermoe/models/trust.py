"""What speaks against an answer: a recording without speech, an LLM that is not sure, models that know few words."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from steermoe.audio.vad import silent, speaks
from steermoe.config.corpora import SOUNDS
from steermoe.models.tools import Answer

if TYPE_CHECKING:
    from steermoe.models.steermoe import SteerMoE

NO_SPEECH = "no speech was found in the recording, so nothing was asked"
# Of 0..1. Below are 4 % of the segments that the mini adapters make of clean synthetic speech, 31 % of noisy, 70 % of
# sentences with words that they do not know, and 93 % of spoken numbers of people.
UNSURE = 0.65
NOTICE = "notice"  # key of a frozen model's config.json
log = logging.getLogger(__name__)


def unanswerable(model: SteerMoE, samples: np.ndarray, asked: bool) -> bool:
    """Whether there is nothing in a waveform (n,) to write down, or to ask about.

    A question to a model that was trained on sounds may be about any sound; all else is about speech.

    Args:
        asked: there is a question, or a prompt of its own.
    """
    about_sounds = asked and not SOUNDS.isdisjoint(model.config.train_splits)
    return silent(samples) if about_sounds else not speaks(samples)


def nothing_heard() -> Answer:
    """The answer to a recording without speech."""
    return Answer("", warnings=(NO_SPEECH,))


def rated(answer: Answer, confidence: float | None) -> Answer:
    """An answer with its confidence, and a warning where that is low."""
    warnings = answer.warnings
    if confidence is not None and confidence < UNSURE:
        warnings = (*warnings, f"low confidence ({confidence:.2f}): it may not be what was said")
    return replace(answer, confidence=confidence, warnings=warnings)


def notice(model: Any) -> str | None:
    """What the configurations of its frozen models say of them (key `notice`), in one line; None: nothing."""
    frozen = [getattr(getattr(model, "encoder", None), "model", None), model.llm]
    said = [getattr(getattr(each, "config", None), NOTICE, None) for each in frozen]
    return "; ".join(dict.fromkeys(text for text in said if text)) or None


@functools.cache
def say_once(text: str | None) -> None:
    """Log a notice, the first time in this process."""
    if text:
        log.warning(text)


def say(warnings: Iterable[str], about: str) -> None:
    """Log what speaks against an answer."""
    for warning in warnings:
        log.warning("%s: %s", about, warning)

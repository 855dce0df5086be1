"""The frozen teacher that a student learns from.

Shapes: N target tokens of a batch, G width of the teacher's LLM.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch

from steermoe import config
from steermoe.audio.io import RATE
from steermoe.models.llm import logits
from steermoe.models.losses import Lesson
from steermoe.models.steermoe import SteerMoE

SETTING = "training.distillation.teacher"


class Teacher:
    """Predicts the batches of a student, frozen and in evaluation mode.

    It is not a module, so that it is not trained, saved or moved with the student; it moves to where its batches are.

    Attributes:
        model: the teacher.

    Args:
        section: which teacher, and what is learned from it.
        student: the model that learns.

    Raises:
        ValueError: the teacher cannot be loaded, or its features, prompts or tokenizer are not the student's.
    """

    def __init__(self, section: config.Distillation, student: SteerMoE) -> None:
        self.section = section
        try:
            self.model = SteerMoE.from_pretrained(section.teacher).requires_grad_(False)
        except ValueError as error:
            raise ValueError(f"{SETTING}: {error}") from error
        for what, own, wanted in _alike(self.model, student, section):
            if own != wanted:
                raise ValueError(
                    f"{SETTING}: found {section.teacher!r}, whose {what} is {own!r}, the student's is {wanted!r}; "
                    "legal: an adapter where both are the same"
                )

    @classmethod
    def of(cls, student: SteerMoE) -> "Teacher | None":
        """Return the teacher that the student's configuration names; None where it learns from the labels alone."""
        section = student.config.training.distillation
        return None if section is None else cls(section, student)

    @torch.no_grad()
    def lesson(self, batch: Mapping[str, torch.Tensor]) -> Lesson:
        """Return what the teacher predicts of a batch, as the collator makes it."""
        device = batch["features"].device
        if self.model.device != device:
            self.model.to(device)
        hidden_NG, _ = self.model.target_hidden_states(**batch)
        return Lesson(self.section, hidden_NG, partial(logits, self.model.llm))


def _alike(
    teacher: SteerMoE, student: SteerMoE, section: config.Distillation
) -> Iterator[tuple[str, Any, Any]]:
    """Yield what must be the same in both: its name, the teacher's value, the student's."""
    yield "video branch", teacher.config.video is not None, student.config.video is not None
    own, wanted = teacher.features(_noise()), student.features(_noise())
    yield "kind of features", type(teacher.features).__name__, type(student.features).__name__
    yield "features of a second of noise", tuple(own.shape), tuple(wanted.shape)
    yield "features' mean and deviation of a second of noise", _statistics(own), _statistics(wanted)
    vocabularies = teacher.tokenizer.get_vocab(), student.tokenizer.get_vocab()
    if vocabularies[0] != vocabularies[1]:
        others = len(vocabularies[0].items() - vocabularies[1].items())
        sizes = [f"of {len(vocabulary)} tokens" for vocabulary in vocabularies]
        yield "tokenizer", f"{sizes[0]}, {others} of them not in the student's as they are", sizes[1]
    is_chat = student.config.prompts.format == "chat"
    for name in ("eos_token", "chat_template") if is_chat else ("eos_token",):
        yield f"tokenizer's {name}", getattr(teacher.tokenizer, name), getattr(student.tokenizer, name)
    for name in type(student.config.prompts).model_fields:
        yield f"prompts.{name}", getattr(teacher.config.prompts, name), getattr(student.config.prompts, name)
    if section.hidden:
        own, wanted = (model.llm.config.get_text_config().hidden_size for model in (teacher, student))
        yield "LLM's width, which hidden compares,", own, wanted


def _statistics(features_MT: torch.Tensor) -> tuple[float, float]:
    """Return mean and deviation, which differ where filters or normalisations do."""
    return round(features_MT.mean().item(), 4), round(features_MT.std().item(), 4)


def _noise() -> np.ndarray:
    """Return a second of noise, of which all kinds of features differ."""
    return 0.1 * np.random.default_rng(0).standard_normal(RATE).astype(np.float32)

"""Prompts as the LLM reads them."""

import pytest

from steermoe.config import Prompts
from steermoe.data.prompts import TASKS, render

PROMPTS = Prompts(
    format="plain", system=None, transcribe="write down: ", answer="the question is: {question}. answer: "
)


def test_templates():
    assert render(PROMPTS, "transcribe", "") == "write down: "
    assert render(PROMPTS, "answer", "who {won}, 100 %?") == "the question is: who {won}, 100 %?. answer: "


def test_every_task_has_a_template():
    assert {"format", "system", *TASKS} == set(Prompts.model_fields)


def test_unknown_task():
    with pytest.raises(ValueError, match="unknown task 'translate'; one of: transcribe, answer"):
        render(PROMPTS, "translate", "")

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jiwer
import polars as pl
import pytest

from steermoe.config import Evaluation, Generation
from steermoe.data.prompts import render
from steermoe.evaluation.evaluator import measure
from steermoe.evaluation.floors import constant, most_frequent, template_guess, text_only
from steermoe.evaluation.normalizers import as_written, folded
from steermoe.models.generation import answer_texts
from steermoe.models.steermoe import SteerMoE

SAID = ["ann has two cats", "ann has two dogs", "bob has two cats", "rain"]
ANSWERED = ["Red.", "red", "blue", "two"]
TRAIN = pl.DataFrame({"task": ["transcribe"] * 4 + ["answer"] * 4, "target": SAID + ANSWERED})


def test_template_guess_has_the_fewest_errors_of_all() -> None:
    texts = TRAIN.filter(task="transcribe")["target"].to_list()
    guess = template_guess(texts, as_written, seed=0)
    rates = {text: jiwer.wer(texts, [text] * len(texts)) for text in texts}
    assert guess in texts and rates[guess] == min(rates.values()) < sorted(rates.values())[1]


def test_template_guess_is_sampled_by_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("steermoe.evaluation.floors.CANDIDATES", 1)
    texts = [str(number) for number in range(30)]
    guesses = {template_guess(texts, as_written, seed) for seed in range(5)}
    assert len(guesses) > 1
    assert template_guess(texts, as_written, 1) == template_guess(texts, as_written, 1)


def test_most_frequent_counts_after_normalisation() -> None:
    texts = ["blue", "Red.", "two", "red", "blue"]
    assert most_frequent([*texts, "RED"], folded, 0) == "Red."
    assert most_frequent(texts, as_written, 0) == "blue"


def test_constants_come_from_the_training_rows(utterances: pl.DataFrame, settings: Evaluation) -> None:
    system = constant(TRAIN, utterances, settings, seed=0)
    rows = measure(system, utterances, settings, seed=0).frame
    assert rows.filter(task="answer")["hypothesis"].unique().to_list() == ["Red."]
    assert rows.filter(task="transcribe")["hypothesis"].unique().to_list() == ["ann has two cats"]
    assert system.decoding.count("chosen on the training rows") == 2


def test_a_task_without_training_rows_uses_the_evaluated_ones_and_says_so(
    utterances: pl.DataFrame, settings: Evaluation
) -> None:
    system = constant(TRAIN.filter(task="transcribe"), utterances, settings, seed=0)
    rows = measure(system, utterances, settings, seed=0).frame.filter(task="answer")
    answers = utterances.filter(task="answer")["target"]
    assert rows["exact"].sum() == answers.value_counts()["count"].max()
    assert "chosen on the evaluated rows themselves" in system.decoding


def test_text_only_is_the_llms_answer_to_the_prompt(
    tiny_variant: Callable[..., Any], utterances: pl.DataFrame, settings: Evaluation, generation: Generation
) -> None:
    model = SteerMoE.from_config(tiny_variant("linear"))
    system = text_only(model, generation, seed=0)
    assert system.decoding.startswith("greedy, at most 6 new tokens") and "no audio" in system.decoding
    rows = measure(system, utterances, settings, seed=0).frame
    for task, question in (("transcribe", ""), ("answer", "what is red?")):
        prompt = model.tokenizer(render(model.config.prompts, task, question))["input_ids"]
        [expected] = answer_texts(model.llm, model.tokenizer, [prompt], generation, seed=0)
        assert rows.filter(task=task)["hypothesis"].unique().to_list() == [expected]


def test_text_only_reads_the_chat_that_the_adapter_reads(
    tiny_variant: Callable[..., Any], tiny_chat_dir: Path, utterances: pl.DataFrame, generation: Generation
) -> None:
    variant = tiny_variant("linear", {"llm.path": str(tiny_chat_dir), "prompts.format": "chat"})
    model = SteerMoE.from_config(variant)
    text = "<|im_start|>user\nplease transcribe the audio:<|im_end|>\n<|im_start|>assistant\n"
    ids = model.tokenizer(text)["input_ids"]
    expected = answer_texts(model.llm, model.tokenizer, [ids], generation, seed=0)
    assert [text for _, text in text_only(model, generation, seed=0).respond([utterances[:1]])] == expected

"""What a system reaches that never listens: the bars below which audio plays no part.

`constant`: one text for all rows of a task, the best that the training texts offer. `text_only`: the frozen
LLM's own answer to the prompt without any audio.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import jiwer
import numpy as np
import polars as pl
import torch

from steermoe.config import Evaluation, Generation
from steermoe.data.prompts import encode_prompt
from steermoe.evaluation.evaluator import System, batchwise
from steermoe.evaluation.metrics import edits
from steermoe.evaluation.normalizers import Normalizer, normalizer
from steermoe.models.generation import answer_texts, describe
from steermoe.models.steermoe import SteerMoE

CANDIDATES = 200  # transcripts that are tried as the constant
JUDGES = 500  # transcripts that they are tried against


@dataclass(frozen=True)
class Constant:
    """The text and the rows it was chosen on."""

    text: str
    chosen_on: str


def constant(train: pl.DataFrame, test: pl.DataFrame, settings: Evaluation, seed: int) -> System:
    """The most frequent answer for rows to answer, the template guess for rows to transcribe or to caption.

    `train` and `test` need the columns task and target. Where no training row has a task, its constant comes
    from the test rows themselves (the highest such floor), and the protocol says so.
    """
    chosen: dict[str, Constant] = {}
    for task in test["task"].unique(maintain_order=True):
        name, rows = "training rows", train.filter(task=task)
        if rows.is_empty():
            name, rows = "evaluated rows themselves", test.filter(task=task)
        choose = most_frequent if task == "answer" else template_guess
        text = choose(rows["target"].to_list(), normalizer(settings.normalizer), seed)
        chosen[task] = Constant(text, name)
    described = "; ".join(f"{task}: {c.text!r}, chosen on the {c.chosen_on}" for task, c in chosen.items())

    def respond(rows: pl.DataFrame) -> list[str]:
        return [chosen[task].text for task in rows["task"]]

    return System(batchwise(respond), f"one text for all rows ({described})", "none")


def most_frequent(texts: Sequence[str], normalize: Normalizer, seed: int) -> str:
    """The text that most others equal after normalisation, in its first spelling; the earlier wins a tie."""
    spelled: dict[str, str] = {}
    for text in texts:
        spelled.setdefault(normalize(text), text)
    (commonest, _), *_ = Counter(normalize(text) for text in texts).most_common(1)
    return spelled[commonest]


def template_guess(texts: Sequence[str], normalize: Normalizer, seed: int) -> str:
    """The transcript with the fewest word errors as an answer to all: the words that every statement shares.

    A seeded sample of at most CANDIDATES distinct texts is tried against a seeded sample of at most JUDGES.
    """
    rng = np.random.default_rng(seed)

    def sample(texts: Sequence[str], most: int) -> list[str]:
        return [texts[int(row)] for row in rng.permutation(len(texts))[:most]]

    candidates = sample(list(dict.fromkeys(texts)), CANDIDATES)
    judges = [normalize(text) for text in sample(texts, JUDGES)]

    def errors(candidate: str) -> int:
        guesses = [normalize(candidate)] * len(judges)
        return sum(edits(jiwer.process_words(judges, guesses).alignments))

    return min(candidates, key=errors)


def text_only(model: SteerMoE, generation: Generation, seed: int) -> System:
    """The frozen LLM's answer to each row's prompt alone, in the format that the adapter has it."""

    @torch.inference_mode()
    def respond(rows: pl.DataFrame) -> list[str]:
        prompts = []
        for task, question in rows.select("task", "prompt").iter_rows():
            prompt = encode_prompt(model.config.prompts, model.tokenizer, task, question)
            prompts.append(prompt.prefix + prompt.suffix)
        return answer_texts(model.llm, model.tokenizer, prompts, generation, seed)

    return System(batchwise(respond), f"{describe(generation, seed)}, no audio", str(model.device))

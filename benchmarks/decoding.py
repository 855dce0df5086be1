"""Decoding alone: continuous batching beside batches that wait for their longest answer.

    python -m benchmarks.decoding [--sentences 400] [--rows 8 16 32 64] [--repeats 3]

The prompts, audio encoded, are there beforehand; those of a batch are of like length in both ways. `computed` is how
many token positions the LLM computes behind the prompts for each token of an answer: rows that have ended, and wait,
are among them. CPU seconds, the ways in turns.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch

from benchmarks.inference import sentences
from benchmarks.shapes import machine, spread, table
from steermoe import SteerMoE
from steermoe.data.dataset import collate, make_item
from steermoe.data.prompts import encode_texts, texts_around
from steermoe.models.continuous_batching import DecodeSlots, Prompt, answers
from steermoe.models.generation import GREEDY, decode, log_likelihoods
from steermoe.models.inference import prompts_of
from steermoe.models.packing import pack

Decode = Callable[[], dict[int, list[int]]]


def encoded(model: SteerMoE, count: int) -> list[Prompt]:
    """Prompts of so many sentences, the shortest first."""
    texts = texts_around(model.config.prompts, model.tokenizer, model.config.prompts.transcribe, None)
    ids = encode_texts(model.tokenizer, *texts)
    found = []
    for key, samples in enumerate(sentences(count / 12)[:count]):
        batch = collate([make_item(model.features(samples), ids)])
        found += prompts_of(partial(model.read_prompt, ctc_weight=0.0), batch, [key])
    return sorted(found, key=lambda prompt: len(prompt.embeddings))


def in_batches(model: SteerMoE, asked: list[Prompt], rows: int, scored: bool) -> dict[int, list[int]]:
    """By transformers' `generate`, batch by batch."""
    found = {}
    for first in range(0, len(asked), rows):
        batch = asked[first : first + rows]
        lengths = torch.tensor([len(prompt.embeddings) for prompt in batch])
        padded = torch.nn.utils.rnn.pad_sequence([p.embeddings for p in batch], batch_first=True)
        packed = pack([padded], [lengths], "left")
        ids = decode(model.llm, *packed, GREEDY)
        if scored:
            log_likelihoods(model.llm, *packed, ids)
        found |= zip([prompt.key for prompt in batch], ids, strict=True)
    return found


def continuously(model: SteerMoE, asked: list[Prompt], rows: int, scored: bool) -> dict[int, list[int]]:
    """Where one ends, the next takes its place."""
    slots = DecodeSlots(model.llm, GREEDY, scored)
    return {key: ids for key, ids, _ in answers(slots, asked, rows)}


def measured(model: SteerMoE, way: Decode) -> tuple[float, int, dict[int, list[int]]]:
    """CPU seconds, rows of single tokens that were computed, and the answers."""
    count = 0

    def add(_: object, __: object, inputs: dict) -> None:
        nonlocal count
        rows, width = inputs["inputs_embeds" if inputs.get("input_ids") is None else "input_ids"].shape[:2]
        count += rows * (width == 1)

    counting = model.llm.base_model.register_forward_pre_hook(add, with_kwargs=True)
    began = time.process_time()
    found = way()
    took = time.process_time() - began
    counting.remove()
    return took, count, found


def main() -> None:
    """Print a table in Markdown."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sentences", type=int, default=400)
    parser.add_argument("--rows", type=int, nargs="+", default=[8, 16, 32, 64])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--model", default="pretrained/adapters/mini/steermoe")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    model = SteerMoE.from_pretrained(chosen.model)
    asked = encoded(model, chosen.sentences)
    tokens = 0
    print(machine(), "\n")
    lines = []
    for rows in chosen.rows:
        for scored in (False, True):
            cpu: dict[str, list[float]] = {"batches": [], "continuous": []}
            computed: dict[str, int] = {}
            for _ in range(chosen.repeats):
                texts = {}
                for name, way in (("batches", in_batches), ("continuous", continuously)):
                    took, computed[name], texts[name] = measured(
                        model, partial(way, model, asked, rows, scored)
                    )
                    cpu[name].append(took)
                assert texts["batches"] == texts["continuous"]
                tokens = sum(len(ids) for ids in texts["continuous"].values())
            times = [a / b for a, b in zip(cpu["batches"], cpu["continuous"], strict=True)]
            per_token = [f"{computed[name] / tokens:.2f}" for name in cpu]
            lines.append(
                [f"{rows}, {'with' if scored else 'without'} likelihoods", *per_token, spread(cpu["batches"]),
                 spread(cpu["continuous"]), f"{statistics.median(times):.2f}"]
            )  # fmt: skip
    head = ["rows", "computed, batches", "continuous", "CPU s, batches", "continuous", "times"]
    print(f"{len(asked)} answers, {tokens} tokens; median [least, most]\n")
    print(table(head, lines))


if __name__ == "__main__":
    main()

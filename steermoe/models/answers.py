"""Recordings to answers, in batches: what `SteerMoE.transcribe` and `SteerMoE.ask` do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from steermoe.audio import waveform
from steermoe.config import Generation
from steermoe.data.batching import bucketed_batches
from steermoe.data.collator import INPUTS, collate
from steermoe.data.dataset import Item
from steermoe.data.prompts import encode_prompt, prompt_texts
from steermoe.models.tools import Answer, check_tools, read_answer

if TYPE_CHECKING:
    from steermoe.models.steermoe import SteerMoE

Audio = str | Path | np.ndarray
BATCH_SECONDS = 120.0  # padding included


def answer_all(
    model: SteerMoE,
    audio: Sequence[Audio],
    question: str | None,
    tools: Sequence[dict] | None,
    generation: Generation,
    seed: int,
) -> list[Answer]:
    """The answer to each recording; arguments and errors are those of `SteerMoE.ask`."""
    if tools is not None:
        check_tools(tools)
    asked = "transcribe" if question is None else "answer", question or "", tools
    prompt = encode_prompt(model.config.prompts, model.tokenizer, *asked)
    opening = prompt_texts(model.config.prompts, model.tokenizer, *asked)[1]
    waveforms = [a if isinstance(a, np.ndarray) else waveform.load(a) for a in audio]
    seconds = [len(samples) / waveform.RATE for samples in waveforms]
    answers: dict[int, Answer] = {}
    for rows in bucketed_batches(seconds, BATCH_SECONDS, seed=None, epoch=0):
        items: list[Item] = [
            {
                "features": model.features(waveforms[row]),
                "prefix_ids": prompt.prefix,
                "prompt_ids": prompt.suffix,
                "target_ids": [],
                "index": row,
            }
            for row in rows
        ]
        batch = collate(items)
        inputs = {name: batch[name].to(model.device) for name in INPUTS}
        for row, ids in zip(rows, model.generate(**inputs, generation=generation, seed=seed), strict=True):
            answers[row] = read_answer(ids, model.tokenizer, tools, opening)
    return [answers[row] for row in range(len(waveforms))]

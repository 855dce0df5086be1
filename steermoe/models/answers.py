"""Recordings to answers, in batches: what `SteerMoE.transcribe` and `SteerMoE.ask` do."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from steermoe.audio import io as waveform
from steermoe.audio.augment import levelled
from steermoe.audio.io import as_waveform
from steermoe.config import Generation
from steermoe.data.batching import bucketed_batches
from steermoe.data.collator import collate
from steermoe.data.dataset import Item
from steermoe.data.prompts import encode_texts, render, texts_around
from steermoe.data.tokens import plain
from steermoe.models.exclusive import exclusive
from steermoe.models.inputs import Inputs
from steermoe.models.tools import Answer, check_tools, read_answer
from steermoe.models.trust import nothing_heard, notice, rated, say, say_once, unanswerable

if TYPE_CHECKING:
    from steermoe.models.steermoe import SteerMoE

Audio = str | Path | np.ndarray
BATCH_SECONDS = 120.0  # padding included


@exclusive
def answer_spoken(
    model: SteerMoE,
    audio: Sequence[Audio],
    question: str | None,
    tools: Sequence[dict] | None,
    generation: Generation,
    seed: int,
    prompt: str | None = None,
    videos: Sequence[np.ndarray] | None = None,
) -> list[Answer]:
    """As `answer_all`, scored; where nobody speaks the LLM is not asked, and the answer is empty.

    Beside a video there may be silence. What speaks against an answer is logged, too.
    """
    check_videos(model, len(audio), videos)
    waveforms = [to_waveform(a, f"recording {number}") for number, a in enumerate(audio)]
    asked = question is not None or prompt is not None
    heard = [
        place for place, samples in enumerate(waveforms)
        if videos is not None or not unanswerable(model, samples, asked)
    ]  # fmt: skip
    answers = [nothing_heard() for _ in waveforms]
    given = [waveforms[place] for place in heard]
    found = answer_all(model, given, question, tools, generation, seed, prompt, True, videos=videos)
    for place, answer in zip(heard, found, strict=True):
        answers[place] = answer
    for place, (source, answer) in enumerate(zip(audio, answers, strict=True)):
        say(answer.warnings, f"recording {place}" if isinstance(source, np.ndarray) else str(source))
    return answers


@exclusive
def answer_all(
    model: SteerMoE,
    audio: Sequence[Audio],
    question: str | None,
    tools: Sequence[dict] | None,
    generation: Generation,
    seed: int,
    prompt: str | None = None,
    scored: bool = False,
    max_batch_seconds: float = BATCH_SECONDS,
    videos: Sequence[np.ndarray] | None = None,
) -> list[Answer]:
    """The answer to each recording; arguments and errors are those of `SteerMoE.ask`.

    Args:
        prompt: the text behind the audio, in place of the configuration's; not with `question`.
        scored: tell the answers' confidence, too.
        max_batch_seconds: audio seconds a batch, padding included.
        videos: frames beside each recording.
    """
    check_videos(model, len(audio), videos)
    say_once(notice(model))
    if tools is not None:
        check_tools(tools)
    task = "transcribe" if question is None else "answer"
    words = plain(model.tokenizer, question or "")
    asked = render(model.config.prompts, task, words) if prompt is None else prompt
    texts = texts_around(model.config.prompts, model.tokenizer, asked, tools)
    ids = encode_texts(model.tokenizer, *texts)
    waveforms = [to_waveform(a, f"recording {number}") for number, a in enumerate(audio)]
    seconds = [len(samples) / waveform.RATE for samples in waveforms]
    encoder = getattr(model, "encoder", None)  # an exported model has a graph instead
    window = 0.0 if encoder is None else encoder.window_seconds
    batches = bucketed_batches(seconds, max_batch_seconds, seed=None, epoch=0, window=window)

    def inputs(rows: Sequence[int]) -> Inputs:
        items: list[Item] = [
            {
                "features": model.features(levelled(waveforms[row])),
                "prefix_ids": ids.prefix,
                "prompt_ids": ids.suffix,
                "target_ids": [],
                "index": row,
            }
            for row in rows
        ]
        if videos is not None and model.video is not None:
            for item in items:
                item["video"] = model.video.features(videos[item["index"]])
        return Inputs.of(collate(items), model.device)

    order = [row for rows in batches for row in rows]
    answers: dict[int, Answer] = {}
    for found in model.generate_all(map(inputs, batches), generation, seed, scored):
        answer = read_answer(found.ids, model.tokenizer, tools, texts[1])
        answers[order[found.row]] = rated(answer, confidence(found.log_likelihoods))
    return [answers[row] for row in range(len(waveforms))]


def to_waveform(audio: Audio, name: str) -> np.ndarray:
    """A recording that a caller gives, a path or an array, as a waveform (N,) float32 at 16 kHz.

    Raises:
        AudioError, OSError: as `waveform.load` and `as_waveform`.
    """
    return as_waveform(audio, name) if isinstance(audio, np.ndarray) else waveform.load(audio)


def check_videos(model: SteerMoE, recordings: int, videos: Sequence[np.ndarray] | None) -> None:
    """Raises ValueError where a model with a video branch gets no video beside a recording, or another gets one."""
    given = 0 if videos is None else len(videos)
    if model.video is None and videos is not None:
        raise ValueError(f"video: found {given}; the model has no video branch: give the audio alone")
    if model.video is not None and given != recordings:
        raise ValueError(
            f"video: found {given} for {recordings} recordings; the model has a video branch: give the frames "
            "beside each recording (`video=`)"
        )


def confidence(log_likelihoods: Sequence[float]) -> float | None:
    """The geometric mean of probabilities that are given as logarithms; None of none."""
    return math.exp(sum(log_likelihoods) / len(log_likelihoods)) if log_likelihoods else None

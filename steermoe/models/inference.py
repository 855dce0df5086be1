"""From recordings to answers: batches, generation, confidence, and warnings.

Shapes: B batch, W width of the packed batch, H width of the LLM.
"""

import functools
import itertools
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from steermoe.audio import io as waveform
from steermoe.audio.augment import levelled
from steermoe.audio.io import as_waveform
from steermoe.audio.vad import silent, speaks
from steermoe.config import Generation
from steermoe.config.corpora import SOUNDS
from steermoe.data.batching import bucketed_batches
from steermoe.data.dataset import Batch, Item, collate, make_item
from steermoe.data.prompts import Prompt as PromptIds
from steermoe.data.prompts import encode_texts, render, texts_around
from steermoe.data.tokens import plain
from steermoe.models.continuous_batching import DecodeSlots, Prompt, answers, continues
from steermoe.models.generation import GREEDY, decode, log_likelihoods
from steermoe.models.joint_decoding import CtcPrefix
from steermoe.models.llm import CausalLM
from steermoe.models.pretrained import exclusive
from steermoe.models.tools import Answer, check_tools, read_answer

Audio = str | Path | np.ndarray
Answerer = Any  # a SteerMoE, or its export to ONNX, which has the same methods
Padding = Literal["left", "right"]
Embed = Callable[[Batch, Padding], tuple[Tensor, Tensor, Sequence[CtcPrefix | None]]]
"""All that the LLM reads before an answer, padded on one side: rows (B, W, H), True where valid, and CTC scores."""
BATCH_SECONDS = 120.0  # padding included
MAX_ROWS = 32  # that are decoded at a time
NO_SPEECH = "no speech was found in the recording, so nothing was asked"
# Below are 4 % of the segments that the mini adapters make of clean synthetic speech, 31 % of noisy, 70 % of
# sentences with unknown words, and 93 % of numbers spoken by people.
UNSURE = 0.65
CUT = "the answer was cut at the limit of tokens (max_new_tokens)"
NOTICE = "notice"  # key of a frozen model's config.json
log = logging.getLogger(__name__)


class Generated(NamedTuple):
    """An answer.

    Attributes:
        row: its number, counted through all batches.
        ids: its tokens, without end token.
        log_likelihoods: of each token; empty unless requested.
    """

    row: int
    ids: list[int]
    log_likelihoods: list[float]


@exclusive
def answer_spoken(
    model: Answerer,
    audio: Sequence[Audio],
    question: str | None,
    tools: Sequence[dict] | None,
    generation: Generation,
    seed: int,
    prompt: str | None = None,
    videos: Sequence[np.ndarray] | None = None,
) -> list[Answer]:
    """Answer as `answer_all` with confidences, but without speech return an empty answer and do not ask the LLM.

    With a video, the audio may be silent. Warnings are logged, too.
    """
    check_videos(model, len(audio), videos)
    waveforms = [to_waveform(a, f"recording {number}") for number, a in enumerate(audio)]
    asked = question is not None or prompt is not None
    spoken = [
        place for place, samples in enumerate(waveforms)
        if videos is not None or not unanswerable(model, samples, asked)
    ]  # fmt: skip
    answers = [nothing_heard() for _ in waveforms]
    given = [waveforms[place] for place in spoken]
    found = answer_all(model, given, question, tools, generation, seed, prompt, True, videos=videos)
    for place, answer in zip(spoken, found, strict=True):
        answers[place] = answer
    for place, (source, answer) in enumerate(zip(audio, answers, strict=True)):
        say(answer.warnings, f"recording {place}" if isinstance(source, np.ndarray) else str(source))
    return answers


@exclusive
def answer_all(
    model: Answerer,
    audio: Sequence[Audio],
    question: str | None = None,
    tools: Sequence[dict] | None = None,
    generation: Generation = GREEDY,
    seed: int = 0,
    prompt: str | None = None,
    scored: bool = False,
    max_batch_seconds: float = BATCH_SECONDS,
    videos: Sequence[np.ndarray] | None = None,
) -> list[Answer]:
    """Answer each recording; arguments and errors are those of `SteerMoE.ask`.

    Args:
        prompt: the text after the audio, in place of the configuration's; not with `question`.
        scored: return confidences, too.
        max_batch_seconds: audio seconds in a batch, padding included.
        videos: the frames that belong to each recording.
    """
    check_videos(model, len(audio), videos)
    say_once(notice(model))
    if tools is not None:
        check_tools(tools)
    ids, opening = prompt_of(model, question, prompt, tools)
    waveforms = [to_waveform(a, f"recording {number}") for number, a in enumerate(audio)]
    seconds = [len(samples) / waveform.RATE for samples in waveforms]
    encoder = getattr(model, "encoder", None)  # an exported model has a graph instead
    window = 0.0 if encoder is None else encoder.window_seconds
    batches = bucketed_batches(seconds, max_batch_seconds, seed=None, epoch=0, window=window)

    def batch(rows: Sequence[int]) -> Batch:
        seen = None if videos is None else [videos[row] for row in rows]
        return batch_of(model, [waveforms[row] for row in rows], ids, seen)

    order = [row for rows in batches for row in rows]
    answers: dict[int, Answer] = {}
    for found in model.generate_all(map(batch, batches), generation, seed, scored):
        answer = read_answer(found.ids, model.tokenizer, tools, opening)
        cut = len(found.ids) >= generation.max_new_tokens
        answers[order[found.row]] = rated(answer, confidence(found.log_likelihoods), cut)
    return [answers[row] for row in range(len(waveforms))]


def prompt_of(
    model: Answerer, question: str | None, prompt: str | None, tools: Sequence[dict] | None
) -> tuple[PromptIds, str]:
    """Return the token ids around the audio, and the text after it; arguments are those of `answer_all`."""
    task = "transcribe" if question is None else "answer"
    words = plain(model.tokenizer, question or "")
    asked = render(model.config.prompts, task, words) if prompt is None else prompt
    before, after = texts_around(model.config.prompts, model.tokenizer, asked, tools)
    return encode_texts(model.tokenizer, before, after), after


def batch_of(
    model: Answerer, waveforms: Sequence[np.ndarray], ids: PromptIds, videos: Sequence[np.ndarray] | None
) -> Batch:
    """Return waveforms at 16 kHz, scaled to one level, as a batch on the model's device."""
    items: list[Item] = []
    for row, samples in enumerate(waveforms):
        items.append(make_item(model.features(levelled(samples)), ids, index=row))
        if videos is not None:
            items[-1]["video"] = model.video.features(videos[row])
    return collate(items).to(model.device)


def to_waveform(audio: Audio, name: str) -> np.ndarray:
    """Load a recording, a path or an array, as a waveform (N,) float32 at 16 kHz.

    Raises:
        AudioError, OSError: as `waveform.load` and `as_waveform`.
    """
    return as_waveform(audio, name) if isinstance(audio, np.ndarray) else waveform.load(audio)


def check_videos(model: Answerer, recordings: int, videos: Sequence[np.ndarray] | None) -> None:
    """Raise ValueError if videos are missing for a model with a video tower, or given for another model."""
    given = 0 if videos is None else len(videos)
    if model.video is None and videos is not None:
        raise ValueError(f"video: found {given}, but the model has no video tower: give the audio alone")
    if model.video is not None and given != recordings:
        raise ValueError(
            f"video: found {given} for {recordings} recordings, but the model has a video tower: give the frames "
            "that belong to each recording (`video=`)"
        )


def generate_all(
    llm: CausalLM,
    embed: Embed,
    batches: Iterable[Batch],
    generation: Generation,
    seed: int = 0,
    scored: bool = False,
    max_rows: int = MAX_ROWS,
) -> Iterator[Generated]:
    """Yield the answers to all rows of batches, as they end; see `SteerMoE.generate_all`."""
    if continues(llm, generation):
        numbers = itertools.count()
        slots = DecodeSlots(llm, generation, scored)
        prompts = (p for b in batches for p in prompts_of(embed, b, itertools.islice(numbers, b.rows)))
        for row, ids, likelihoods in answers(slots, prompts, max_rows):
            yield Generated(row, ids, likelihoods)
        return
    if generation.ctc_weight:
        raise ValueError(
            f"generation.ctc_weight: found {generation.ctc_weight:g}; legal: 0 with strategy {generation.strategy}, "
            "and with an LLM that does not attend to all earlier tokens"
        )
    before = 0
    for batch in batches:
        with torch.no_grad():
            rows_BWH, valid_BW, _ = embed(batch, "left")
            found = decode(llm, rows_BWH, valid_BW, generation, seed)
            scores = log_likelihoods(llm, rows_BWH, valid_BW, found) if scored else [[] for _ in found]
        for ids, likelihoods in zip(found, scores, strict=True):
            yield Generated(before, ids, likelihoods)
            before += 1


@torch.no_grad()
def prompts_of(embed: Embed, batch: Batch, keys: Iterable[Any]) -> list[Prompt]:
    """Return the rows of a batch as prompts for `DecodeSlots`, one for each key."""
    rows_BWH, valid_BW, ctc = embed(batch, "right")
    rows = zip(keys, rows_BWH, valid_BW.sum(1).tolist(), ctc, strict=True)
    return [Prompt(key, row_WH[:length], scores) for key, row_WH, length, scores in rows]


def confidence(log_likelihoods: Sequence[float]) -> float | None:
    """Return the geometric mean of probabilities from their logarithms; None if there are none."""
    return math.exp(sum(log_likelihoods) / len(log_likelihoods)) if log_likelihoods else None


def unanswerable(model: Answerer, samples: np.ndarray, asked: bool) -> bool:
    """Return whether a waveform (n,) has nothing to transcribe or, with a question or prompt (`asked`), to ask about.

    A question to a model that was trained on sounds may be about any sound; everything else is about speech.
    """
    about_sounds = asked and not SOUNDS.isdisjoint(model.config.train_splits)
    return silent(samples) if about_sounds else not speaks(samples)


def nothing_heard() -> Answer:
    """Return the answer to a recording without speech."""
    return Answer("", warnings=(NO_SPEECH,))


def rated(answer: Answer, confidence: float | None, truncated: bool) -> Answer:
    """Add to an answer its confidence, whether the limit of tokens ended it, and warnings about both."""
    warnings = list(answer.warnings)
    if confidence is not None and confidence < UNSURE:
        warnings.append(f"low confidence ({confidence:.2f}): it may not be what was said")
    if truncated:
        warnings.append(CUT)
    return replace(answer, confidence=confidence, warnings=tuple(warnings), truncated=truncated)


def notice(model: Any) -> str | None:
    """Return what the configurations of its frozen models say about them (key `notice`), in one line, or None."""
    frozen = [getattr(getattr(model, "encoder", None), "model", None), model.llm]
    said = [getattr(getattr(each, "config", None), NOTICE, None) for each in frozen]
    return "; ".join(dict.fromkeys(text for text in said if text)) or None


@functools.cache
def say_once(text: str | None) -> None:
    """Log a notice, the first time in this process."""
    if text:
        log.warning(text)


def say(warnings: Iterable[str], about: str) -> None:
    """Log warnings about a recording or an answer."""
    for warning in warnings:
        log.warning("%s: %s", about, warning)

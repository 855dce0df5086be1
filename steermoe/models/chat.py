"""Conversations of text and recordings with the same frozen LLM: what `SteerMoE.chat` does.

Messages are those of OpenAI's chat API: `{"role": "user", "content": ...}`, the content a string or a list of parts,
`{"type": "text", "text": ...}`, `{"type": "input_audio", "input_audio": {"data": <base64>}}`, or, for what is at
hand, `{"type": "audio", "audio": <path or waveform>}`.

Shapes: A audio tokens, P tokens of a text, H width of the LLM.
"""

import base64
import binascii
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from steermoe.audio import io as waveform
from steermoe.audio.augment import levelled
from steermoe.config import Generation
from steermoe.data.prompts import Turn, conversation
from steermoe.data.tokens import encode
from steermoe.models.generation import decode, log_likelihoods
from steermoe.models.inference import (
    confidence,
    nothing_heard,
    notice,
    rated,
    say,
    say_once,
    to_waveform,
    unanswerable,
)
from steermoe.models.pretrained import exclusive
from steermoe.models.speech_llm import SpeechLlm
from steermoe.models.tools import Answer, check_tools, read_answer

ROLES = ("system", "user", "assistant")
SHOWN = 80  # characters of what was found, in errors


@exclusive
@torch.no_grad()
def chat(
    model: SpeechLlm,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[dict] | None,
    generation: Generation,
    seed: int,
) -> Answer:
    """The answer to a conversation; arguments and errors are those of `SteerMoE.chat`."""
    if model.video is not None:
        raise ValueError(
            "messages: the model has a video branch, and conversations hold no videos; use `ask`"
        )
    if tools is not None:
        check_tools(tools)
    turns, recordings = read_messages(messages)
    if recordings:
        say_once(notice(model))
        asked = any(turn.text for turn in turns if turn.role == "user")
        if unanswerable(model, recordings[-1], asked):
            say(nothing_heard().warnings, "the last recording")
            return nothing_heard()
    texts = conversation(model.config.prompts, model.tokenizer, turns, tools)
    ids = [encode(model.tokenizer, text) for text in texts]
    parts = [_text(model, ids[0])]
    for samples, behind in zip(recordings, ids[1:], strict=True):
        parts += [_audio(model, samples, ids[-1]), _text(model, behind)]
    rows_BWH, valid_BW = model.packed(parts, "left")
    (found,) = decode(model.llm, rows_BWH, valid_BW, generation, seed)
    answer = read_answer(found, model.tokenizer, tools, texts[-1])
    if recordings:
        (scores,) = log_likelihoods(model.llm, rows_BWH, valid_BW, [found])
        answer = rated(answer, confidence(scores))
        say(answer.warnings, "the answer")
    return answer


def _text(model: SpeechLlm, ids: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids (1, P) and their number (1,)."""
    row = torch.tensor([ids], dtype=torch.int64, device=model.device)
    return row, torch.tensor([len(ids)], device=model.device)


def _audio(model: SpeechLlm, samples: np.ndarray, asked: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Audio tokens (1, A, H) and their number (1,); `asked` is for projectors that read the prompt."""
    features = model.features(levelled(samples))[None].to(model.device)
    ids, count = _text(model, asked)
    prompt = model.llm.get_input_embeddings()(ids), count
    return model.encode(features, torch.tensor([features.shape[2]], device=model.device), *prompt)


def read_messages(messages: Sequence[Mapping[str, Any]]) -> tuple[list[Turn], list[np.ndarray]]:
    """Turns, and their recordings in order, (n,) float32 at 16 kHz.

    Raises:
        ValueError: a message is none, its role or a part is unknown, a recording cannot be read or is not the
            user's, or the last turn is not the user's.
    """
    turns, recordings = [], []
    for place, message in enumerate(messages):
        where = f"messages[{place}]"
        role = message.get("role") if isinstance(message, Mapping) else None
        if role not in ROLES or (role == "system" and place):
            expected = f"one of {', '.join(ROLES)}, system only first"
            raise ValueError(f"{where}: found role {str(role)[:SHOWN]!r}, expected {expected}")
        texts, heard = _content(message.get("content"), where)
        if heard and role != "user":
            raise ValueError(f"{where}: found audio of the {role}; only the user's is heard")
        turns.append(Turn(str(role), " ".join(texts), len(heard)))
        recordings += heard
    if not turns or turns[-1].role != "user":
        raise ValueError(
            f"messages: found {len(turns)}, the last of which is not the user's: nothing to answer"
        )
    return turns, recordings


def _content(content: Any, where: str) -> tuple[list[str], list[np.ndarray]]:
    if isinstance(content, str):
        return [content], []
    if not isinstance(content, Sequence) or not content:
        raise ValueError(
            f"{where}.content: found {str(content)[:SHOWN]!r}, expected a text or a list of parts"
        )
    texts, recordings = [], []
    for place, part in enumerate(content):
        match part:
            case {"type": "text", "text": str(text)}:
                texts.append(text)
            case {"type": "input_audio", "input_audio": {"data": str(data)}}:
                recordings.append(waveform.load(_bytes(data, f"{where}.content[{place}]")))
            case {"type": "audio", "audio": str() | Path() | np.ndarray() as audio}:
                recordings.append(to_waveform(audio, f"{where}.content[{place}]"))
            case _:
                kinds = "text, input_audio (base64), audio (a path or a waveform)"
                raise ValueError(f"{where}.content[{place}]: found {str(part)[:SHOWN]!r}, expected {kinds}")
    return texts, recordings


def _bytes(data: str, where: str) -> bytes:
    try:
        return base64.b64decode(data, validate=True)
    except binascii.Error as error:
        raise ValueError(f"{where}.input_audio.data: not base64: {error}") from error

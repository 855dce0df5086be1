"""Conversations of text and recordings: `SteerMoE.chat`, and the parser of messages that the server uses, too.

Messages are those of OpenAI's chat API: `{"role": "user", "content": ...}`, the content a string or a list of parts,
`{"type": "text", "text": ...}`, `{"type": "input_audio", "input_audio": {"data": <base64>, "format": "wav"}}`, or
`{"type": "audio", "audio": <path or waveform>}`. An assistant's message may have `tool_calls`, and a message of role
`tool` has a call's result.

Shapes: A audio tokens, P tokens of a text, H width of the LLM.
"""

import base64
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from steermoe.audio import io as waveform
from steermoe.audio.augment import levelled
from steermoe.audio.io import SUFFIXES
from steermoe.config import Generation
from steermoe.data.prompts import Turn, conversation
from steermoe.data.tokens import encode
from steermoe.models.generation import decode, log_likelihoods
from steermoe.models.inference import (
    Audio,
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

ROLES = ("system", "developer", "user", "assistant", "tool")
AUDIO_FORMATS = sorted(
    suffix.removeprefix(".") for suffix in SUFFIXES
)  # the content decides, whatever is given
MAX_SHOWN = 80  # characters of a wrong value in errors


@exclusive
@torch.no_grad()
def chat(
    model: SpeechLlm,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[dict] | None,
    generation: Generation,
    seed: int,
) -> Answer:
    """Answer a conversation; see `SteerMoE.chat`."""
    if model.video is not None:
        raise ValueError("messages: the model expects a video, which messages cannot have; use `ask`")
    if tools is not None:
        check_tools(tools)
    turns, sources = read_messages(messages)
    recordings = [
        waveform.load(source) if isinstance(source, bytes) else to_waveform(source, f"recording {number}")
        for number, source in enumerate(sources)
    ]
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
        answer = rated(answer, confidence(scores), len(found) >= generation.max_new_tokens)
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


class MessageError(ValueError):
    """A message that cannot be used; `field` is its place, such as `messages[1].content`."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field


def read_messages(
    messages: Sequence[Any], allow_local: bool = True
) -> tuple[list[Turn], list[Audio | bytes]]:
    """Parse messages of OpenAI's chat API.

    Args:
        messages: the messages.
        allow_local: accept parts of type `audio`, whose path or waveform is on this machine. A server must not.

    Returns:
        Turns, and the recordings in order, not yet decoded.

    Raises:
        MessageError: a message is malformed, a role or part is unknown, a recording is not the user's, or the last
            message is not one to answer.
    """
    turns: list[Turn] = []
    recordings: list[Audio | bytes] = []
    for place, message in enumerate(messages):
        where = f"messages[{place}]"
        role = message.get("role") if isinstance(message, Mapping) else None
        if role not in ROLES:
            raise MessageError(
                f"{where}.role", f"found {str(role)[:MAX_SHOWN]!r}, expected one of {', '.join(ROLES)}"
            )
        role = "system" if role == "developer" else str(role)
        if role == "system" and place:
            raise MessageError(where, "found a system message, which may only be the first")
        calls = _tool_calls(message.get("tool_calls"), role, where)
        texts, found = _content(message.get("content"), f"{where}.content", role == "assistant", allow_local)
        if found and role != "user":
            raise MessageError(where, f"found audio of the {role}; only the user's messages may have audio")
        turns.append(Turn(role, " ".join(texts), len(found), calls))
        recordings += found
    if not turns or turns[-1].role not in ("user", "tool"):
        raise MessageError(
            "messages", f"found {len(turns)}, the last of which is not the user's: nothing to answer"
        )
    return turns, recordings


def _content(
    content: Any, where: str, optional: bool, allow_local: bool
) -> tuple[list[str], list[Audio | bytes]]:
    if isinstance(content, str):
        return [content], []
    if optional and content in (None, [], ()):
        return [], []
    if not isinstance(content, list | tuple) or not content:
        raise MessageError(where, f"found {str(content)[:MAX_SHOWN]!r}, expected a text or a list of parts")
    texts: list[str] = []
    recordings: list[Audio | bytes] = []
    for place, part in enumerate(content):
        inner = f"{where}[{place}]"
        match part:
            case {"type": "text", "text": str(text)}:
                texts.append(text)
            case {"type": "input_audio", "input_audio": {"data": str(data)} as audio}:
                if audio.get("format", "wav") not in AUDIO_FORMATS:
                    found = str(audio["format"])[:MAX_SHOWN]
                    expected = ", ".join(AUDIO_FORMATS)
                    raise MessageError(
                        f"{inner}.input_audio.format", f"found {found!r}, expected one of {expected}"
                    )
                recordings.append(_decode_base64(data, f"{inner}.input_audio.data"))
            case {"type": "audio", "audio": str() | Path() | np.ndarray() as audio} if allow_local:
                recordings.append(audio)
            case _:
                kinds = "text, input_audio (base64)" + ", audio (a path or a waveform)" * allow_local
                raise MessageError(inner, f"found {str(part)[:MAX_SHOWN]!r}, expected a part of type {kinds}")
    return texts, recordings


def _tool_calls(calls: Any, role: str, where: str) -> tuple[dict[str, Any], ...]:
    if not calls:
        return ()
    if role != "assistant" or not isinstance(calls, list | tuple):
        raise MessageError(f"{where}.tool_calls", "expected a list, in a message of the assistant only")
    found = []
    for place, call in enumerate(calls):
        inner = f"{where}.tool_calls[{place}].function"
        match call:
            case {"function": {"name": str(name), "arguments": str(written)}}:
                try:
                    arguments = json.loads(written)
                except (ValueError, RecursionError) as error:
                    raise MessageError(f"{inner}.arguments", f"not JSON: {error}") from error
                found.append({"type": "function", "function": {"name": name, "arguments": arguments}})
            case _:
                raise MessageError(inner, f"found {str(call)[:MAX_SHOWN]!r}, expected name and arguments")
    return tuple(found)


def _decode_base64(data: str, where: str) -> bytes:
    try:
        return base64.b64decode("".join(re.sub(r"^data:[^,]{0,99};base64,", "", data).split()), validate=True)
    except ValueError as error:
        raise MessageError(where, f"not base64: {error}") from error

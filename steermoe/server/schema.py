"""What requests may say: OpenAI's fields, each heeded or refused by its name."""

import base64
import binascii
import json
import re
from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from steermoe.config import Generation
from steermoe.data.prompts import Turn
from steermoe.models.generation import GREEDY
from steermoe.server.errors import RequestError
from steermoe.server.limits import Limits

FORMATS = ("json", "text", "srt", "verbose_json", "vtt")  # of OpenAI's, those that a transcript has
GRANULARITIES = ("segment", "word")
FIELDS = (  # of a transcription's form
    *("file", "model", "language", "prompt", "response_format", "temperature", "stream"),
    "timestamp_granularities[]",
)
HINTS = (  # fields of a chat that change no answer
    *("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"),
)
NEUTRAL = {  # fields of a chat that are not heeded, with the value at which that makes no difference
    "logprobs": False, "top_logprobs": 0, "frequency_penalty": 0, "presence_penalty": 0, "logit_bias": {}, "stop": [],
    "parallel_tool_calls": True, "response_format": {"type": "text"}, "tools": [],
}  # fmt: skip
SHOWN = 80  # characters of a wrong value in a message


class _Part(BaseModel):
    """A part of a request; fields that a reply of this or another server has beside those here are passed over."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class InputAudio(_Part):
    """A recording in base64."""

    data: str
    format: Literal["wav", "mp3"]


class AudioPart(_Part):
    """A part of a message that is heard."""

    type: Literal["input_audio"]
    input_audio: InputAudio


class TextPart(_Part):
    """A part of a message that is read."""

    type: Literal["text"]
    text: str


class Function(_Part):
    """What a call of a tool calls; `arguments` are JSON."""

    name: str
    arguments: str


class Call(_Part):
    """A call of a tool, as a reply has it."""

    function: Function


def _as_parts(content: Any) -> Any:
    if content is None:
        return []
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


class Message(_Part):
    """A turn; its content may be a text, which becomes a part, or null."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[
        list[Annotated[TextPart | AudioPart, Field(discriminator="type")]], BeforeValidator(_as_parts)
    ] = []
    tool_calls: list[Call] | None = None

    def turn(self, where: str) -> Turn:
        """The turn; `where` is its place in the request.

        Raises:
            RequestError: somebody else than the user is heard, there is no content, or calls are no JSON.
        """
        texts = [part.text for part in self.content if isinstance(part, TextPart)]
        heard = len(self.content) - len(texts)
        if heard and self.role != "user":
            raise RequestError(
                400, f"{where}: found audio of the {self.role}; only the user's is heard", where
            )
        if not self.content and self.role != "assistant":
            raise RequestError(
                400, f"{where}.content: found none, expected a text or a list of parts", f"{where}.content"
            )
        if self.tool_calls and self.role != "assistant":
            raise RequestError(
                400, f"{where}.tool_calls: only an assistant's turn has them", f"{where}.tool_calls"
            )
        calls = []
        for place, call in enumerate(self.tool_calls or ()):
            field = f"{where}.tool_calls[{place}].function.arguments"
            arguments = _json(call.function.arguments, field)
            calls.append(
                {"type": "function", "function": {"name": call.function.name, "arguments": arguments}}
            )
        role = "system" if self.role == "developer" else self.role
        return Turn(role, " ".join(texts), heard, tuple(calls))


class StreamOptions(_Part):
    """What comes with a stream."""

    include_usage: bool | None = None


class Chat(_Part):
    """The body of `/v1/chat/completions`."""

    model_config = ConfigDict(extra="forbid")

    model: str
    messages: list[Message] = Field(min_length=1)
    tools: list[dict[str, Any]] | None = None
    tool_choice: Literal["auto", "none"] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    temperature: float = Field(default=0.0, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    seed: int = Field(default=0, ge=-(2**63), lt=2**63)
    n: Literal[1] = 1
    modalities: list[Literal["text"]] | None = None

    @classmethod
    def read(cls, body: bytes) -> "Chat":
        """A request's body.

        Raises:
            RequestError: it is not such a body; its first problem is named.
        """
        fields = _json(body, "body")
        if not isinstance(fields, dict):
            raise RequestError(400, "body: Input should be an object")
        given = {
            name: value
            for name, value in fields.items()
            if value is not None and name not in HINTS and (name not in NEUTRAL or value != NEUTRAL[name])
        }
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            raise _refusal(error) from None

    def audio(self) -> bytes:
        """The recording's file, the only one.

        Raises:
            RequestError: there is none, there are several, or it is no base64.
        """
        found = [
            (f"messages[{turn}].content[{place}]", part)
            for turn, message in enumerate(self.messages)
            for place, part in enumerate(message.content)
            if isinstance(part, AudioPart)
        ]
        if len(found) != 1:
            raise RequestError(
                400, f"messages: found {len(found)} parts of type input_audio, expected one", "messages"
            )
        place, part = found[0]
        data = re.sub(r"^data:[^,]{0,99};base64,", "", part.input_audio.data)
        try:
            return base64.b64decode("".join(data.split()), validate=True)
        except (binascii.Error, ValueError) as error:
            raise RequestError(400, f"{place}.input_audio.data: no base64 ({error})", "messages") from None

    def turns(self) -> tuple[Turn, ...]:
        """The conversation.

        Raises:
            RequestError: as `Message.turn`; a system's turn is not the first, or the last is the assistant's.
        """
        turns = []
        for place, message in enumerate(self.messages):
            where = f"messages[{place}]"
            turn = message.turn(where)
            if turn.role == "system" and place:
                raise RequestError(
                    400, f"{where}: found a turn of the {message.role}, which may be the first only", where
                )
            turns.append(turn)
        if turns[-1].role not in ("user", "tool"):
            raise RequestError(
                400, "messages: the last turn is not the user's: nothing to answer", "messages"
            )
        return tuple(turns)

    def generation(self, limits: Limits) -> tuple[Generation, int]:
        """How to decode, and the seed.

        Raises:
            RequestError: a setting that has no effect, or more tokens than the server writes.
        """
        if self.stream_options is not None and not self.stream:
            raise RequestError(
                400, "stream_options: has no effect without stream; leave it out", "stream_options"
            )
        if self.tool_choice is not None and self.tools is None:
            raise RequestError(400, "tool_choice: has no effect without tools; leave it out", "tool_choice")
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise RequestError(400, "max_tokens: found max_completion_tokens, too; give one", "max_tokens")
        wanted = self.max_tokens or self.max_completion_tokens or limits.max_tokens
        if wanted > limits.max_tokens:
            name = "max_tokens" if self.max_tokens else "max_completion_tokens"
            raise RequestError(400, f"{name}: found {wanted}, allowed are at most {limits.max_tokens}", name)
        if self.top_p not in (None, 1) and not self.temperature:
            raise RequestError(
                400, "top_p: has no effect at temperature 0; give a temperature or leave it out", "top_p"
            )
        return generation(wanted, self.temperature, self.top_p), self.seed % 2**63


def generation(tokens: int, temperature: float, top_p: float | None = None) -> Generation:
    """Greedy at temperature 0, else sampled."""
    if not temperature:
        return GREEDY.model_copy(update={"max_new_tokens": tokens})
    sampled = {"strategy": "sample", "temperature": temperature, "top_p": top_p}
    return GREEDY.model_copy(update={"max_new_tokens": tokens, **sampled})


def check_form(fields: Sequence[str]) -> None:
    """Raises RequestError where a transcription's form has a field that is not heeded, or one twice."""
    if unknown := [name for name in fields if name not in FIELDS]:
        raise RequestError(
            400, f"{unknown[0]}: this server does not heed it; leave it out. It heeds: {', '.join(FIELDS)}",
            unknown[0], "unsupported_parameter",
        )  # fmt: skip
    if twice := [name for name, count in Counter(fields).items() if count > 1 and not name.endswith("[]")]:
        raise RequestError(400, f"{twice[0]}: found twice, expected once", twice[0])


def number(text: str | None, name: str, most: float) -> float:
    """A field of a form that is a number from 0 to `most`; 0 where it is not there.

    Raises:
        RequestError: it is no such number.
    """
    try:
        value = float(text or 0)
    except ValueError:
        value = -1.0
    if not 0 <= value <= most:
        raise RequestError(400, f"{name}: found {text!r}, expected a number from 0 to {most:g}", name)
    return value


def truth(text: str | None, name: str) -> bool:
    """A field of a form that is true or false; false where it is not there.

    Raises:
        RequestError: it is neither.
    """
    if text is None or text.lower() in ("", "false", "0"):
        return False
    if text.lower() in ("true", "1"):
        return True
    raise RequestError(400, f"{name}: found {text!r}, expected true or false", name)


def one_of(text: str | None, name: str, legal: tuple[str, ...], default: str) -> str:
    """A field of a form that is one of some words.

    Raises:
        RequestError: it is another.
    """
    if text and text not in legal:
        raise RequestError(400, f"{name}: found {text!r}, expected one of: {', '.join(legal)}", name)
    return text or default


def language_code(text: str | None) -> str | None:
    """A language as its code, of `en`, `EN`, `en-US` or `English`; None of nothing and of `auto`.

    Raises:
        ValueError: it is no code, and no language that Whisper knows by name.
    """
    from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

    found = (text or "auto").strip().lower().replace("_", "-")
    if found in ("", "auto"):
        return None
    code = TO_LANGUAGE_CODE.get(found, found).split("-")[0]
    if not re.fullmatch("[a-z]{2,3}", code):
        raise ValueError(f"language: found {text!r}, expected a code such as en, or auto")
    return code


def _json(text: bytes | str, where: str) -> Any:
    """A JSON value in which no field is given twice, and all numbers are numbers."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(found := dict(pairs)) < len(pairs):
            name = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
            raise RequestError(400, f"{where}: found {name!r} twice in an object, expected once", name)
        return found

    def constant(found: str) -> None:
        raise ValueError(f"found {found}, which is no number")

    try:
        return json.loads(text, object_pairs_hook=once, parse_constant=constant)
    except (ValueError, RecursionError) as error:
        raise RequestError(
            400, f"{where}: Invalid JSON: {error}", None if where == "body" else where
        ) from None


def _refusal(error: ValidationError) -> RequestError:
    first = error.errors(include_url=False)[0]
    steps, place = list(first["loc"]), ""
    for number, step in enumerate(steps):
        if number > 1 and steps[number - 2] == "content" and isinstance(steps[number - 1], int):
            continue  # which kind of part was tried, for pydantic
        place += f"[{step}]" if isinstance(step, int) else f".{step}" if place else str(step)
    if first["type"] == "extra_forbidden":
        return RequestError(
            400, f"{place}: this server does not heed it; leave it out", place, "unsupported_parameter"
        )
    message, found = first["msg"], first["input"]
    if first["type"] == "missing":
        return RequestError(400, f"{place}: missing", place)
    if first["type"].startswith("union_tag"):  # of a part
        place, message = f"{place}.type", "Input should be 'text' or 'input_audio'"
        found = found.get("type", found) if isinstance(found, dict) else found
    shown = repr(found)
    shown = shown if len(shown) < SHOWN else f"{shown[:SHOWN]}..."
    return RequestError(400, f"{place}: {message}; found {shown}", place)

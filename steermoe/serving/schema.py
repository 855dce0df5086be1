"""What requests may say: OpenAI's fields, each heeded or refused by its name."""

import base64
import binascii
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from steermoe.config import Generation
from steermoe.data.prompts import Turn
from steermoe.models.generation import GREEDY
from steermoe.serving.limits import Limits
from steermoe.serving.request_error import RequestError

FORMATS = ("json", "text", "srt", "verbose_json", "vtt")  # of OpenAI's, those that a transcript has
GRANULARITIES = ("segment", "word")
FIELDS = (  # of a transcription's form
    *("file", "model", "language", "prompt", "response_format", "temperature", "stream"),
    "timestamp_granularities[]",
)


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


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


class Message(_Part):
    """A turn."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Annotated[TextPart | AudioPart, Field(discriminator="type")]]
    name: str | None = None

    def parts(self) -> list[TextPart | AudioPart]:
        """The content as parts."""
        if isinstance(self.content, str):
            return [TextPart(type="text", text=self.content)]
        return list(self.content)


class StreamOptions(_Part):
    """What comes with a stream."""

    include_usage: bool = False


class Chat(_Part):
    """The body of `/v1/chat/completions`."""

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
    seed: int = Field(default=0, ge=0, lt=2**63)
    n: Literal[1] = 1
    modalities: list[Literal["text"]] | None = None
    user: str | None = None

    @classmethod
    def read(cls, body: bytes) -> "Chat":
        """A request's body.

        Raises:
            RequestError: it is not such a body; its first problem is named.
        """
        try:
            return cls.model_validate_json(body)
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
            for place, part in enumerate(message.parts())
            if isinstance(part, AudioPart)
        ]
        if len(found) != 1:
            raise RequestError(
                400, f"messages: found {len(found)} parts of type input_audio, expected one", "messages"
            )
        place, part = found[0]
        try:
            return base64.b64decode(part.input_audio.data, validate=True)
        except (binascii.Error, ValueError) as error:
            raise RequestError(400, f"{place}.input_audio.data: no base64 ({error})", "messages") from None

    def turns(self) -> tuple[Turn, ...]:
        """The conversation.

        Raises:
            RequestError: somebody else than the user is heard, a system's turn is not the first, or the last is not
                the user's.
        """
        turns = []
        for place, message in enumerate(self.messages):
            role = "system" if message.role == "developer" else message.role
            parts = message.parts()
            texts = [part.text for part in parts if isinstance(part, TextPart)]
            heard = len(parts) - len(texts)
            where = f"messages[{place}]"
            if role == "system" and place:
                raise RequestError(
                    400, f"{where}: found a turn of the {message.role}, which may be the first only", where
                )
            if heard and role != "user":
                raise RequestError(
                    400, f"{where}: found audio of the {message.role}; only the user's is heard", where
                )
            turns.append(Turn(role, " ".join(texts), heard))
        if turns[-1].role != "user":
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
        if self.top_p is not None and not self.temperature:
            raise RequestError(
                400, "top_p: has no effect at temperature 0; give a temperature or leave it out", "top_p"
            )
        return generation(wanted, self.temperature, self.top_p), self.seed


def generation(tokens: int, temperature: float, top_p: float | None = None) -> Generation:
    """Greedy at temperature 0, else sampled."""
    if not temperature:
        return GREEDY.model_copy(update={"max_new_tokens": tokens})
    sampled = {"strategy": "sample", "temperature": temperature, "top_p": top_p}
    return GREEDY.model_copy(update={"max_new_tokens": tokens, **sampled})


def check_form(fields: list[str]) -> None:
    """Raises RequestError where a transcription's form has a field that is not heeded."""
    if unknown := [name for name in fields if name not in FIELDS]:
        raise RequestError(
            400, f"{unknown[0]}: this server does not heed it; leave it out. It heeds: {', '.join(FIELDS)}",
            unknown[0], "unsupported_parameter",
        )  # fmt: skip


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
    if text in (None, "", "false", "False", "0"):
        return False
    if text in ("true", "True", "1"):
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


def _refusal(error: ValidationError) -> RequestError:
    first = error.errors(include_url=False, include_input=False)[0]
    place = ""
    for step in first["loc"]:
        place += f"[{step}]" if isinstance(step, int) else f".{step}" if place else str(step)
    if first["type"] == "extra_forbidden":
        return RequestError(
            400, f"{place}: this server does not heed it; leave it out", place, "unsupported_parameter"
        )
    return RequestError(400, f"{place or 'body'}: {first['msg']}", place or None)

"""Requests, replies and errors in the shape of OpenAI's API."""

import json
import re
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from fastapi import HTTPException, UploadFile
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from steermoe.asr.transcript import Transcript, render
from steermoe.models.tools import Answer

ERROR_TYPES = {401: "authentication_error", 429: "rate_limit_error"}
IGNORED = ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key")
DEFAULTS = {  # fields of a chat that are not supported, with the value that changes nothing
    "logprobs": False, "top_logprobs": 0, "frequency_penalty": 0, "presence_penalty": 0, "logit_bias": {}, "stop": [],
    "parallel_tool_calls": True, "response_format": {"type": "text"}, "tools": [],
}  # fmt: skip
MAX_SHOWN = 80  # characters of a wrong value in an error
STRICT = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class RequestError(HTTPException):
    """A request that is not answered.

    Args:
        status: HTTP status.
        message: what is wrong, what is allowed, what to do.
        param: the field that is wrong.
        code: a word for programs.
        headers: of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, message, headers)
        self.param, self.code = param, code

    @classmethod
    def from_validation(cls, errors: Sequence[Any]) -> Self:
        """Describe the first of pydantic's errors, with the name of its field."""
        first = errors[0]
        location = first["loc"][1:] if first["loc"][:1] == ("body",) else first["loc"]
        steps = (f"[{step}]" if isinstance(step, int) else f".{step}" for step in location)
        name = "".join(steps).lstrip(".")
        if first["type"] == "extra_forbidden":
            message = f"{name}: not supported by this server; leave it out"
            return cls(400, message, name, "unsupported_parameter")
        message = f"{name or 'body'}: {first['msg']}"
        if first["type"] not in ("missing", "json_invalid"):
            message += f"; found {repr(first['input'])[:MAX_SHOWN]}"
        return cls(400, message, name or None)

    def content(self) -> dict[str, Any]:
        """Return the body of the response."""
        server_error = self.status_code >= 500
        kind = ERROR_TYPES.get(self.status_code, "server_error" if server_error else "invalid_request_error")
        return {"error": {"message": self.detail, "type": kind, "param": self.param, "code": self.code}}


def language_code(text: str | None) -> str | None:
    """Return the code of a language given as `en`, `EN`, `en-US` or `English`; None for nothing or `auto`.

    Raises:
        ValueError: it is no code, and no name that Whisper knows.
    """
    from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

    found = (text or "auto").strip().lower().replace("_", "-").split("-")[0]
    if found in ("", "auto"):
        return None
    code = TO_LANGUAGE_CODE.get(found, found)
    if not re.fullmatch("[a-z]{2,3}", code):
        raise ValueError(f"language: found {text!r}, expected a code such as en, or auto")
    return code


class TranscriptionRequest(BaseModel):
    """The form of `/v1/audio/transcriptions`."""

    model_config = STRICT

    file: UploadFile
    model: str
    language: Annotated[str | None, BeforeValidator(language_code)] = None
    prompt: str | None = None
    response_format: Literal["json", "text", "srt", "verbose_json", "vtt"] = "json"
    temperature: float = Field(default=0.0, ge=0, le=1)
    stream: bool = False
    timestamp_granularities: set[Literal["segment", "word"]] = Field(
        default=set(), alias="timestamp_granularities[]"
    )

    @model_validator(mode="after")
    def _check_combination(self) -> Self:
        if self.stream and self.response_format not in ("json", "text"):
            message = f"stream: not possible with response_format {self.response_format}; use json or text"
            raise RequestError(400, message, "stream")
        if self.timestamp_granularities and self.response_format != "verbose_json":
            name = "timestamp_granularities[]"
            raise RequestError(400, f"{name}: needs response_format verbose_json", name)
        return self

    def reply(self, found: Transcript, warnings: list[str], language: str | None) -> str | dict[str, Any]:
        """Return the body of the response: text, or JSON with our field `warnings`.

        Args:
            found: the transcript.
            warnings: reasons not to trust it.
            language: of the adapter, if known.
        """
        content = render(found, self.response_format)
        if "json" not in self.response_format:
            return content
        reply = json.loads(content) | {"usage": {"type": "duration", "seconds": found.seconds}}
        if self.response_format == "verbose_json":
            words = [word for segment in reply["segments"] for word in segment.pop("words")]
            reply["language"] = language or self.language or "und"  # ISO 639-2: undetermined
            if "word" in self.timestamp_granularities:
                reply["words"] = words
            if self.timestamp_granularities == {"word"}:
                del reply["segments"]
        return reply | ({"warnings": warnings} if warnings else {})


class StreamOptions(BaseModel):
    """Options of a stream."""

    include_usage: bool | None = None


class ChatRequest(BaseModel):
    """The body of `/v1/chat/completions`; `models.chat.read_messages` checks the messages."""

    model_config = STRICT

    model: str
    messages: list[Any] = Field(min_length=1)
    tools: list[Any] | None = None
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

    @model_validator(mode="before")
    @classmethod
    def _without_defaults(cls, fields: Any) -> Any:
        if not isinstance(fields, dict):
            return fields
        return {
            name: value for name, value in fields.items()
            if value is not None and name not in IGNORED and (name not in DEFAULTS or value != DEFAULTS[name])
        }  # fmt: skip

    @model_validator(mode="after")
    def _check_combination(self) -> Self:
        problems = {
            "stream_options": (self.stream_options is not None and not self.stream, "has no effect without stream"),
            "tool_choice": (self.tool_choice is not None and self.tools is None, "has no effect without tools"),
            "max_tokens": (None not in (self.max_tokens, self.max_completion_tokens),
                           "found max_completion_tokens, too; give one"),
            "top_p": (self.top_p not in (None, 1) and not self.temperature, "has no effect at temperature 0"),
        }  # fmt: skip
        for name, (wrong, why) in problems.items():
            if wrong:
                raise RequestError(400, f"{name}: {why}", name)
        return self

    def token_limit(self, most: int) -> int:
        """Return the number of tokens that an answer may have; at most `most`."""
        name = "max_tokens" if self.max_tokens else "max_completion_tokens"
        found = self.max_tokens or self.max_completion_tokens or most
        if found > most:
            raise RequestError(400, f"{name}: found {found}, allowed are at most {most}", name)
        return found


@dataclass(frozen=True)
class Answered:
    """An answer with the numbers of tokens that the LLM read, audio included, and wrote."""

    answer: Answer
    prompt_tokens: int = 0
    completion_tokens: int = 0


class ChatReply:
    """Formats one answer of `/v1/chat/completions`, whole or in chunks.

    Fields that OpenAI's API does not have: `warnings`, and a message's `tool_errors` (calls that do not fit).

    Args:
        model: the model's name.
        notice: a warning about the model itself.
    """

    def __init__(self, model: str, notice: str | None) -> None:
        self._notice = [] if notice is None else [notice]
        self._common = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}
        self._delta: dict[str, Any] = {"role": "assistant"}  # what the first chunk has in addition

    def whole(self, found: Answered) -> dict[str, Any]:
        """Return a `chat.completion`."""
        answer, calls = found.answer, _tool_calls(found.answer)
        message: dict[str, Any] = {"role": "assistant", "content": answer.text, "refusal": None}
        if calls:
            message |= {"content": answer.text or None, "tool_calls": calls}
        if answer.errors:
            message["tool_errors"] = list(answer.errors)
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": _finish_reason(answer)}
        reply = {"object": "chat.completion", **self._common, "choices": [choice], "usage": _usage(found)}
        return reply | self._warnings(answer)

    def chunk(self, delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
        """Return a `chat.completion.chunk`."""
        choice = {"index": 0, "delta": self._delta | delta, "logprobs": None, "finish_reason": reason}
        self._delta = {}
        return {"object": "chat.completion.chunk", **self._common, "choices": [choice]}

    def last(self, found: Answered, unsent: str, usage: bool) -> list[Any]:
        """Return the last events: text that was not streamed, calls, the reason for the end, usage if requested."""
        chunks = [self.chunk({"content": unsent})] if unsent else []
        if calls := _tool_calls(found.answer):
            calls = [{"index": place, **call} for place, call in enumerate(calls)]
            chunks.append(self.chunk({"tool_calls": calls}))
        chunks.append(self.chunk({}, _finish_reason(found.answer)) | self._warnings(found.answer))
        if usage:
            chunks.append(self.chunk({}) | {"choices": [], "usage": _usage(found)})
        return chunks

    def _warnings(self, answer: Answer) -> dict[str, list[str]]:
        warnings = [*answer.warnings, *self._notice]
        return {"warnings": warnings} if warnings else {}


def _tool_calls(answer: Answer) -> list[dict[str, Any]]:
    return [
        {
            "id": f"call_{uuid.uuid4().hex[:24]}", "type": "function",
            "function": {"name": call.name, "arguments": json.dumps(call.arguments, ensure_ascii=False)},
        }
        for call in answer.tool_calls
    ]  # fmt: skip


def _finish_reason(answer: Answer) -> str:
    return "tool_calls" if answer.tool_calls else "length" if answer.truncated else "stop"


def _usage(found: Answered) -> dict[str, int]:
    read, written = found.prompt_tokens, found.completion_tokens
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}

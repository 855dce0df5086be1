"""Answers as OpenAI's `/v1/chat/completions` gives them."""

import json
import time
import uuid
from collections.abc import Callable
from typing import Any

from steermoe.server.engine import Answered


class Reply:
    """One answer, whole or in chunks.

    Args:
        model: its name.
        warnings: what speaks against an answer.
    """

    def __init__(self, model: str, warnings: Callable[[Answered], list[str]]) -> None:
        self._warnings = warnings
        self._common = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}
        self._first = True

    def whole(self, answered: Answered) -> dict[str, Any]:
        """A `chat.completion`."""
        message: dict[str, Any] = {
            "role": "assistant",
            "content": answered.answer.text or None,
            "refusal": None,
        }
        if calls := self._calls(answered):
            message["tool_calls"] = calls
        elif message["content"] is None:
            message["content"] = ""
        if answered.answer.errors:
            message["tool_errors"] = list(answered.answer.errors)  # ours, not OpenAI's: calls that were wrong
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": self._reason(answered)}
        usage = self._usage(answered)
        reply = {"object": "chat.completion", **self._common, "choices": [choice], "usage": usage}
        return reply | self._warned(answered)

    def delta(self, piece: str) -> dict[str, Any]:
        """A `chat.completion.chunk` with a piece of text."""
        return self._chunk({"content": piece})

    def last(self, answered: Answered, usage: bool) -> list[Any]:
        """The last chunks: calls of tools with the text beside them, why it ended, usage if wanted, and the end."""
        chunks: list[Any] = []
        calls = [{"index": place, **call} for place, call in enumerate(self._calls(answered))]
        if answered.tooled and answered.answer.text:
            chunks.append(self._chunk({"content": answered.answer.text}))
        if calls:
            chunks.append(self._chunk({"tool_calls": calls}))
        chunks.append(self._chunk({}, self._reason(answered)) | self._warned(answered))
        if usage:
            chunks.append(self._chunk({}) | {"choices": [], "usage": self._usage(answered)})
        return [*chunks, "[DONE]"]

    def _chunk(self, delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
        if self._first:
            delta, self._first = {"role": "assistant", **delta}, False
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        return {"object": "chat.completion.chunk", **self._common, "choices": [choice]}

    def _warned(self, answered: Answered) -> dict[str, list[str]]:
        """Ours, not OpenAI's: what speaks against an answer."""
        warnings = self._warnings(answered)
        return {"warnings": warnings} if warnings else {}

    def _calls(self, answered: Answered) -> list[dict[str, Any]]:
        return [
            {
                "id": f"call_{uuid.uuid4().hex[:24]}", "type": "function",
                "function": {"name": call.name, "arguments": json.dumps(call.arguments, ensure_ascii=False)},
            }
            for call in answered.answer.tool_calls
        ]  # fmt: skip

    def _reason(self, answered: Answered) -> str:
        if answered.answer.tool_calls:
            return "tool_calls"
        return "length" if answered.cut else "stop"

    def _usage(self, answered: Answered) -> dict[str, int]:
        total = answered.prompt_tokens + answered.tokens
        return {
            "prompt_tokens": answered.prompt_tokens,
            "completion_tokens": answered.tokens,
            "total_tokens": total,
        }

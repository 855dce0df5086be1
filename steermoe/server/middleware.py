"""What every request passes before it is read: key, shutdown, how many at once, how large, how slow. Plain ASGI."""

import asyncio
import hashlib
import hmac
import json
import time
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from steermoe.server.batching import shutting_down
from steermoe.server.errors import RequestError
from steermoe.server.limits import Limits
from steermoe.server.metrics import Metrics

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

OPEN = ("/health", "/health/live", "/health/ready")  # without key, for who watches over the server
PATHS = (*OPEN, "/metrics", "/openapi.json", "/v1/models", "/v1/audio/transcriptions", "/v1/chat/completions")


class Gate:
    """The application's outermost layer.

    Attributes:
        closing: nothing more is taken; what was taken is finished.
        active: requests to the model that are being answered now.

    Args:
        app: what is behind it.
        limits: bytes of a body, seconds for its upload, requests at once.
        metrics: where requests are counted.
        key: that requests must bring as `Authorization: Bearer`; None: none.
    """

    def __init__(self, app: Any, limits: Limits, metrics: Metrics, key: str | None) -> None:
        self._app, self._limits, self._metrics = app, limits, metrics
        self._key = None if key is None else _digest(key)
        self.closing = False
        self.active = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request pass, or answer why not."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.perf_counter(), 500
        identity = uuid.uuid4().hex.encode()

        async def sending(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", []), (b"x-request-id", identity)]
            await send(message)

        if scope["method"] == "HEAD":  # is answered as GET is; the server sends no body
            scope = {**scope, "method": "GET"}
        counted = scope["method"] == "POST"
        self.active += counted
        try:
            self._admit(scope)
            await self._app(scope, self._limited(scope, receive), sending)
        except RequestError as refusal:
            await refuse(refusal, sending)
        finally:
            self.active -= counted
            path = scope["path"] if scope["path"] in PATHS else "other"
            self._metrics.requests.labels(path, _method(scope), str(status)).inc()
            self._metrics.latency.labels(path).observe(time.perf_counter() - began)

    def _admit(self, scope: Scope) -> None:
        """Raises RequestError where a request is not to be read at all."""
        headers = dict(scope["headers"])
        if self._key is not None and scope["path"] not in OPEN:
            kind, _, key = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
            if kind.lower() != "bearer" or not hmac.compare_digest(_digest(key.strip()), self._key):
                raise RequestError(
                    401, "no valid API key; send it as `Authorization: Bearer KEY`", code="invalid_api_key"
                )
        if scope["method"] != "POST":
            return
        if self.closing:
            raise shutting_down()
        if self.active > self._limits.requests:
            raise RequestError(
                429, f"{self._limits.requests} requests are being answered; try again in a second",
                code="too_many_requests", retry_after=1,
            )  # fmt: skip
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > self._limits.max_bytes:
            raise self._too_large()

    def _limited(self, scope: Scope, receive: Receive) -> Receive:
        """`receive` that counts bytes, for not all say beforehand how many there are, and seconds."""
        read, complete = 0, scope["method"] != "POST"
        until = time.monotonic() + self._limits.upload_seconds

        async def limited() -> MutableMapping[str, Any]:
            nonlocal read, complete
            if complete:  # what comes now is that the client has gone
                return await receive()
            try:
                async with asyncio.timeout(until - time.monotonic()):
                    message = await receive()
            except TimeoutError:
                raise RequestError(
                    408, f"the request's body did not come within {self._limits.upload_seconds:g} s"
                ) from None
            read += len(message.get("body", b""))
            if read > self._limits.max_bytes:
                raise self._too_large()
            complete = not message.get("more_body", False)
            return message

        return limited

    def _too_large(self) -> RequestError:
        most = self._limits.max_bytes
        return RequestError(
            413, f"the request is larger than the {most:,} bytes that are allowed; cut or compress the audio (FLAC, "
            "Ogg)", code="request_too_large",
        )  # fmt: skip


async def refuse(refusal: RequestError, send: Send) -> None:
    """Answer with an error; the connection is closed, for the body may not have been read."""
    body = json.dumps(refusal.content()).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body)), "connection": "close"}
    pairs = [(name.encode(), value.encode()) for name, value in (headers | refusal.headers).items()]
    await send({"type": "http.response.start", "status": refusal.status, "headers": pairs})
    await send({"type": "http.response.body", "body": body})


def _digest(key: str) -> bytes:
    """Of the same length for every key, so that the comparison tells nothing of it."""
    return hashlib.sha256(key.encode()).digest()


def _method(scope: Scope) -> str:
    return scope["method"] if scope["method"] in ("GET", "POST") else "other"

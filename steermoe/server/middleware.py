"""Checks before a request is read: API key, number of requests, size of the body, time of the upload. Plain ASGI."""

import asyncio
import hmac
import time
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from fastapi.responses import JSONResponse

from steermoe.server.metrics import Metrics
from steermoe.server.schema import RequestError

PUBLIC = ("/health", "/health/live", "/health/ready")  # no key needed
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class RequestGuard:
    """Answers requests that may not pass, and counts all of them.

    Args:
        app: the application.
        metrics: where requests are counted.
        key: the API key that requests must have; None: none.
        max_bytes: size of a body.
        max_requests: requests with a body that are answered at a time.
        upload_seconds: time in which a body must arrive.
    """

    def __init__(
        self, app: Any, metrics: Metrics, key: str | None, max_bytes: int, max_requests: int, upload_seconds: float
    ) -> None:  # fmt: skip
        self._app, self._metrics, self._key = app, metrics, key
        self._max_bytes, self._max_requests, self._upload_seconds = max_bytes, max_requests, upload_seconds
        self._active = 0

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it with an error."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.perf_counter(), 500
        request_id = uuid.uuid4().hex.encode()

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", []), (b"x-request-id", request_id)]
            await send(message)

        posted = scope["method"] == "POST"
        self._active += posted
        try:
            self._check(scope)
            await self._app(scope, self._limited(receive) if posted else receive, sending)
        except RequestError as error:  # the body may not have been read
            headers = {"connection": "close"} | dict(error.headers or {})
            await JSONResponse(error.content(), error.status_code, headers)(scope, receive, sending)
        finally:
            self._active -= posted
            path = getattr(scope.get("route"), "path", "other")
            self._metrics.add_request(path, scope["method"], status, time.perf_counter() - began)

    def _check(self, scope: Message) -> None:
        headers = dict(scope["headers"])
        if self._key is not None and scope["path"] not in PUBLIC:
            kind, _, found = headers.get(b"authorization", b"").partition(b" ")
            if kind.lower() != b"bearer" or not hmac.compare_digest(found.strip(), self._key.encode()):
                message = "no valid API key; send it as `Authorization: Bearer KEY`"
                raise RequestError(
                    401, message, code="invalid_api_key", headers={"www-authenticate": "Bearer"}
                )
        if scope["method"] != "POST":
            return
        if self._active > self._max_requests:
            message = f"{self._max_requests} requests are being answered; try again later"
            raise RequestError(429, message, code="too_many_requests", headers={"retry-after": "1"})
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > self._max_bytes:
            raise self._too_large()

    def _limited(self, receive: Receive) -> Receive:
        """Return `receive` with limits of bytes and time."""
        read, complete = 0, False
        until = time.monotonic() + self._upload_seconds

        async def limited() -> Message:
            nonlocal read, complete
            if complete:  # only a disconnect can follow
                return await receive()
            try:
                async with asyncio.timeout(until - time.monotonic()):
                    message = await receive()
            except TimeoutError:
                late = f"the body of the request did not arrive within {self._upload_seconds:g} s"
                raise RequestError(408, late) from None
            read += len(message.get("body", b""))
            if read > self._max_bytes:
                raise self._too_large()
            complete = not message.get("more_body", False)
            return message

        return limited

    def _too_large(self) -> RequestError:
        message = (
            f"the request is larger than {self._max_bytes:,} bytes; cut or compress the audio (FLAC, Ogg)"
        )
        return RequestError(413, message, code="request_too_large")

"""Checks before a request is read: API key, number of requests, size of the body, time of the upload. Plain ASGI."""

import asyncio
import hmac
import ipaddress
import json
import os
import secrets
import socket
import time
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

from steermoe.server.metrics import Metrics
from steermoe.server.schema import RequestError

KEY_VARIABLE = "STEERMOE_API_KEY"
MIN_KEY_LENGTH = 16
PUBLIC = ("/health", "/health/live", "/health/ready")  # no key needed
PATHS = (
    *PUBLIC,
    "/metrics",
    "/openapi.json",
    "/v1/models",
    "/v1/audio/transcriptions",
    "/v1/chat/completions",
)
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
        self,
        app: Any,
        metrics: Metrics,
        key: str | None,
        max_bytes: int,
        max_requests: int,
        upload_seconds: float,
    ) -> None:
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
            # HEAD is answered as GET; uvicorn leaves the body out.
            method = "GET" if scope["method"] == "HEAD" else scope["method"]
            await self._app(
                {**scope, "method": method}, self._limited(receive) if posted else receive, sending
            )
        except RequestError as refusal:
            await _refuse(refusal, sending)
        finally:
            self._active -= posted
            path = scope["path"] if scope["path"] in PATHS else "other"
            self._metrics.requests.labels(path, "POST" if posted else "GET", str(status)).inc()
            self._metrics.latency.labels(path).observe(time.perf_counter() - began)

    def _check(self, scope: Message) -> None:
        headers = dict(scope["headers"])
        if self._key is not None and scope["path"] not in PUBLIC:
            kind, _, found = headers.get(b"authorization", b"").partition(b" ")
            if kind.lower() != b"bearer" or not hmac.compare_digest(found.strip(), self._key.encode()):
                raise RequestError(
                    401, "no valid API key; send it as `Authorization: Bearer KEY`", code="invalid_api_key"
                )
        if scope["method"] != "POST":
            return
        if self._active > self._max_requests:
            raise RequestError(
                429, f"{self._max_requests} requests are being answered; try again later", code="too_many_requests",
                retry_after=1,
            )  # fmt: skip
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
                raise RequestError(
                    408, f"the body of the request did not arrive within {self._upload_seconds:g} s"
                ) from None
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


async def _refuse(refusal: RequestError, send: Send) -> None:
    """Send an error and close the connection, because the body may not have been read."""
    body = json.dumps(refusal.content()).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body)), "connection": "close"}
    pairs = [(name.encode(), value.encode()) for name, value in (headers | refusal.headers).items()]
    await send({"type": "http.response.start", "status": refusal.status, "headers": pairs})
    await send({"type": "http.response.body", "body": body})


def is_loopback(host: str) -> bool:
    """Return whether an address can be reached from this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def local_names(host: str) -> list[str]:
    """Return the host names of requests to a server that listens at a loopback address."""
    return ["127.0.0.1", "localhost", "[::1]", f"[{host}]" if ":" in host else host]


def bind(host: str, port: int) -> socket.socket:
    """Return a listening socket; port 0 means any free port. Clients wait until it is served.

    Raises:
        OSError: the address cannot be used.
    """
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise OSError(f"--host {host}, --port {port}: {error.strerror}; use another") from error


def api_key(host: str, file: Path | None) -> tuple[str | None, bool]:
    """Return the key that requests must have, and whether it was generated now.

    It comes from a file or from STEERMOE_API_KEY, never from the command line, which other users of the machine
    can see. Without either, a loopback address needs no key, and any other gets a generated one.

    Raises:
        ValueError: the key is too short or has illegal characters.
        OSError: the file cannot be read.
    """
    if file is not None:
        source, key = str(file), file.read_text(encoding="utf-8").strip()
    elif KEY_VARIABLE in os.environ:
        source, key = KEY_VARIABLE, os.environ[KEY_VARIABLE].strip()
    elif is_loopback(host):
        return None, False
    else:
        return secrets.token_urlsafe(32), True
    if len(key) < MIN_KEY_LENGTH or not key.isascii() or not key.isprintable() or " " in key:
        raise ValueError(
            f"{source}: found {len(key)} characters; expected a key of at least {MIN_KEY_LENGTH} printable ASCII "
            "characters without spaces, for instance from `openssl rand -base64 32`"
        )
    return key, False

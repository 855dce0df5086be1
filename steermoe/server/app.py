"""The HTTP server: OpenAI's transcriptions, chat completions and models; health; metrics."""

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect

from steermoe.asr.transcript import Transcript
from steermoe.server import metrics, schema
from steermoe.server.auth import own_names
from steermoe.server.completion import Reply
from steermoe.server.engine import Answered, Question
from steermoe.server.errors import RequestError
from steermoe.server.middleware import Gate
from steermoe.server.schema import Chat
from steermoe.server.service import Service, Written, pieces
from steermoe.server.transcription import Wanted

Result = TypeVar("Result")
FORM_FIELDS = 32
EVENTS = {"cache-control": "no-store", "x-accel-buffering": "no"}
log = logging.getLogger("steermoe.server")


def create_app(service: Service) -> FastAPI:
    """The application without its gate."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(service.close)

    app = FastAPI(title="SteerMoE", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.exception_handler(RequestError)(_refused)
    app.exception_handler(HTTPException)(_http)
    app.exception_handler(ClientDisconnect)(_left)
    app.exception_handler(Exception)(_broken)
    _watch(app, service)

    @app.post("/v1/audio/transcriptions")
    async def transcriptions(request: Request) -> Response:
        """What is said in a recording; OpenAI's fields as a form."""
        async with request.form(
            max_files=2, max_fields=FORM_FIELDS, max_part_size=4 * service.limits.max_text
        ) as form:
            schema.check_form([name for name, _ in form.multi_items()])
            file = form.get("file")
            if not isinstance(file, UploadFile):
                raise RequestError(400, "file: missing; send the recording as multipart/form-data", "file")
            data = await file.read()
            fields = {name: str(value) for name, value in form.items() if name != "file"}
            if files := [name for name in fields if isinstance(form[name], UploadFile)]:
                raise RequestError(400, f"{files[0]}: found a file, expected a text", files[0])
            granularities = tuple(str(value) for value in form.getlist("timestamp_granularities[]"))
        wanted = Wanted(service, fields, granularities)

        async def work(written: Written | None = None) -> Transcript:
            async with service.decoded(data, "file") as samples:
                return await service.transcribe(samples, wanted.how, written)

        if wanted.stream:
            return await _stream(pieces(work), _delta, wanted.done)
        transcript = await _unless_gone(request, work())
        content, kind = wanted.content(transcript)
        return Response(content, media_type=kind, headers=wanted.headers(transcript))

    @app.post("/v1/chat/completions")
    async def completions(request: Request) -> Response:
        """The answer to a question about a recording; OpenAI's body in JSON."""
        chat = Chat.read(await request.body())
        service.check_name(chat.model)
        turns, data = chat.turns(), chat.audio()
        tools = tuple(chat.tools) if chat.tools is not None and chat.tool_choice != "none" else None
        generation, seed = chat.generation(service.limits)
        read = sum(len(turn.text) + len(str(turn.calls or "")) for turn in turns) + len(json.dumps(tools))
        if read > service.limits.max_text:
            raise RequestError(
                400, f"messages: more than {service.limits.max_text} characters of text and tools", "messages"
            )

        async def work(written: Written | None = None) -> Answered:
            async with service.decoded(data, "messages") as samples:
                question = Question(samples, generation, turns, tools=tools, seed=seed, scored=True)
                # What calls a tool is known when all was read.
                return await service.ask(question, written if tools is None else None)

        reply = Reply(service.name, service.warnings)
        if chat.stream:
            usage = bool(chat.stream_options and chat.stream_options.include_usage)
            return await _stream(pieces(work), reply.delta, lambda answered: reply.last(answered, usage))
        return JSONResponse(reply.whole(await _unless_gone(request, work())))

    return app


def _watch(app: FastAPI, service: Service) -> None:
    """The addresses that only tell something."""
    began = int(time.time())
    model = {"id": service.name, "object": "model", "created": began, "owned_by": "steermoe"}

    @app.get("/health/live")
    async def live() -> dict[str, str]:
        """The process answers."""
        return {"status": "live"}

    @app.get("/health")
    @app.get("/health/ready")
    async def ready() -> Response:
        """Requests would be answered."""
        if service.ready and not service.closing:
            return JSONResponse({"status": "ready"})
        return JSONResponse({"status": "closing" if service.closing else "broken"}, 503)

    @app.get("/metrics")
    async def show() -> Response:
        """Counters for Prometheus."""
        return Response(service.metrics.text(), media_type=metrics.CONTENT_TYPE)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        """The model that is served."""
        return {"object": "list", "data": [model]}

    @app.get("/v1/models/{name:path}")
    async def one(name: str) -> dict[str, Any]:
        """The model that is served, if it is the one that is asked for."""
        service.check_name(name)
        return model


def _delta(piece: str) -> dict[str, Any]:
    return {"type": "transcript.text.delta", "delta": piece}


async def _unless_gone(request: Request, work: Awaitable[Result]) -> Result:
    """The result of some work, which is given up when the client goes."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait([task, gone], return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise RequestError(499, "the client has gone")
        return task.result()
    finally:
        gone.cancel()
        task.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _stream(
    found: AsyncIterator[str | Result],
    piece: Callable[[str], Any],
    last: Callable[[Result], list[Any]],
) -> Response:
    """Server-sent events. What fails before the first of them is answered as any error."""
    first = await anext(found)

    async def events() -> AsyncIterator[str]:
        part = first
        try:
            while isinstance(part, str):
                yield _event(piece(part))
                part = await anext(found)
            for event in last(part):
                yield _event(event)
        except RequestError as refusal:
            yield _event(refusal.content())
        finally:
            await found.aclose()  # pyright: ignore[reportAttributeAccessIssue] - it is a generator

    return StreamingResponse(events(), media_type="text/event-stream", headers=EVENTS)


def _event(content: Any) -> str:
    return f"data: {content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)}\n\n"


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    return JSONResponse(error.content(), error.status, error.headers)


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path}: {error.detail}"
    refusal = RequestError(error.status_code, message)
    refusal.headers |= error.headers or {}
    if refusal.headers.get("Allow") == "GET":  # the gate answers HEAD, too
        refusal.headers["Allow"] = "GET, HEAD"
    return await _refused(request, refusal)


async def _left(request: Request, _: Exception) -> Response:
    log.info("%s %s: the client left during the upload", request.method, request.url.path)
    return await _refused(request, RequestError(499, "the client has gone"))


async def _broken(request: Request, error: Exception) -> Response:
    log.error("%s %s", request.method, request.url.path, exc_info=error)
    return await _refused(request, RequestError(500, "the server failed; its log says why"))


class Server(uvicorn.Server):
    """Runs the application; after a signal to stop, what was accepted is finished first, and no more is accepted."""

    def __init__(
        self, service: Service, host: str, port: int, key: str | None, announce: Callable[[str], None]
    ) -> None:
        app: Any = create_app(service)
        if (
            key is None
        ):  # without a key only names of this machine: a web page may give its own name our address
            app.add_middleware(TrustedHostMiddleware, allowed_hosts=own_names(host))
        self.gate = Gate(app, service.limits, service.metrics, key)
        settings = uvicorn.Config(
            self.gate, host, port, log_level="warning", access_log=False, timeout_graceful_shutdown=2,
            server_header=False,
        )  # fmt: skip
        super().__init__(settings)
        self._service, self._announce, self._until = service, announce, 0.0

    async def startup(self, sockets: Any = None) -> None:
        """Listen, and say where."""
        await super().startup(sockets)
        if self.started:
            host, port = self.servers[0].sockets[0].getsockname()[:2]
            self._announce(f"http://{f'[{host}]' if ':' in host else host}:{port}")

    def handle_exit(self, sig: int, frame: Any) -> None:
        """The first signal: take no more, finish. The second: end."""
        if self.gate.closing:
            self.should_exit = self.force_exit = True
        self.gate.closing = self._service.closing = True
        self._until = time.monotonic() + self._service.limits.drain_seconds

    async def on_tick(self, counter: int) -> bool:
        """Whether to end now."""
        if self.gate.closing and (not self.gate.active or time.monotonic() > self._until):
            self.should_exit = True
        return await super().on_tick(counter)

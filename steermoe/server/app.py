"""The HTTP server: OpenAI's transcriptions, chat completions and models, health and metrics."""

import asyncio
import functools
import json
import logging
import math
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, asynccontextmanager
from typing import Any, TypeVar

import numpy as np
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect

from steermoe.asr.recognizer import POOL, Recognizer, longest
from steermoe.asr.transcript import Transcript
from steermoe.audio.io import BLOCK_SECONDS, RATE, AudioError
from steermoe.audio.vad import Segmenter
from steermoe.config import Generation
from steermoe.data.prompts import conversation
from steermoe.models.chat import MessageError, read_messages
from steermoe.models.generation import GREEDY
from steermoe.models.inference import nothing_heard, notice, unanswerable
from steermoe.models.tools import check_tools
from steermoe.server.decoding import decode
from steermoe.server.engine import Engine, Limits, Question
from steermoe.server.middleware import RequestGuard
from steermoe.server.schema import Answered, ChatReply, ChatRequest, RequestError, TranscriptionRequest
from steermoe.server.vllm_client import RemoteError

Result = TypeVar("Result")
OnText = Callable[[str], object]
EVENT_HEADERS = {"cache-control": "no-store", "x-accel-buffering": "no"}
log = logging.getLogger("steermoe.server")


class Service:
    """What the routes share.

    Args:
        engine: the model's queue.
        name: the model's name in requests.
        language: that the adapter was trained on; None: not known.
    """

    def __init__(self, engine: Engine, name: str, language: str | None) -> None:
        self.engine, self.name, self.language, self.limits = engine, name, language, engine.limits
        self.notice = notice(engine.model)
        self._decoders = ThreadPoolExecutor(self.limits.decoders, thread_name_prefix="decoder")
        self._readers = ThreadPoolExecutor(self.limits.max_requests, thread_name_prefix="reader")
        Segmenter(longest(engine.model))  # loads its model before the first request

    def close(self) -> None:
        """Cancel what still waits, and end all threads."""
        self.engine.close()
        for threads in (self._decoders, self._readers):
            threads.shutdown(cancel_futures=True)

    def check_model(self, model: str) -> None:
        """Raise RequestError if another model is requested."""
        if model != self.name:
            message = f"model: found {model!r}; this server has {self.name!r}"
            raise RequestError(404, message, "model", "model_not_found")

    def warnings(self, found: Transcript) -> list[str]:
        """Return the warnings about a transcript and about the model."""
        return [*found.warnings, *([] if self.notice is None else [self.notice])]

    async def decode(self, data: bytes, param: str) -> np.ndarray:
        """Return the waveform (N,) of a file; `param` is its field in the request."""
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._decoders, decode, data, self.limits.max_seconds)
        except AudioError as error:
            raise RequestError(400, str(error), param, "invalid_audio") from error

    async def answer(
        self, question: Callable[[], Question | None], on_text: OnText | None = None
    ) -> Answered:
        """Answer a question, None if there is no speech; `on_text` gets the text while it is generated."""
        found = await asyncio.get_running_loop().run_in_executor(self._readers, question)
        if found is None:
            return Answered(nothing_heard())
        cancelled = threading.Event()
        try:
            return await asyncio.wrap_future(self.engine.submit(found, on_text, cancelled).answer)
        finally:
            self.engine.cancel(cancelled)

    async def transcribe(
        self, samples: np.ndarray, wanted: TranscriptionRequest, on_text: OnText | None = None
    ) -> Transcript:
        """Transcribe a recording of any length; `on_text` gets the text segment by segment."""
        engine, cancelled = self.engine, threading.Event()
        recognizer = Recognizer(
            engine.model, context=wanted.prompt, words="word" in wanted.timestamp_granularities,
            answer=engine.answer_segments(cancelled),
            generation=_generation(self.limits.max_tokens, wanted.temperature),
            max_batch_seconds=self.limits.max_batch_seconds / POOL,
        )  # fmt: skip
        if on_text is None:
            work = functools.partial(recognizer.transcript, samples)
        else:
            work = functools.partial(_stream_segments, recognizer, samples, on_text)
        try:
            return await asyncio.get_running_loop().run_in_executor(self._readers, work)
        finally:
            engine.cancel(cancelled)


def _generation(tokens: int, temperature: float, top_p: float | None = None) -> Generation:
    sampled = {"strategy": "sample", "temperature": temperature, "top_p": top_p} if temperature else {}
    return GREEDY.model_copy(update={"max_new_tokens": tokens, **sampled})


def _stream_segments(recognizer: Recognizer, samples: np.ndarray, on_text: OnText) -> Transcript:
    count = round(BLOCK_SECONDS * RATE)
    blocks = (samples[first : first + count] for first in range(0, len(samples), count))
    segments = []
    for event in recognizer.stream(blocks, partial_seconds=math.inf):
        if event.kind == "final" and event.segment.text:
            on_text(f" {event.segment.text}" if segments else event.segment.text)
            segments.append(event.segment)
    return Transcript(tuple(segments), len(samples) / RATE)


def create_app(
    engine: Engine, name: str, language: str | None = None, key: str | None = None, hosts: list[str] | None = None
) -> FastAPI:  # fmt: skip
    """Return the application.

    Args:
        engine: the model's queue.
        name: the model's name in requests.
        language: that the adapter was trained on.
        key: the API key that requests must have.
        hosts: host names that requests may have; without a key, a web page may point its own name to our address.
    """
    service, limits = Service(engine, name, language), engine.limits

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(service.close)

    app = FastAPI(title="SteerMoE", lifespan=lifespan, docs_url=None, redoc_url=None)
    for kind in (RequestError, RemoteError, ValueError, HTTPException, ClientDisconnect, Exception):
        app.add_exception_handler(kind, _handle)
    if hosts is not None:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=hosts)
    app.add_middleware(
        RequestGuard, metrics=engine.metrics, key=key, max_bytes=limits.max_bytes, max_requests=limits.max_requests,
        upload_seconds=limits.upload_seconds,
    )  # fmt: skip
    _add_transcriptions(app, service)
    _add_chat(app, service)
    _add_status(app, service)
    return app


def _add_transcriptions(app: FastAPI, service: Service) -> None:
    @app.post("/v1/audio/transcriptions")
    async def transcriptions(request: Request) -> Response:
        """Transcribe a recording; OpenAI's fields as a form."""
        async with request.form(
            max_files=1, max_fields=32, max_part_size=4 * service.limits.max_text
        ) as form:
            wanted, data = await _read_form(form)
        service.check_model(wanted.model)
        if len(wanted.prompt or "") > service.limits.max_text:
            raise RequestError(400, f"prompt: more than {service.limits.max_text} characters", "prompt")
        known = service.language
        if None not in (wanted.language, known) and wanted.language != known:
            message = f"language: found {wanted.language!r}; {service.name} is for {known}; leave it out"
            raise RequestError(400, message, "language")

        async def work(on_text: OnText | None = None) -> Transcript:
            return await service.transcribe(await service.decode(data, "file"), wanted, on_text)

        def done(found: Transcript) -> list[Any]:
            event = {"type": "transcript.text.done", "text": found.text}
            return [event | ({"warnings": warnings} if (warnings := service.warnings(found)) else {})]

        if wanted.stream:
            return await _stream(
                request, work, lambda text: {"type": "transcript.text.delta", "delta": text}, done
            )
        found = await _unless_disconnected(request, work())
        warnings = service.warnings(found)
        headers = {"x-steermoe-warnings": "; ".join(warnings)} if warnings else {}
        content = wanted.reply(found, warnings, service.language)
        if isinstance(content, str):
            return Response(content, media_type="text/plain; charset=utf-8", headers=headers)
        return JSONResponse(content, headers=headers)


async def _read_form(form: FormData) -> tuple[TranscriptionRequest, bytes]:
    """Return the fields and the file's bytes."""
    fields: dict[str, Any] = {}
    for name, value in form.multi_items():
        if name.endswith("[]"):
            fields.setdefault(name, []).append(value)
        elif name in fields:
            raise RequestError(400, f"{name}: found twice, expected once", name)
        else:
            fields[name] = value
    file = fields.pop("file", None)
    if not isinstance(file, UploadFile):
        raise RequestError(400, "file: missing; send the recording as multipart/form-data", "file")
    return TranscriptionRequest.parse(fields), await file.read()


def _add_chat(app: FastAPI, service: Service) -> None:
    @app.post("/v1/chat/completions")
    async def chat_completions(request: Request) -> Response:
        """Answer a question about a recording; OpenAI's body in JSON."""
        chat = ChatRequest.parse(await request.body())
        service.check_model(chat.model)
        texts, about, audio, tools = _read_chat(chat, service)
        tokens = chat.token_limit(service.limits.max_tokens)
        generation = _generation(tokens, chat.temperature, chat.top_p)

        async def work(on_text: OnText | None = None) -> Answered:
            samples = await service.decode(audio, "messages")

            def question() -> Question | None:
                if unanswerable(service.engine.model, samples, bool(about)):
                    return None
                return service.engine.question(samples, texts, generation, chat.seed % 2**63, tools)

            # Whether text belongs to a call is known at the end.
            return await service.answer(question, on_text if tools is None else None)

        reply = ChatReply(service.name, service.notice)
        if not chat.stream:
            return JSONResponse(reply.whole(await _unless_disconnected(request, work())))
        usage = bool(chat.stream_options and chat.stream_options.include_usage)

        def done(found: Answered) -> list[Any]:
            return [*reply.last(found, "" if tools is None else found.answer.text, usage), "[DONE]"]

        return await _stream(request, work, lambda text: reply.chunk({"content": text}), done)


def _read_chat(
    chat: ChatRequest, service: Service
) -> tuple[tuple[str, str], str, Any, tuple[dict, ...] | None]:
    """Return the prompt before and after the audio, the user's text, the audio, and the tools."""
    model, most = service.engine.model, service.limits.max_text
    tools = None if chat.tools is None or chat.tool_choice == "none" else tuple(chat.tools)
    try:
        turns, recordings = read_messages(chat.messages, allow_local=False)
        if len(recordings) != 1:
            raise MessageError("messages", f"found {len(recordings)} parts of type input_audio, expected one")
        written = "".join(turn.text + json.dumps(turn.calls) for turn in turns) + json.dumps(tools)
        if len(written) > most:
            raise MessageError("messages", f"more than {most} characters of text and tools")
        if tools is not None:
            check_tools(tools)
        before, after = conversation(model.config.prompts, model.tokenizer, turns, tools)
    except ValueError as error:
        raise RequestError(400, str(error), getattr(error, "field", "messages")) from error
    about = " ".join(turn.text for turn in turns if turn.role == "user").strip()
    return (before, after), about, recordings[0], tools


def _add_status(app: FastAPI, service: Service) -> None:
    entry = {"id": service.name, "object": "model", "created": int(time.time()), "owned_by": "steermoe"}

    @app.get("/health")
    @app.get("/health/live")
    @app.get("/health/ready")
    async def health() -> Response:
        """Tell whether requests are answered."""
        alive = service.engine.alive
        return JSONResponse({"status": "ready" if alive else "broken"}, 200 if alive else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        """Return the metrics for Prometheus."""
        return Response(service.engine.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        """Return the model that is served, in a list."""
        return {"object": "list", "data": [entry]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        """Return the model that is served, if this is its name."""
        service.check_model(name)
        return entry


async def _unless_disconnected(request: Request, work: Awaitable[Result]) -> Result:
    """Return the result of some work, which is cancelled when the client disconnects."""

    async def disconnected() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(disconnected())
    try:
        await asyncio.wait([task, gone], return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        for each in (task, gone):
            each.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _pieces(work: Callable[[OnText], Awaitable[Result]]) -> AsyncGenerator[str | Result]:
    """Yield the text that some work passes on, and its result; the work is cancelled with the generator."""
    loop, queue = asyncio.get_running_loop(), asyncio.Queue()
    task = asyncio.ensure_future(work(lambda text: loop.call_soon_threadsafe(queue.put_nowait, text)))
    task.add_done_callback(queue.put_nowait)
    try:
        while isinstance(piece := await queue.get(), str):
            yield piece
        yield task.result()
    finally:
        task.cancel()


async def _stream(
    request: Request,
    work: Callable[[OnText], Awaitable[Result]],
    delta: Callable[[str], Any],
    done: Callable[[Result], list[Any]],
) -> Response:
    """Return a stream of server-sent events; an error before the first is an ordinary response."""
    pieces = _pieces(work)
    first = await _unless_disconnected(request, anext(pieces))

    async def events() -> AsyncIterator[str]:
        async with aclosing(pieces):
            piece = first
            try:
                while isinstance(piece, str):
                    yield _event(delta(piece))
                    piece = await anext(pieces)
                for event in done(piece):
                    yield _event(event)
            except Exception as error:
                yield _event(_refusal(error).content())

    return StreamingResponse(events(), media_type="text/event-stream", headers=EVENT_HEADERS)


def _event(content: Any) -> str:
    return f"data: {content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)}\n\n"


async def _handle(request: Request, error: Exception) -> Response:
    where, headers = f"{request.method} {request.url.path}", dict[str, str]()
    if isinstance(error, HTTPException):
        headers |= error.headers or {}
        error = RequestError(error.status_code, f"{where}: {error.detail}")
    refusal = _refusal(error)
    log.info("%s: %s %s", where, refusal.status, refusal)
    return JSONResponse(refusal.content(), refusal.status, refusal.headers | headers)


def _refusal(error: Exception) -> RequestError:
    """Return the reply to an error."""
    if isinstance(error, RequestError):
        return error
    if isinstance(error, ClientDisconnect):
        return RequestError(499, "the client disconnected")
    if isinstance(error, RemoteError):
        return RequestError(502, str(error), code="llm_unavailable")
    if isinstance(error, ValueError):  # of a prompt or recording that the model cannot take
        return RequestError(400, str(error))
    log.error("a request failed", exc_info=error)
    return RequestError(500, "the server failed; see its log")


def create_server(app: FastAPI, limits: Limits) -> uvicorn.Server:
    """Return the server of an application; after SIGTERM or Ctrl-C it finishes what it accepted."""
    return uvicorn.Server(
        uvicorn.Config(
            app, log_level="warning", access_log=False, server_header=False,
            timeout_graceful_shutdown=math.ceil(limits.drain_seconds),
        )
    )  # fmt: skip

"""The HTTP server: OpenAI's transcriptions, chat completions and models, health and metrics."""

import asyncio
import json
import logging
import math
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Annotated, Any, TypeVar

import numpy as np
import uvicorn
from fastapi import FastAPI, Form, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect

from steermoe.asr.recognizer import POOL, Recognizer, longest
from steermoe.asr.transcript import Transcript
from steermoe.audio.io import RATE, AudioError, blocks
from steermoe.audio.vad import Segmenter
from steermoe.config import Generation
from steermoe.data.prompts import conversation, texts_around
from steermoe.models.chat import MessageError, read_messages
from steermoe.models.generation import GREEDY
from steermoe.models.inference import nothing_heard, notice, unanswerable
from steermoe.models.tools import Answer, check_tools
from steermoe.server.engine import Engine, Job
from steermoe.server.middleware import RequestGuard
from steermoe.server.schema import Answered, ChatReply, ChatRequest, RequestError, TranscriptionRequest
from steermoe.server.vllm_client import RemoteError

Result = TypeVar("Result")
OnText = Callable[[str], object]
EVENT_HEADERS = {"cache-control": "no-store", "x-accel-buffering": "no"}
DECODERS = 2  # recordings decoded at a time
DRAIN_SECONDS = 60  # to finish accepted requests after a signal to stop
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
        self._decoders = ThreadPoolExecutor(DECODERS, thread_name_prefix="decoder")
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

    async def decode(self, data: Any, param: str) -> np.ndarray:
        """Return the waveform (N,) of a file; `param` is its field in the request."""

        def whole() -> np.ndarray:  # in blocks, for a high sampling rate takes much memory
            return np.concatenate(list(blocks(data, self.limits.max_seconds)))

        try:
            return await asyncio.get_running_loop().run_in_executor(self._decoders, whole)
        except AudioError as error:
            raise RequestError(400, str(error), param, "invalid_audio") from error

    async def job(self, chat: ChatRequest, samples: np.ndarray, asked: "Asked") -> Job | None:
        """Return what a chat asks about a recording; None if there is nothing to be heard."""
        tokens, seed = chat.token_limit(self.limits.max_tokens), chat.seed % 2**63
        generation = _generation(self.engine.model, tokens, chat.temperature, chat.top_p)
        if await self._in_thread(unanswerable, self.engine.model, samples, asked.question):
            return None
        return await self._in_thread(self.engine.job, samples, asked.texts, generation, seed, asked.tools)

    async def answer(self, job: Job | None) -> Answered:
        """Answer a question."""
        if job is None:
            return Answered(nothing_heard())
        try:
            return await asyncio.wrap_future(self.engine.submit(job))
        finally:
            self.engine.cancel(job.cancelled)

    async def transcribe(
        self, samples: np.ndarray, form: TranscriptionRequest, on_text: OnText | None
    ) -> Transcript:
        """Transcribe a recording of any length; `on_text` gets the text segment by segment."""
        engine, cancelled = self.engine, threading.Event()
        generation = _generation(engine.model, self.limits.max_tokens, form.temperature)

        def answer(waveforms: Sequence[np.ndarray], prompt: str) -> list[Answer]:
            texts = texts_around(engine.model.config.prompts, engine.model.tokenizer, prompt)
            jobs = [engine.job(each, texts, generation, cancelled=cancelled) for each in waveforms]
            futures = [engine.submit(job) for job in jobs]
            return [future.result().answer for future in futures]

        recognizer = Recognizer(
            engine.model, context=form.prompt, words="word" in form.timestamp_granularities, answer=answer,
            max_batch_seconds=self.limits.max_batch_seconds / POOL,
        )  # fmt: skip
        try:
            if on_text is None:
                return await self._in_thread(recognizer.transcript, samples)
            return await self._in_thread(_segments, recognizer, samples, on_text)
        finally:
            engine.cancel(cancelled)

    async def _in_thread(self, work: Callable[..., Result], *given: Any) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._readers, work, *given)


def _generation(model: Any, tokens: int, temperature: float, top_p: float | None = None) -> Generation:
    """Return how a request is decoded: sampled, or greedily with the adapter's weight of CTC in transcripts."""
    greedy = {"ctc_weight": model.generation.ctc_weight}
    sampled = {"strategy": "sample", "temperature": temperature, "top_p": top_p}
    return GREEDY.model_copy(update={"max_new_tokens": tokens} | (sampled if temperature else greedy))


def _segments(recognizer: Recognizer, samples: np.ndarray, on_text: OnText) -> Transcript:
    """Transcribe segment by segment."""
    segments = []
    for event in recognizer.stream(blocks(samples), partial_seconds=math.inf):
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
    kinds = HTTPException, RequestValidationError, ClientDisconnect, RemoteError, ValueError, Exception
    for kind in kinds:  # pydantic's ValidationError is a ValueError
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
    async def transcriptions(
        request: Request, form: Annotated[TranscriptionRequest, Form(media_type="multipart/form-data")]
    ) -> Response:
        """Transcribe a recording."""
        service.check_model(form.model)
        if len(form.prompt or "") > service.limits.max_text:
            raise RequestError(400, f"prompt: more than {service.limits.max_text} characters", "prompt")
        known = service.language
        if None not in (form.language, known) and form.language != known:
            message = f"language: found {form.language!r}; {service.name} is for {known}; leave it out"
            raise RequestError(400, message, "language")
        service.engine.check_space()
        samples = await service.decode(form.file.file, "file")

        async def work(on_text: OnText | None = None) -> Transcript:
            return await service.transcribe(samples, form, on_text)

        def done(found: Transcript) -> list[Any]:
            event = {"type": "transcript.text.done", "text": found.text}
            return [event | ({"warnings": warnings} if (warnings := service.warnings(found)) else {})]

        if form.stream:
            return _stream(work, lambda text: {"type": "transcript.text.delta", "delta": text}, done)
        found = await _unless_disconnected(request, work())
        warnings = service.warnings(found)
        headers = {"x-steermoe-warnings": "; ".join(warnings)} if warnings else {}
        content = form.reply(found, warnings, service.language)
        if isinstance(content, str):
            return Response(content, media_type="text/plain; charset=utf-8", headers=headers)
        return JSONResponse(content, headers=headers)


def _add_chat(app: FastAPI, service: Service) -> None:
    @app.post("/v1/chat/completions")
    async def chat_completions(request: Request) -> Response:
        """Answer a question about a recording; OpenAI's body in JSON."""
        chat = ChatRequest.model_validate_json(await request.body())
        service.check_model(chat.model)
        asked = Asked(chat, service)
        service.engine.check_space()
        job = await service.job(chat, await service.decode(asked.audio, "messages"), asked)
        reply = ChatReply(service.name, service.notice)
        if not chat.stream:
            return JSONResponse(reply.whole(await _unless_disconnected(request, service.answer(job))))
        usage = bool(chat.stream_options and chat.stream_options.include_usage)

        def done(found: Answered) -> list[Any]:
            return [*reply.last(found, found.answer.text if asked.tools else "", usage), "[DONE]"]

        async def work(on_text: OnText) -> Answered:
            if job is not None and not asked.tools:  # whether text belongs to a call is known at the end
                job.on_text = on_text
            return await service.answer(job)

        return _stream(work, lambda text: reply.chunk({"content": text}), done)


class Asked:
    """What the messages of a chat ask: the texts before and after the audio, the audio, and the tools."""

    def __init__(self, chat: ChatRequest, service: Service) -> None:
        model, most = service.engine.model, service.limits.max_text
        self.tools = None if chat.tools is None or chat.tool_choice == "none" else tuple(chat.tools)
        try:
            turns, recordings = read_messages(chat.messages, allow_local=False)
            if len(recordings) != 1:
                found = f"found {len(recordings)} parts of type input_audio, expected one"
                raise MessageError("messages", found)
            written = "".join(turn.text + json.dumps(turn.calls) for turn in turns) + json.dumps(self.tools)
            if len(written) > most:
                raise MessageError("messages", f"more than {most} characters of text and tools")
            if self.tools is not None:
                check_tools(self.tools)
            self.texts = conversation(model.config.prompts, model.tokenizer, turns, self.tools)
        except ValueError as error:
            raise RequestError(400, str(error), getattr(error, "field", "messages")) from error
        self.audio: Any = recordings[0]
        self.question = any(turn.text.strip() for turn in turns if turn.role == "user")


def _add_status(app: FastAPI, service: Service) -> None:
    entry = {"id": service.name, "object": "model", "created": int(time.time()), "owned_by": "steermoe"}
    read = ["GET", "HEAD"]

    @app.api_route("/health", methods=read)
    @app.api_route("/health/live", methods=read)
    @app.api_route("/health/ready", methods=read)
    async def health() -> Response:
        """Tell whether requests are answered."""
        alive = service.engine.alive
        return JSONResponse({"status": "ready" if alive else "broken"}, 200 if alive else 503)

    @app.api_route("/metrics", methods=read)
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


def _stream(
    work: Callable[[OnText], Awaitable[Result]], delta: Callable[[str], Any], done: Callable[[Result], list[Any]]
) -> Response:  # fmt: skip
    """Return the text that some work passes on as server-sent events; it is cancelled when the client disconnects."""

    async def events() -> AsyncIterator[str]:
        loop, queue = asyncio.get_running_loop(), asyncio.Queue()
        task = asyncio.ensure_future(work(lambda text: loop.call_soon_threadsafe(queue.put_nowait, text)))
        task.add_done_callback(queue.put_nowait)
        try:
            while isinstance(text := await queue.get(), str):
                yield _event(delta(text))
            for event in done(task.result()):
                yield _event(event)
        except Exception as error:
            yield _event(_refusal(error).content())
        finally:
            task.cancel()

    return StreamingResponse(events(), media_type="text/event-stream", headers=EVENT_HEADERS)


def _event(content: Any) -> str:
    return f"data: {content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)}\n\n"


async def _handle(request: Request, error: Exception) -> Response:
    refusal = _refusal(error, f"{request.method} {request.url.path}: ")
    log.info("%s %s: %s %s", request.method, request.url.path, refusal.status_code, refusal.detail)
    return JSONResponse(refusal.content(), refusal.status_code, refusal.headers)


def _refusal(error: Exception, where: str = "") -> RequestError:
    """Return the reply to an error."""
    match error:
        case RequestError():
            return error
        case HTTPException():
            return RequestError(error.status_code, f"{where}{error.detail}", headers=error.headers)
        case RequestValidationError() | ValidationError():
            return RequestError.from_validation(error.errors())
        case ClientDisconnect():
            return RequestError(499, "the client disconnected")
        case RemoteError():
            return RequestError(502, str(error), code="llm_unavailable")
        case ValueError():  # of a prompt or recording that the model cannot take
            return RequestError(400, str(error))
    log.error("a request failed", exc_info=error)
    return RequestError(500, "the server failed; see its log")


def create_server(app: FastAPI) -> uvicorn.Server:
    """Return the server of an application; after SIGTERM or Ctrl-C it finishes what it accepted."""
    return uvicorn.Server(
        uvicorn.Config(
            app, log_level="warning", access_log=False, server_header=False,
            timeout_graceful_shutdown=DRAIN_SECONDS,
        )
    )  # fmt: skip

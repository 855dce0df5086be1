"""The demo page: record or upload, read, ask, see the experts at work, and turn their strengths.

    with running(page(listener, "steermoe", examples), "127.0.0.1", 7860, None, folder, 2**20) as address:
        ...

Nothing is fetched from, or told to, anybody but the server itself: fonts and scripts are its own. Visitors'
recordings lie in the folder GRADIO_TEMP_DIR, which is set before this file is imported, for at most 2 * KEPT.
"""

import functools
import html
import inspect
import logging
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import gradio as gr
from gradio.themes import Default
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware

from steermoe.asr import transcript as transcript_table
from steermoe.demo.callbacks import (
    LISTENING,
    NOT_HEARD,
    NOT_SEEN,
    NOT_USED,
    Strengths,
    Texts,
    Visit,
    Words,
    hint,
)
from steermoe.demo.examples import Example
from steermoe.demo.inference import ALL, Listener
from steermoe.models.inference import notice
from steermoe.server.auth import own_names

KEPT = 3600  # seconds
WEAKEST, STRONGEST, STEP = -2.0, 4.0, 0.1  # of a slider
USER = "steermoe"  # who logs in, where a password is needed
VISITORS = 64  # whose strengths are remembered
WAITING = 32  # requests that wait for the models
ABOUT = (
    "# SteerMoE\nA frozen speech encoder, steered layer by layer so that a frozen language model understands it. "
    "Take an example, record, or upload; then turn its experts up and down."
)
TURNING = "1: as trained; 0: off; below 0: the other way. An expert's counts times that of all experts."
CSS = """
.gradio-container {max-width: 1120px !important; width: 100%; margin: 0 auto !important}
#heard .html-container, #answers .html-container, #picture .html-container {padding: 0}
.hint {opacity: .8}
#picture img {width: 100%; max-width: 640px; display: block; margin: 0 auto; border-radius: 8px}
"""
log = logging.getLogger(__name__)
FONTS = ("system-ui", "sans-serif"), ("ui-monospace", "monospace")


def page(listener: Listener, name: str, examples: Sequence[Example]) -> gr.Blocks:
    """The page, not yet served.

    Args:
        listener: what answers.
        name: of its model.
        examples: recordings that a click gives.
    """
    visit = Visit(listener, name)
    with gr.Blocks(title="SteerMoE", analytics_enabled=False, delete_cache=(KEPT, KEPT)) as blocks:
        gr.Markdown(ABOUT)
        if said := notice(listener.model):
            gr.HTML(hint(said), padding=False, elem_id="notice")
        recording, strengths, texts, words = gr.State(None), gr.State({}), gr.State({}), gr.State([])
        with gr.Row():
            with gr.Column(min_width=300):
                audio = gr.Audio(
                    sources=["upload", "microphone"], type="filepath", label="Recording", buttons=[], editable=False
                )  # fmt: skip
                buttons = [gr.Button(f"“{example.text}”", size="sm") for example in examples]
            with gr.Column(min_width=300):
                heard = gr.HTML(hint(NOT_HEARD), padding=False, elem_id="heard")
        model: dict[str, Any] = {
            "concurrency_id": "models", "concurrency_limit": 1, "api_visibility": "private",
            "show_progress": "minimal",
        }  # fmt: skip
        light: dict[str, Any] = {"queue": False, "api_visibility": "private", "show_progress": "hidden"}
        draw = (
            _steering(visit, (recording, strengths, texts, words, heard), model, light)
            if listener.places
            else None
        )
        with gr.Row():
            with gr.Column(min_width=300):
                question = gr.Textbox(label="Question", placeholder="about what is said", max_lines=3)
                ask = gr.Button("Ask", variant="primary")
            with gr.Column(min_width=300):
                answers = gr.HTML(padding=False, elem_id="answers")

        def hear(*arguments: Any) -> tuple[str, Texts, Words]:
            try:
                return _told(visit.hear)(*arguments)
            except gr.Error as error:
                gr.Warning(error.message, duration=error.duration)
                return hint(NOT_USED), {}, []

        def listen(event: Any) -> None:
            """What follows when another recording is there: the transcript, the picture, the others."""
            cleared = event.success(
                lambda path: (path, {}, [], hint(LISTENING), ""), audio,
                [recording, texts, words, heard, answers], **light,
            )  # fmt: skip
            spoken = cleared.success(hear, [recording, strengths], [heard, texts, words], **model)
            seen = spoken if draw is None else spoken.success(**draw, **model)
            seen.success(_told(visit.compare), [recording, strengths, texts], [heard, texts], **model)

        nothing: dict[str, Any] = {"fn": lambda: None} | light
        audio.clear(lambda: (None, {}, [], hint(NOT_HEARD)), None, [recording, texts, words, heard], **light)
        listen(audio.upload(**nothing))
        listen(audio.stop_recording(**nothing))
        for button, example in zip(buttons, examples, strict=True):
            given = functools.partial(lambda one: (str(one.path), one.question), example)
            listen(button.click(given, None, [audio, question], **light))
        gr.on(
            [ask.click, question.submit],
            _told(visit.answer),
            [recording, strengths, question],
            answers,
            **model,
        )
    return blocks.queue(max_size=WAITING, api_open=False)


def _steering(
    visit: Visit, parts: Sequence[Any], model: dict[str, Any], light: dict[str, Any]
) -> dict[str, Any]:
    """Sliders and picture; returns the event that draws it."""
    recording, strengths, texts, words, heard = parts
    places, experts = visit.listener.places, visit.listener.experts
    with gr.Row():
        with gr.Column(min_width=300), gr.Accordion("Strength of the experts", open=len(places) <= 8):
            gr.HTML(hint(TURNING), padding=False)
            expert = gr.Dropdown(
                [("all experts", ALL), *((f"expert {number}", number) for number in range(max(experts)))],
                value=ALL, label="Of", filterable=False, elem_id="expert",
            )  # fmt: skip
            sliders = [
                gr.Slider(
                    WEAKEST, STRONGEST, 1.0, step=STEP, label=_layer(place), buttons=[], elem_id=f"at-{place}"
                )
                for place in places
            ]
            reset = gr.Button("Reset", elem_id="reset")
        with gr.Column(min_width=300):
            layer = gr.Dropdown(
                [(_layer(place), number) for number, place in enumerate(places)], value=len(places) - 1,
                label="Gates of", filterable=False,
            )  # fmt: skip
            picture = gr.HTML(hint(NOT_SEEN), padding=False, elem_id="picture")

    def shown(chosen: int, turned: Strengths) -> list[Any]:
        return [gr.update(value=factor, interactive=has) for factor, has in visit.factors(chosen, turned)]

    draw: dict[str, Any] = {
        "fn": _told(visit.draw),
        "inputs": [recording, strengths, texts, words, layer],
        "outputs": picture,
    }
    again = [strengths, heard, texts, words]
    moved = gr.on(
        [slider.input for slider in sliders], _told(visit.turn),
        [recording, strengths, texts, words, expert, *sliders], again, trigger_mode="always_last", **model,
    )  # fmt: skip
    moved.success(**draw, **model)
    expert.input(shown, [expert, strengths], sliders, **light)
    back = reset.click(lambda: (ALL, *[1.0] * len(places)), None, [expert, *sliders], **light)
    undone = back.success(_told(visit.reset), [recording, texts, words], again, **model)
    undone.success(**draw, **model)
    layer.input(**draw, **model)
    return draw


def _told(deed: Callable[..., Any]) -> Callable[..., Any]:
    """What goes wrong becomes a message on the page."""

    @contextmanager
    def telling() -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:  # after KEPT
            raise _message("the recording is no longer kept; give it again") from error
        except (ValueError, RuntimeError, OSError) as error:
            log.warning("told a visitor: %s", error)
            raise _message(str(error)) from error

    def call(*arguments: Any) -> Any:
        with telling():
            return deed(*arguments)

    def one_by_one(*arguments: Any) -> Iterator[Any]:
        with telling():
            yield gr.skip()  # a generator that yields nothing would empty what it may write
            yield from deed(*arguments)

    return one_by_one if inspect.isgeneratorfunction(deed) else call


def _message(text: str) -> gr.Error:
    return gr.Error(html.escape(text), duration=20, print_exception=False)


def _layer(place: str) -> str:
    return f"layer {place}" if place.isdecimal() else "after the encoder"


@contextmanager
def running(
    blocks: gr.Blocks, host: str, port: int, password: str | None, folder: str, most: int
) -> Iterator[str]:
    """Serve a page within the context, which is given its address.

    Args:
        blocks: the page.
        host, port: where; port 0: any that is free.
        password: that visitors log in with, as USER; without, only names of this machine are answered.
        folder: whose files may be shown, the examples'.
        most: bytes of an upload.

    Raises:
        OSError: the port is taken.
    """
    ours = Middleware(TrustedHostMiddleware, allowed_hosts=own_names(host))
    sans, mono = FONTS
    try:
        _, address, _ = blocks.launch(
            server_name=host, server_port=port or _free_port(host), prevent_thread_lock=True, quiet=True,
            share=False, inbrowser=False, footer_links=[], run_history=False, enable_monitoring=False,
            mcp_server=False, ssr_mode=False, pwa=False, allowed_paths=[folder], max_file_size=most,
            state_session_capacity=VISITORS, auth=None if password is None else (USER, password),
            css=CSS + transcript_table.CSS,
            theme=Default(font=sans, font_mono=mono),
            # a web page elsewhere may give its own name our address
            app_kwargs={"middleware": [ours]} if password is None else {},
        )  # fmt: skip
    except OSError as error:
        raise OSError(
            f"--port: {port} of {host} is taken; give another, or 0 for any that is free"
        ) from error
    try:
        yield address.rstrip("/")
    finally:
        blocks.close(verbose=False)


def _free_port(host: str) -> int:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as listening:
        listening.bind((host, 0))
        return listening.getsockname()[1]

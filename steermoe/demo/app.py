"""The demo page: record or upload, read the transcript, ask, see the experts' gates, and scale the experts.

Nothing is fetched from other machines: fonts and scripts are the page's own. Recordings are in the folder
GRADIO_TEMP_DIR, which is set before this file is imported, for at most 2 * KEPT.
"""

import base64
import functools
import html
import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import gradio as gr
from gradio.themes import Default
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware

from steermoe.asr.transcript import Transcript
from steermoe.demo.inference import ALL, Example, Models
from steermoe.demo.plots import gates_picture
from steermoe.demo.table import CSS as TABLE_CSS
from steermoe.demo.table import table
from steermoe.models.inference import notice
from steermoe.server.access import bind, local_names

KEPT = 3600  # seconds
USER = "steermoe"  # name to log in with, where there is a password
MAX_VISITORS, MAX_WAITING = 64, 32  # visitors whose scales are remembered, requests that wait for the models
ABOUT = (
    "# SteerMoE\nA frozen speech encoder, steered layer by layer so that a frozen language model understands it. "
    "Take an example, record, or upload; then scale its experts."
)
SCALES = "1: as trained; 0: off; below 0: reversed. An expert's scale is multiplied by that of all experts."
NO_TEXT, NO_PICTURE = "The transcript comes here.", "The picture of the experts comes here."
AS_TRAINED = "as trained"  # the title of the text without scales
CSS = """
.gradio-container {max-width: 1120px !important; width: 100%; margin: 0 auto !important}
#heard .html-container, #answers .html-container, #picture .html-container {padding: 0}
.hint {opacity: .8}
#picture img {width: 100%; max-width: 640px; display: block; margin: 0 auto; border-radius: 8px}
"""
Scales = dict[int, list[float]]
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Shown:
    """What the page shows of a recording: the transcript with the scales as set, and others by title."""

    path: str
    transcript: Transcript
    others: dict[str, str]


class Callbacks:
    """What the page's events do; all state is in their arguments.

    Args:
        models: the models.
        name: of the page's model.
    """

    def __init__(self, models: Models, name: str) -> None:
        self.models, self.name = models, name

    def transcribe(self, path: str | None, scales: Scales, shown: Shown | None) -> tuple[str, Shown | None]:
        """Return the transcript as HTML, and what is shown."""
        if path is None:
            return hint(NO_TEXT), None
        try:
            found = self.models.transcribe(self.models.load(path), scales)
        except (ValueError, OSError) as error:
            gr.Warning(html.escape(str(error)), duration=20)
            return hint("This recording cannot be used."), None
        shown = Shown(path, found, shown.others if shown is not None and shown.path == path else {})
        return self._table(scales, shown), shown

    def compare(self, path: str | None, scales: Scales, shown: Shown | None) -> Iterator[tuple[str, Shown]]:
        """Yield the transcripts of the other models as they are made."""
        if path is None or shown is None or shown.path != path:
            return
        samples, texts = self.models.load(path), iter(())
        if is_scaled(scales) and AS_TRAINED not in shown.others:
            texts = itertools.chain([(AS_TRAINED, self.models.transcribe(samples).text)])
        if not shown.others.keys() >= self.models.compared:
            texts = itertools.chain(texts, self.models.compare(samples))
        for title, text in texts:
            shown = replace(shown, others=shown.others | {title: text})
            yield self._table(scales, shown), shown

    def ask(self, path: str | None, scales: Scales, question: str) -> str:
        """Return the answers to a question as HTML."""
        if path is None:
            raise ValueError("there is no recording yet; record, upload, or take an example")
        rows, warnings = [], []
        for name, answer in self.models.ask(self.models.load(path), question, scales):
            rows.append((name or self._title(scales), answer.text, None))
            warnings += [hint(f"{name or self.name}: {warning}") for warning in answer.warnings]
        return table(rows) + "".join(warnings)

    def draw(self, path: str | None, scales: Scales, shown: Shown | None, place: int) -> str:
        """Return the picture as HTML."""
        if path is None or shown is None:
            return hint(NO_PICTURE)
        found = self.models.gates(self.models.load(path), scales)
        words = [word for segment in shown.transcript.segments for word in segment.words]
        data = base64.b64encode(gates_picture(found, words, place)).decode()
        text = shown.transcript.text
        about = (
            f"Spectrogram, and gates of layer {found.names[place]} over {found.seconds:.1f} seconds: {text}"
        )
        return f'<img alt="{html.escape(about)}" src="data:image/png;base64,{data}">'

    def _title(self, scales: Scales) -> str:
        return f"{self.name}, experts scaled" if is_scaled(scales) else self.name

    def _table(self, scales: Scales, shown: Shown) -> str:
        text, others = shown.transcript.text, dict(shown.others)
        plain = others.get(AS_TRAINED) if is_scaled(scales) else text
        if not is_scaled(scales):
            others.pop(AS_TRAINED, None)
        rows = [(name, other, plain) for name, other in others.items()]
        warnings = "".join(map(hint, shown.transcript.warnings))
        return table([(self._title(scales), text, plain), *rows]) + warnings


def is_scaled(scales: Scales) -> bool:
    """Return whether any scale is not 1."""
    return any(factor != 1 for factors in scales.values() for factor in factors)


def hint(text: str) -> str:
    """Return a remark as HTML."""
    return f'<p class="hint">{html.escape(text)}</p>'


def create_page(models: Models, name: str, examples: Sequence[Example]) -> gr.Blocks:
    """Return the page, not yet served.

    Args:
        models: the models.
        name: of the page's model.
        examples: recordings to begin with.
    """
    calls = Callbacks(models, name)
    queued: dict[str, Any] = {
        "concurrency_id": "models", "concurrency_limit": 1, "api_visibility": "private", "show_progress": "minimal",
    }  # fmt: skip
    direct: dict[str, Any] = {"queue": False, "api_visibility": "private", "show_progress": "hidden"}
    with gr.Blocks(title="SteerMoE", analytics_enabled=False, delete_cache=(KEPT, KEPT)) as page:
        gr.Markdown(ABOUT)
        if warning := notice(models.model):
            gr.HTML(hint(warning), padding=False, elem_id="notice")
        path, scales, shown = gr.State(None), gr.State({}), gr.State(None)
        with gr.Row():
            with gr.Column(min_width=300):
                audio = gr.Audio(
                    sources=["upload", "microphone"], type="filepath", label="Recording", buttons=[], editable=False
                )  # fmt: skip
                buttons = [gr.Button(f"“{example.text}”", size="sm") for example in examples]
            with gr.Column(min_width=300):
                heard = gr.HTML(hint(NO_TEXT), padding=False, elem_id="heard")
        update: list[dict[str, Any]] = [
            {"fn": calls.transcribe, "inputs": [path, scales, shown], "outputs": [heard, shown]},
            {"fn": reporting(calls.compare), "inputs": [path, scales, shown], "outputs": [heard, shown]},
        ]
        if models.hook_points:
            update.insert(1, _add_steering(calls, (path, scales, shown), update, queued, direct))
        with gr.Row():
            with gr.Column(min_width=300):
                question = gr.Textbox(label="Question", placeholder="about the recording", max_lines=3)
                ask = gr.Button("Ask", variant="primary")
            with gr.Column(min_width=300):
                answers = gr.HTML(padding=False, elem_id="answers")
        asked = [path, scales, question]
        gr.on([ask.click, question.submit], reporting(calls.ask), asked, answers, **queued)
        nothing: dict[str, Any] = {"fn": lambda: None, **direct}
        loaded = [audio.upload(**nothing), audio.stop_recording(**nothing), audio.clear(**nothing)]
        for button, example in zip(buttons, examples, strict=True):
            given = functools.partial(lambda one: (str(one.path), one.question), example)
            loaded.append(button.click(given, None, [audio, question], **direct))
        for event in loaded:
            event = event.success(lambda found: (found, ""), audio, [path, answers], **direct)
            _then(event, update, queued)
    return page.queue(max_size=MAX_WAITING, api_open=False)


def _then(event: Any, updates: Sequence[dict[str, Any]], queued: dict[str, Any]) -> None:
    for update in updates:
        event = event.success(**update, **queued)


def _add_steering(
    calls: Callbacks,
    state: Sequence[Any],
    update: list[dict[str, Any]],
    queued: dict[str, Any],
    direct: dict[str, Any],
) -> dict[str, Any]:
    """Add sliders and picture; return the event that draws it."""
    path, scales, shown = state
    points, names = calls.models.hook_points, [_layer(name) for name in calls.models.names]
    with gr.Row():
        with gr.Column(min_width=300), gr.Accordion("Scales of the experts", open=len(names) <= 8):
            gr.HTML(hint(SCALES), padding=False)
            experts = [
                (f"expert {number}", number) for number in range(max(point.experts for point in points))
            ]
            expert = gr.Dropdown([("all experts", ALL), *experts], value=ALL, label="Of", filterable=False)
            sliders = [
                gr.Slider(-2.0, 4.0, 1.0, step=0.1, label=label, buttons=[], elem_id=f"at-{name}")
                for label, name in zip(names, calls.models.names, strict=True)
            ]
            reset = gr.Button("Reset", elem_id="reset")
        with gr.Column(min_width=300):
            choices = [(name, place) for place, name in enumerate(names)]
            layer = gr.Dropdown(choices, value=len(names) - 1, label="Gates of", filterable=False)
            picture = gr.HTML(hint(NO_PICTURE), padding=False, elem_id="picture")

    def set_sliders(chosen: int, found: Scales) -> list[Any]:
        factors = found.get(chosen, [1.0] * len(points))
        there = [chosen < point.experts for point in points]
        return [gr.update(value=f, interactive=t) for f, t in zip(factors, there, strict=True)]

    draw: dict[str, Any] = {
        "fn": reporting(calls.draw), "inputs": [path, scales, shown, layer], "outputs": picture,
    }  # fmt: skip
    moved = gr.on(
        [slider.input for slider in sliders], lambda found, chosen, *factors: found | {chosen: list(factors)},
        [scales, expert, *sliders], scales, trigger_mode="always_last", **direct,
    )  # fmt: skip
    _then(moved, [update[0], draw, update[1]], queued)
    expert.input(set_sliders, [expert, scales], sliders, **direct)
    back = reset.click(lambda: ({}, ALL, *[1.0] * len(points)), None, [scales, expert, *sliders], **direct)
    _then(back, [update[0], draw, update[1]], queued)
    layer.input(**draw, **queued)
    return draw


def reporting(call: Callable[..., Any]) -> Callable[..., Any]:
    """Return a callback whose errors are shown on the page."""

    def each(*arguments: Any) -> Iterator[Any]:
        try:
            yield gr.skip()  # a generator that yields nothing would empty its outputs
            found = call(*arguments)
            yield from found if isinstance(found, Iterator) else [found]
        except FileNotFoundError as error:  # deleted after KEPT
            raise gr.Error("the recording is no longer kept; give it again", print_exception=False) from error
        except (ValueError, RuntimeError, OSError) as error:
            log.warning("shown on the page: %s", error)
            raise gr.Error(html.escape(str(error)), duration=20, print_exception=False) from error

    return each


def _layer(name: str) -> str:
    return f"layer {name}" if name.isdecimal() else "after the encoder"


@contextmanager
def serving(
    page: gr.Blocks, host: str, port: int, password: str | None, folder: str, max_bytes: int
) -> Iterator[str]:
    """Serve a page within the context, and yield its address.

    Args:
        page: the page.
        host, port: where to listen; port 0 means any free port.
        password: of USER; without one, only requests to this machine's own names are answered.
        folder: whose files may be shown.
        max_bytes: size of an upload.

    Raises:
        OSError: the address cannot be used.
    """
    with bind(host, port) as free:
        port = free.getsockname()[1]
    ours = Middleware(TrustedHostMiddleware, allowed_hosts=local_names(host))
    _, address, _ = page.launch(
        server_name=host, server_port=port, prevent_thread_lock=True, quiet=True, share=False, inbrowser=False,
        footer_links=[], run_history=False, enable_monitoring=False, mcp_server=False, ssr_mode=False, pwa=False,
        allowed_paths=[folder], max_file_size=max_bytes, state_session_capacity=MAX_VISITORS,
        auth=None if password is None else (USER, password), css=CSS + TABLE_CSS,
        theme=Default(font=("system-ui", "sans-serif"), font_mono=("ui-monospace", "monospace")),
        # A web page elsewhere may point its own name to our address.
        app_kwargs={"middleware": [ours]} if password is None else {},
    )  # fmt: skip
    try:
        yield address.rstrip("/")
    finally:
        page.close(verbose=False)

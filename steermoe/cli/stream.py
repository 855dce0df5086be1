"""`steermoe stream`."""

import json
import statistics
import sys
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from steermoe.cli.options import Device, Model

if TYPE_CHECKING:
    from steermoe.asr.events import Event


def main(
    source: Annotated[
        str | None,
        typer.Argument(
            help="a file, played as if it were spoken now; `-`: raw 16-bit samples, mono, 16 kHz, by standard "
            "input; default: the microphone"
        ),
    ] = None,
    model: Model = None,
    speed: Annotated[
        float | None, typer.Option(min=0.1, max=1000, help="of a file: how many times as fast; default: 1")
    ] = None,
    microphone: Annotated[
        str | None, typer.Option(help="its name or number, as sounddevice knows it; default: the system's")
    ] = None,
    partial: Annotated[float, typer.Option(min=0.1, help="seconds of speech between partial results")] = 0.5,
    silence: Annotated[
        float, typer.Option(min=0.1, max=10, help="seconds without speech that end a segment")
    ] = 0.4,
    as_json: Annotated[bool, typer.Option("--json", help="write a line of JSON for every event")] = False,
    device: Device = None,
) -> None:
    """Write down speech as it comes: partial results, replaced by final ones, and how late they are.

    On a terminal the partial result is replaced in place; elsewhere only final ones are written. With `--json` every
    event is a line: kind (partial, final), number of the segment, start, end, text, confidence, latency. Latency is
    the time from the end of speech to the result; the silence that ends a segment is part of it.

    Examples:

        steermoe stream
        steermoe stream talk.wav
        steermoe stream talk.wav --speed 8 --json
        ffmpeg -i talk.mp4 -f s16le -ac 1 -ar 16000 - | steermoe stream -
    """
    if microphone is not None and source is not None:
        raise ValueError(f"--microphone: no effect with {source}; leave one out")
    if speed is not None and source in (None, "-"):
        raise ValueError("--speed: no effect without a file, which alone can be played faster")
    from steermoe.asr import audio_sources as live
    from steermoe.asr.recognizer import Recognizer
    from steermoe.cli import loading as opening

    recognizer = Recognizer(opening.open_model(model, device), silence=silence)
    if source is None:
        blocks = live.until_interrupted(live.microphone(microphone))
    else:
        blocks = live.pcm(sys.stdin.buffer) if source == "-" else live.played(Path(source), speed or 1.0)
    latencies: list[float] = []
    try:
        _show(recognizer.stream(blocks, partial), as_json, latencies)
    except KeyboardInterrupt:
        if source is not None:
            raise
    if latencies:
        print(
            f"{len(latencies)} segments; end of speech to final text: median {statistics.median(latencies):.2f} s, "
            f"longest {max(latencies):.2f} s, {silence:g} s of it the silence that ends a segment",
            file=sys.stderr,
        )


def _show(events: "Iterable[Event]", as_json: bool, latencies: list[float]) -> None:
    """Write the events as they come, and collect the latencies of final ones."""
    from rich.live import Live
    from rich.text import Text

    from steermoe.cli.terminal import plain_console

    console = plain_console(soft_wrap=True)
    in_place = console.is_terminal and not as_json
    with Live(console=console, transient=True) if in_place else nullcontext() as line:
        for event in events:
            segment = event.segment
            if event.kind == "final":
                latencies.append(event.latency)
            if as_json:
                print(json.dumps(_plain(event), ensure_ascii=False), flush=True)
            elif event.kind == "final" and segment.text:
                times = f"{segment.start:7.2f} - {segment.end:7.2f}  "
                console.print(f"{times}{segment.text}")
            if line is not None:
                line.update(Text("" if event.kind == "final" else segment.text, style="dim"))


def _plain(event: "Event") -> dict[str, Any]:
    segment = asdict(event.segment)
    del segment["words"]
    return {"event": event.kind, "number": event.number, **segment, "latency": round(event.latency, 4)}

"""`steermoe stream`."""

import json
import statistics
import sys
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from steermoe.cli.options import Device, Json, Model, Silence, Yes
from steermoe.cli.terminal import plain_console

if TYPE_CHECKING:
    from steermoe.asr.streaming import Event

RAW = "raw 16-bit samples, mono, 16 kHz, from standard input"
Source = Annotated[
    str | None, typer.Argument(help=f"audio file, played in real time; `-`: {RAW}; default: the microphone")
]
Speed = Annotated[float | None, typer.Option(min=0.1, max=1000, help="playing speed of a file; default: 1")]
Microphone = Annotated[str | None, typer.Option(help="microphone, a name or number; default: the system's")]
Partial = Annotated[float, typer.Option(min=0.1, help="seconds of speech between partial results")]


def main(
    source: Source = None,
    model: Model = None,
    speed: Speed = None,
    microphone: Microphone = None,
    partial: Partial = 0.5,
    silence: Silence = 0.4,
    as_json: Json = False,
    device: Device = None,
    yes: Yes = False,
) -> None:
    """Transcribe speech as it arrives: partial results, replaced by final ones, with their latency.

    On a terminal the partial result is replaced in place; elsewhere only final ones are printed. With `--json` every
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
    from steermoe.asr import streaming
    from steermoe.asr.recognizer import Recognizer
    from steermoe.cli import options

    recognizer = Recognizer(options.open_model(model, device, yes), silence=silence)
    if source is None:
        blocks = streaming.until_interrupted(streaming.microphone(microphone))
    elif source == "-":
        blocks = streaming.pcm(sys.stdin.buffer)
    else:
        blocks = streaming.played(Path(source), speed or 1.0)
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
    """Print the events as they arrive, and collect the latencies of final ones."""
    from rich.live import Live
    from rich.text import Text

    console = plain_console(soft_wrap=True)
    in_place = console.is_terminal and not as_json
    with Live(console=console, transient=True) if in_place else nullcontext() as line:
        for event in events:
            segment, final = event.segment, event.kind == "final"
            if final:
                latencies.append(event.latency)
            if as_json:
                fields = asdict(segment) | {"latency": round(event.latency, 4)}
                del fields["words"]
                found = {"event": event.kind, "number": event.number} | fields
                print(json.dumps(found, ensure_ascii=False), flush=True)
            elif final and segment.text:
                console.print(f"{segment.start:7.2f} - {segment.end:7.2f}  {segment.text}")
            if line is not None:
                line.update(Text("" if final else segment.text, style="dim"))

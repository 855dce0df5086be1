"""`steermoe transcribe`."""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from steermoe.atomic_io import write_text
from steermoe.cli.options import Device, Model, Silence, Track, Yes
from steermoe.cli.terminal import plain_console, printable

if TYPE_CHECKING:
    from steermoe.asr.transcript import Transcript

SUFFIXES = {"text": "txt", "json": "json", "verbose_json": "json", "srt": "srt", "vtt": "vtt", "tsv": "tsv"}
BAD = 3  # exit code: some recordings could not be transcribed, the others were
Recordings = Annotated[
    list[str], typer.Argument(help="files, folders, or patterns in quotes; `-`: standard input")
]
Format = Annotated[str, typer.Option(help=f"output format: {', '.join(SUFFIXES)}")]
Out = Annotated[Path | None, typer.Option(help="folder for one file per recording; default: print the texts")]
Words = Annotated[bool, typer.Option("--words", help="add estimated times of words to verbose_json")]
Context = Annotated[
    str | None, typer.Option(help="words that may occur, put before the prompt: 'lamps, Anna'")
]
Prompt = Annotated[str | None, typer.Option(help="prompt after the audio, instead of the adapter's own")]
Width = Annotated[int | None, typer.Option(min=1, help="maximum characters in a line of a subtitle")]
Count = Annotated[int | None, typer.Option(min=1, help="maximum lines in a subtitle; longer ones are split")]


def main(
    recordings: Recordings,
    model: Model = None,
    format: Format = "text",
    out: Out = None,
    words: Words = False,
    context: Context = None,
    prompt: Prompt = None,
    max_line_width: Width = None,
    max_line_count: Count = None,
    silence: Silence = 0.4,
    track: Track = None,
    device: Device = None,
    yes: Yes = False,
) -> None:
    """Transcribe recordings of any length.

    WAV, FLAC, MP3, Ogg, m4a, MP4, WebM and more (docs/use.md), also from pipes, up to 8 hours. Times are on the file's
    clock. Recordings are cut at silences, and segments transcribed in batches. A recording that cannot be read is
    reported, the others go on, and the exit code is 3.

    Examples:

        steermoe transcribe talk.wav
        steermoe transcribe interviews/ 'calls/*.m4a' --format srt --out subtitles
        steermoe transcribe talk.wav --format verbose_json --words
        steermoe transcribe talk.wav --format vtt --max-line-width 42 --max-line-count 2
        steermoe transcribe - --model models/mini/steermoe < talk.flac
    """
    from steermoe.cli import options

    _check(format, out, words, max_line_width, max_line_count)
    found = options.find_recordings(recordings)
    files = _files(found, out, format)
    from steermoe.asr.recognizer import Recognizer

    opened, timed = options.open_model(model, device, yes), words or max_line_width is not None
    recognizer = Recognizer(opened, prompt=prompt, context=context, words=timed, silence=silence, track=track)
    bad = 0
    with _progress(found) as progress:
        for place, result in recognizer.recordings([options.source(path) for _, path in found], progress):
            name, path = found[place]
            try:
                text = _text(result, format, max_line_width, max_line_count)
                if out is not None:
                    path = files[place]
                    write_text(path, text)
            except (ValueError, OSError) as error:
                bad += 1
                print(f"steermoe: {printable(_message(error, path))}", file=sys.stderr)
                continue
            if out is None:
                print(text if len(found) == 1 else _named(text, format, name), end="", flush=True)
    if out is not None:
        print(f"{printable(str(out))}: {len(found) - bad} transcripts")
    if bad:
        print(f"steermoe: {bad} of {len(found)} recordings could not be transcribed", file=sys.stderr)
        raise typer.Exit(BAD)


def _files(found: Sequence[tuple[str, Path]], out: Path | None, format: str) -> list[Path]:
    """Return the output file of each recording, none without `out`; raises ValueError where two would be the same."""
    if out is None:
        if len(found) > 1 and format in ("srt", "vtt", "tsv"):
            raise ValueError(
                f"--format {format}: {len(found)} recordings need files of their own: give --out"
            )
        return []
    files = [out / Path(name).with_suffix(f".{SUFFIXES[format]}") for name, _ in found]
    if double := next((file for file in files if files.count(file) > 1), None):
        raise ValueError(f"--out: several recordings would become {double}; give each another name")
    return files


def _check(format: str, out: Path | None, words: bool, width: int | None, count: int | None) -> None:
    """Raise ValueError where an option has no effect, or its value is not allowed."""
    if format not in SUFFIXES:
        raise ValueError(f"--format: found {format!r}; there are: {', '.join(SUFFIXES)}")
    if words and format != "verbose_json":
        raise ValueError(f"--words: no effect with --format {format}; use it with verbose_json")
    if width is not None and format not in ("srt", "vtt"):
        raise ValueError(f"--max-line-width: no effect with --format {format}; use it with srt or vtt")
    if count is not None and width is None:
        raise ValueError("--max-line-count: no effect without --max-line-width")
    if out is not None and out.exists() and not out.is_dir():
        raise ValueError(f"--out: {out} is a file; name a folder")


def _text(result: "Transcript | Exception", format: str, width: int | None, lines: int | None) -> str:
    from steermoe.asr.transcript import render, wrapped

    if isinstance(result, Exception):
        raise result
    return render(result if width is None else wrapped(result, width, lines), format)


def _message(error: ValueError | OSError, path: Path) -> str:
    """Return what is wrong with a recording, or with its output file, after its path."""
    if isinstance(error, OSError) and error.strerror:
        return f"{path}: {error.strerror}"
    return str(error) if str(error).startswith(f"{path}: ") else f"{path}: {error}"


def _named(text: str, format: str, name: str) -> str:
    """Return a transcript, one of several, as a line with the name of its recording."""
    if format == "text":
        return f"{printable(name)}: {text}"
    return printable(json.dumps({"file": name} | json.loads(text), ensure_ascii=False)) + "\n"


@contextmanager
def _progress(found: Sequence[tuple[str, Path]]) -> Iterator[Callable[[int, float], None] | None]:
    """Show on a terminal how much of which recording was read; output to files and pipes stays the same."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.live import Live
    from rich.text import Text

    console = plain_console(stderr=True)
    with Live(console=console, transient=True, redirect_stdout=sys.stdout.isatty()) as line:

        def update(place: int, seconds: float) -> None:
            name = f"{printable(found[place][0])} ({place + 1} of {len(found)})"
            line.update(Text(f"{name}: {seconds / 60:.1f} minutes read"))

        yield update

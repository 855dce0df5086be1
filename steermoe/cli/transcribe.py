"""`steermoe transcribe`."""

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO

import typer

from steermoe.cli.options import Device, Model, Track
from steermoe.cli.terminal import plain_console, printable

if TYPE_CHECKING:
    from collections.abc import Callable

    from steermoe.asr.transcript import Transcript

SUFFIXES = {
    "text": ".txt",
    "json": ".json",
    "verbose_json": ".json",
    "srt": ".srt",
    "vtt": ".vtt",
    "tsv": ".tsv",
}
BAD = 3  # exit code: some recordings could not be transcribed, the others were


def main(
    recordings: Annotated[
        list[str],
        typer.Argument(
            help="files, folders, or patterns in quotes; `-`: a file that comes by standard input"
        ),
    ],
    model: Model = None,
    format: Annotated[str, typer.Option(help=f"one of {', '.join(SUFFIXES)}")] = "text",
    out: Annotated[
        Path | None, typer.Option(help="a folder for one file a recording; default: all to standard output")
    ] = None,
    words: Annotated[
        bool, typer.Option("--words", help="times of words, too, in verbose_json; they are estimates")
    ] = False,
    context: Annotated[
        str | None, typer.Option(help="words that may occur, put before the prompt, as in 'lamps, Anna'")
    ] = None,
    prompt: Annotated[
        str | None, typer.Option(help="the text behind the audio, instead of the adapter's own")
    ] = None,
    max_line_width: Annotated[
        int | None,
        typer.Option(min=1, help="characters of a line of subtitles; longer texts have several lines"),
    ] = None,
    max_line_count: Annotated[
        int | None, typer.Option(min=1, help="lines of a subtitle; longer ones become several")
    ] = None,
    silence: Annotated[
        float, typer.Option(min=0.1, max=10, help="seconds without speech that end a segment")
    ] = 0.4,
    track: Track = None,
    device: Device = None,
) -> None:
    """Write down what is said in recordings of any length.

    WAV, FLAC, AIFF, MP3, Ogg, m4a, MP4, MOV, WebM, Matroska, AAC, AMR and CAF, told by their content, from pipes, too;
    any rate up to 192 kHz, up to 8 channels, up to 8 hours. Times are on the file's clock. Recordings are cut at
    silences, and segments answered in batches by length. One that cannot be read is named, the others go on, and
    the exit code is 3.

    Examples:

        steermoe transcribe talk.wav
        steermoe transcribe interviews/ 'calls/*.m4a' --format srt --out subtitles
        steermoe transcribe talk.wav --format verbose_json --words
        steermoe transcribe talk.wav --format vtt --max-line-width 42 --max-line-count 2
        steermoe transcribe - --model models/mini/steermoe < talk.flac
    """
    from steermoe.cli import loading as opening

    if format not in SUFFIXES:
        raise ValueError(f"--format: found {format!r}; there are: {', '.join(SUFFIXES)}")
    if words and format != "verbose_json":
        raise ValueError(f"--words: no effect with --format {format}; use it with verbose_json")
    if max_line_width is not None and format not in ("srt", "vtt"):
        raise ValueError(f"--max-line-width: no effect with --format {format}; use it with srt or vtt")
    if max_line_count is not None and max_line_width is None:
        raise ValueError("--max-line-count: no effect without --max-line-width")
    if out is not None and out.exists() and not out.is_dir():
        raise ValueError(f"--out: {out} is a file; name a folder")
    found = opening.find_recordings(recordings)
    if out is None and len(found) > 1 and format in ("srt", "vtt", "tsv"):
        raise ValueError(f"--format {format}: {len(found)} recordings need files of their own: give --out")
    files = None if out is None else _files(found, out, SUFFIXES[format])
    from steermoe.asr.recognizer import Recognizer
    from steermoe.asr.subtitles import shortened

    recognizer = Recognizer(
        opening.open_model(model, device), prompt=prompt, context=context,
        words=words or max_line_width is not None, silence=silence, track=track,
    )  # fmt: skip
    bad = 0
    with _progress(found) as progress:
        for place, transcript in recognizer.recordings(_opened(found), progress):
            name, path = found[place]
            if max_line_width is not None and not isinstance(transcript, Exception):
                transcript = shortened(transcript, max_line_width, max_line_count)
            if isinstance(transcript, Exception):
                bad += 1
                print(f"steermoe: {printable(_problem(transcript, path))}", file=sys.stderr)
            elif files is not None:
                try:
                    _write(files[place], transcript, format)
                except OSError as error:
                    bad += 1
                    print(f"steermoe: {printable(f'{files[place]}: {error.strerror}')}", file=sys.stderr)
            else:
                sys.stdout.write(_shown(transcript, format, name if len(found) > 1 else None))
                sys.stdout.flush()
    if files is not None:
        print(f"{printable(str(out))}: {len(found) - bad} transcripts")
    if bad:
        print(f"steermoe: {bad} of {len(found)} recordings could not be transcribed", file=sys.stderr)
        raise typer.Exit(BAD)


def _opened(found: Sequence[tuple[str, Path]]) -> "Iterator[Path | BinaryIO | Exception]":
    """The recordings one by one, or why one cannot be opened; each is closed when the next is wanted."""
    from steermoe.cli import loading as opening

    for _, path in found:
        with ExitStack() as stack:
            try:
                recording = stack.enter_context(opening.opened_recording(path))
            except (OSError, ValueError) as error:
                recording = error
            yield recording


def _files(found: Sequence[tuple[str, Path]], out: Path, suffix: str) -> list[Path]:
    """The file of each recording; raises ValueError where two would be the same."""
    files = [out / Path(name).with_suffix(suffix) for name, _ in found]
    for place, file in enumerate(files):
        if (other := files.index(file)) < place:
            raise ValueError(f"--out: {found[other][1]} and {found[place][1]} would both become {file}")
    return files


def _write(file: Path, transcript: "Transcript", format: str) -> None:
    from steermoe.asr.transcript import render
    from steermoe.atomic_io import write_text

    write_text(file, render(transcript, format))


def _shown(transcript: "Transcript", format: str, name: str | None) -> str:
    """As it is printed: of several recordings a line each, with the name of the recording."""
    from steermoe.asr.transcript import render

    rendered = render(transcript, format)
    if name is None:
        return rendered
    if format == "text":
        return f"{printable(name)}: {rendered}"
    return printable(json.dumps({"file": name} | json.loads(rendered), ensure_ascii=False)) + "\n"


def _problem(error: Exception, path: Path) -> str:
    """The error in one line, with the recording's name."""
    if isinstance(error, OSError) and error.strerror:
        return f"{path}: {error.strerror}"
    return str(error) if str(error).startswith(f"{path}: ") else f"{path}: {error}"


@contextmanager
def _progress(found: Sequence[tuple[str, Path]]) -> "Iterator[Callable[[int, float], None] | None]":
    """Shows on a terminal how much was heard of which recording; files and pipes get the text as ever."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns: tuple[Any, ...] = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        TimeElapsedColumn(),
    )
    console, shown = plain_console(stderr=True), sys.stdout.isatty()
    with Progress(*columns, console=console, transient=True, redirect_stdout=shown) as bar:
        task = bar.add_task("", total=None)

        def heard(place: int, seconds: float) -> None:
            name = (
                f"{printable(found[place][0])} ({place + 1} of {len(found)}): {seconds / 60:.1f} minutes read"
            )
            bar.update(task, description=name)

        yield heard

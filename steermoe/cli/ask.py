"""`steermoe ask`."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from steermoe.cli.options import Device, Json, Model, Track, Yes


def main(
    recording: Annotated[str, typer.Argument(help="audio file; `-`: a file from standard input")],
    question: Annotated[str | None, typer.Argument(help="question about the recording")] = None,
    model: Model = None,
    task: Annotated[
        str | None, typer.Option(help="transcribe, summarize, answer, emotion or caption; default: answer")
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="prompt after the audio, for any other task")] = None,
    tools: Annotated[
        Path | None, typer.Option(help="JSON file of functions that the answer may call; nothing is executed")
    ] = None,
    as_json: Json = False,
    track: Track = None,
    device: Device = None,
    yes: Yes = False,
) -> None:
    """Ask a question about a recording, or give a task; a spoken request can end in a tool call.

    The recording may be as long as the encoder allows. With `--tools` the answer is JSON: text, the calls whose
    arguments are valid, and the errors of others. It needs an adapter that was trained with prompts.format chat.

    Examples:

        steermoe ask talk.wav "who is in it"
        steermoe ask talk.wav --task summarize
        steermoe ask talk.wav --prompt "please translate the audio content into German: "
        steermoe ask request.wav --tools tools.json --model models/large/steermoe
    """
    _check(question, task, prompt)
    functions = None if tools is None else _functions(tools)
    from steermoe.cli import options

    opened = options.open_model(model, device, yes)
    from steermoe.audio import io
    from steermoe.data.prompts import render
    from steermoe.data.tokens import plain

    if prompt is not None:
        asked = plain(opened.tokenizer, prompt)
    else:
        asked = render(opened.config.prompts, task or "answer", plain(opened.tokenizer, question or ""))
    samples = io.load(options.source(Path(recording)), track=track)
    answer = opened.ask(samples, tools=functions, prompt=asked)
    if functions is None and not as_json:
        print(answer.text)
    else:
        print(json.dumps(asdict(answer), ensure_ascii=False))


def _check(question: str | None, task: str | None, prompt: str | None) -> None:
    """Raise ValueError, before the model is loaded, where the task is unknown or an option has no effect."""
    from steermoe.data.prompts import TASKS

    asks = task in (None, "answer")
    if prompt is not None and question is not None:
        raise ValueError("--prompt: replaces the question, which has no effect; leave one out")
    if prompt is not None and task is not None:
        raise ValueError("--task: no effect with --prompt; leave one out")
    if not asks and task not in TASKS:
        legal = ", ".join(TASKS)
        raise ValueError(f"--task: found {task!r}; legal: {legal}; use --prompt for any other task")
    if prompt is None and asks and question is None:
        raise ValueError("--task answer: there is no question; give one after the file, or another --task")
    if not asks and question is not None:
        raise ValueError(f"--task {task}: asks no question, so {question!r} has no effect; leave it out")


def _functions(path: Path) -> list[dict]:
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path}: not JSON: {error}") from error
    return found if isinstance(found, list) else [found]

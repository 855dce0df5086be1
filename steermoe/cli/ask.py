"""`steermoe ask`."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from steermoe.cli.options import Device, Model, Track

SHAPE = '[{"type": "function", "function": {"name": ..., "parameters": {a JSON schema}}}, ...]'


def main(
    recording: Annotated[str, typer.Argument(help="a file; `-`: one that comes by standard input")],
    question: Annotated[str | None, typer.Argument(help="what to answer about it")] = None,
    model: Model = None,
    task: Annotated[
        str | None,
        typer.Option(
            help="transcribe, summarize, answer, emotion or caption: the adapter's prompt for it; default: answer"
        ),
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="the text behind the audio, for any other task")] = None,
    tools: Annotated[
        Path | None,
        typer.Option(help="a JSON file of function definitions that the answer may call; nothing is called"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="write JSON instead of text")] = False,
    track: Track = None,
    device: Device = None,
) -> None:
    """Ask about a recording, or give a task; a spoken request can end in a tool call.

    The recording may be as long as the encoder takes. With `--tools` the answer is JSON: text, the calls whose
    arguments fit, and what is wrong with others. It needs an adapter that was trained with prompts.format chat.

    Examples:

        steermoe ask talk.wav "who is in it"
        steermoe ask talk.wav --task summarize
        steermoe ask talk.wav --prompt "please translate the audio content into German: "
        steermoe ask request.wav --tools tools.json --model models/large/steermoe
    """
    if question is not None and prompt is not None:
        raise ValueError("--prompt: is asked as it is, so the question has no effect; leave one out")
    if task is not None and prompt is not None:
        raise ValueError("--task: no effect with --prompt; leave one out")
    functions = None if tools is None else _tools(tools)
    if prompt is None:
        _check(task or "answer", question)
    from steermoe.cli import loading as opening

    opened = opening.open_model(model, device)
    from steermoe.data.tokens import plain

    if prompt is not None:
        asked = plain(opened.tokenizer, prompt)
    else:
        from steermoe.data.prompts import render

        words = plain(opened.tokenizer, question or "")
        asked = render(opened.config.prompts, task or "answer", words)
    from steermoe.audio import waveform

    with opening.opened_recording(Path(recording)) as source:
        samples = waveform.load(source, track=track)
    answer = opened.ask(samples, tools=functions, prompt=asked)
    if functions is None and not as_json:
        print(answer.text)
    else:
        print(json.dumps(asdict(answer), ensure_ascii=False))


def _check(task: str, question: str | None) -> None:
    """Before the model is loaded: there is such a task, and it asks what is asked."""
    from steermoe.data.prompts import TASKS

    if task not in TASKS:
        raise ValueError(
            f"--task: found {task!r}; legal: {', '.join(TASKS)}; the text of any other task is given by --prompt"
        )
    if task == "answer" and question is None:
        raise ValueError(f"--task {task}: there is no question; give one behind the file, or another --task")
    if task != "answer" and question is not None:
        raise ValueError(f"--task {task}: asks no question, so {question!r} has no effect; leave it out")


def _tools(path: Path) -> list[dict]:
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path}: not JSON: {error}") from error
    if not isinstance(found, list):
        raise ValueError(f"{path}: found {str(found)[:80]!r}, expected {SHAPE}")
    return found

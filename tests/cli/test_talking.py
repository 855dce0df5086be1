"""`steermoe ask`, `chat` and `stream` as they are called."""

import io
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile

from steermoe.asr import streaming as live
from steermoe.audio.io import RATE
from steermoe.cli import options as opening

Call = Callable[..., SimpleNamespace]
WAVE = {
    "type": "function",
    "function": {"name": "wave", "parameters": {"type": "object", "properties": {}}},
}


@pytest.fixture
def recording(tmp_path: Path, spoken: list[SimpleNamespace]) -> Path:
    path = tmp_path / "my talk.wav"
    soundfile.write(path, spoken[0].samples, RATE)
    return path


def test_a_question_and_tasks(call: Call, recording: Path, mini: Any, monkeypatch: pytest.MonkeyPatch):
    asked = call("ask", str(recording), "who is in it")
    assert (asked.code, asked.out, asked.err) == (0, mini.ask(recording, "who is in it").text + "\n", "")
    assert asked.out == "frank\n"
    written = call("ask", str(recording), "--task", "transcribe")
    assert written.out == mini.transcribe(recording) + "\n"
    for task in ("answer", "summarize"):
        prompt = getattr(mini.config.prompts, task).replace("{question}", "who is in it")
        question = ["who is in it"] if task == "answer" else []
        expected = mini.ask(recording, prompt=prompt).text + "\n"
        assert call("ask", str(recording), *question, "--task", task).out == expected
        assert call("ask", str(recording), "--prompt", prompt).out == expected
    found = json.loads(call("ask", str(recording), "--task", "transcribe", "--json").out)
    assert found["text"] == written.out.strip() and 0 < found["confidence"] <= 1
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(recording.read_bytes())))
    assert call("ask", "-", "who is in it").out == asked.out
    run = call("ask", "none.wav", "who is in it")
    assert (run.code, run.err) == (1, "steermoe: none.wav: No such file or directory\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", "translate"], "found 'translate'; legal: transcribe, answer, caption, summarize"),
        (["why", "--task", "emotion"], "asks no question, so 'why' has no effect"),
        (["--task", "answer"], "--task answer: there is no question"),
        (["why", "--prompt", "say it"], "--prompt: replaces the question"),
        (["--task", "answer", "--prompt", "say it"], "--task: no effect with --prompt"),
        (["why", "--tools", "{0}/tools.json"], "found tools with prompts.format plain"),
        (["why", "--tools", "{0}/my talk.wav"], "not JSON"),
    ],
)  # fmt: skip
def test_wrong_questions(call: Call, recording: Path, arguments: list[str], message: str):
    (recording.parent / "tools.json").write_text(json.dumps([WAVE]))
    given = [argument.replace("{0}", str(recording.parent)) for argument in arguments]
    run = call("ask", str(recording), *given)
    assert run.code == 2 and message in run.err and run.out == ""


def test_a_spoken_request_can_call_a_tool(
    call: Call,
    recording: Path,
    tmp_path: Path,
    tiny_variant: Any,
    tiny_chat_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    """The LLM is random: its answer is replaced, the rest is real."""
    from steermoe import SteerMoE
    from steermoe.models.inference import Generated

    variant = tiny_variant("steering", {"prompts.format": "chat", "llm.path": str(tiny_chat_dir)})
    model = SteerMoE.from_config(variant)
    monkeypatch.setattr(opening, "open_model", lambda source, device, yes: model)
    said = model.tokenizer.encode('<tool_call>{"name": "wave", "arguments": {}}</tool_call>')
    monkeypatch.setattr(model, "generate_all", lambda *_: [Generated(0, said, [0.0])])
    (tmp_path / "tools.json").write_text(json.dumps([WAVE]))
    run = call("ask", str(recording), "greet them", "--tools", str(tmp_path / "tools.json"))
    assert json.loads(run.out)["tool_calls"] == [{"name": "wave", "arguments": {}}]


def chatted(call: Call, monkeypatch: pytest.MonkeyPatch, *lines: str) -> SimpleNamespace:
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
    return call("chat")


def test_an_answer_that_was_cut_says_so(
    call: Call, recording: Path, mini: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    short = mini.generation.model_copy(update={"max_new_tokens": 2})
    monkeypatch.setattr(mini, "generation", short)
    run = call("ask", str(recording), "--task", "transcribe", "--json")
    assert json.loads(run.out)["truncated"] and "cut at the limit of tokens" in caplog.text
    caplog.clear()
    run = call("transcribe", str(recording), "--format", "verbose_json")
    assert [segment["truncated"] for segment in json.loads(run.out)["segments"]] == [True]
    assert "the text of 1 of 1 segments was cut at the limit of tokens" in caplog.text


def test_turns_of_text_and_audio(call: Call, recording: Path, mini: Any, monkeypatch: pytest.MonkeyPatch):
    shutil.copy(recording, recording.parent / "a.wav")
    path = recording.parent / "a.wav"
    last = f"/audio '{recording}' who is in it"
    run = chatted(call, monkeypatch, f"/audio {path}", "", "what did frank make", "/reset", last)
    assert (run.code, run.err) == (0, "")
    assert run.out.splitlines() == [mini.transcribe(path), "chairs", "frank"]
    again = chatted(call, monkeypatch, f"/audio {path}", "what did frank make", "/reset", f"/audio {path}")
    assert again.out.splitlines() == [mini.transcribe(path), "chairs", mini.transcribe(path)]


def test_a_wrong_turn_is_named_and_the_next_one_goes_on(
    call: Call, recording: Path, monkeypatch: pytest.MonkeyPatch
):
    lines = ["/audio none.wav", "/audio", "/sing", f'/audio "{recording}" who is in it', "/quit", "not read"]
    run = chatted(call, monkeypatch, *lines)
    assert (run.code, run.out) == (0, "frank\n")
    problems = run.err.splitlines()
    assert problems[0] == "steermoe: none.wav: No such file or directory"
    assert "no file; write /audio FILE" in problems[1] and "/sing: no such command" in problems[2]


@pytest.fixture
def talk_file(tmp_path: Path, talk: np.ndarray) -> Path:
    path = tmp_path / "talk.flac"
    soundfile.write(path, talk, RATE)
    return path


def test_a_file_played(call: Call, talk_file: Path):
    written = call("transcribe", str(talk_file), "--format", "tsv").out.splitlines()[1:]
    run = call("stream", str(talk_file), "--speed", "20", "--json", "--partial", "1")
    events = [json.loads(line) for line in run.out.splitlines()]
    final = [event for event in events if event["event"] == "final"]
    assert [event["text"] for event in final] == [line.split("\t")[2] for line in written]
    assert {"number", "start", "end", "confidence", "latency"} <= final[0].keys()
    assert run.code == 0 and run.err.startswith("4 segments; end of speech to final text: median ")
    plain = call("stream", str(talk_file), "--speed", "20")
    assert [line.split("  ")[-1] for line in plain.out.splitlines()] == [event["text"] for event in final]


def test_raw_samples_by_a_pipe(
    call: Call, talk: np.ndarray, talk_file: Path, monkeypatch: pytest.MonkeyPatch
):
    raw = (talk * 32768).astype("<i2").tobytes()
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(raw)))
    run = call("stream", "-")
    played = call("stream", str(talk_file), "--speed", "50")
    assert run.code == 0 and run.out == played.out and len(run.out.splitlines()) == 4
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(raw[:3001])))
    run = call("stream", "-")
    assert run.code == 2 and "standard input: ends within a sample" in run.err
    wrong = call("stream", "-", "--speed", "2"), call("stream", "talk.wav", "--microphone", "3")
    assert [run.code for run in wrong] == [2, 2]
    assert "--speed: no effect without a file" in wrong[0].err
    assert "--microphone: no effect with talk.wav" in wrong[1].err


def test_played_in_time(talk_file: Path):
    arrived = list(live.played(talk_file, speed=30))
    seconds = sum(len(block) for _, block in arrived) / RATE
    # Due times do not depend on how late a block was given: the whole takes a thirtieth of the talk.
    assert arrived[-1][0] - arrived[0][0] == pytest.approx((seconds - len(arrived[0][1]) / RATE) / 30)


def test_ctrl_c_ends_live_audio_and_a_second_one_breaks_off(talk_file: Path) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell's child has none
    try:
        blocks = live.until_interrupted(live.played(talk_file, speed=100))
        assert len([os.kill(os.getpid(), signal.SIGINT) for _ in blocks]) == 1  # ends after the first
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        blocks = live.until_interrupted(live.played(talk_file, speed=100))
        next(blocks)
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        assert not list(blocks)
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_microphone_that_is_not_there() -> None:
    with pytest.raises(ValueError, match=r"the microphone (is not available|cannot be opened)"):
        next(live.microphone("no such microphone"))

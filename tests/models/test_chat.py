"""Conversations: one turn is what `ask` and `transcribe` do; later turns; what is refused."""

import base64
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from steermoe.audio.io import RATE, encode_flac
from steermoe.data.prompts import Turn, conversation, prompt_texts
from steermoe.models.chat import read_messages
from steermoe.models.steermoe import SteerMoE

SAMPLES = (0.3 * np.random.default_rng(4).standard_normal(RATE)).astype(np.float32)
AUDIO = {"type": "audio", "audio": SAMPLES}


def text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


def user(*content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content[0] if isinstance(content[0], str) else list(content)}


@pytest.fixture(scope="module", params=["plain", "chat"])
def model(request: pytest.FixtureRequest, tiny_variant: Any, tiny_chat_dir: Path) -> SteerMoE:
    path = str(tiny_chat_dir)
    return SteerMoE.from_config(tiny_variant("steering", {"prompts.format": request.param, "llm.path": path}))


def test_one_turn_is_a_question_or_a_transcription(model: SteerMoE, greedy: Any):
    short = greedy(6)
    asked = model.ask(SAMPLES, "the cat", generation_config=short)
    assert model.chat([user(AUDIO, text("the cat"))], generation_config=short) == asked
    assert model.chat([user(text("the cat"), AUDIO)], generation_config=short) == asked
    written = model.transcribe(SAMPLES, generation_config=short)
    assert model.chat([user(AUDIO)], generation_config=short).text == written


def test_audio_as_openai_s_api_has_it(model: SteerMoE, greedy: Any, tmp_path: Path):
    data = encode_flac(SAMPLES, RATE)
    (tmp_path / "a.flac").write_bytes(data)
    part = {"type": "input_audio", "input_audio": {"data": base64.b64encode(data).decode(), "format": "wav"}}
    parts = [part, {"type": "audio", "audio": str(tmp_path / "a.flac")}]
    answers = [model.chat([user(each)], generation_config=greedy(6)).text for each in parts]
    assert answers[0] == answers[1] == model.transcribe(tmp_path / "a.flac", generation_config=greedy(6))


def test_turns_are_joined_as_the_format_says(model: SteerMoE):
    prompts, tokenizer = model.config.prompts, model.tokenizer
    turns = [Turn("user", "hello"), Turn("assistant", "dog"), Turn("user", "", 1), Turn("assistant", "cat")]
    pieces = conversation(prompts, tokenizer, [*turns, Turn("user", "is it red")])
    question = prompts.answer.replace("{question}", "is it red")
    if prompts.format == "plain":
        assert pieces == ["hello\ndog\n", f"{prompts.transcribe}\ncat\n{question}"]
    else:
        assert pieces[0].endswith("dog<|im_end|>\n<|im_start|>user\n")
        assert (
            pieces[1] == f"{prompts.transcribe.strip()}<|im_end|>\n<|im_start|>assistant\ncat<|im_end|>\n"
            f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
        )
    single = conversation(prompts, tokenizer, [Turn("user", "is it red", 1)])
    assert tuple(single) == prompt_texts(prompts, tokenizer, "answer", "is it red")


def test_several_recordings_and_history_matter(model: SteerMoE, greedy: Any):
    history = [
        user("the cat sings"),
        {"role": "assistant", "content": "one two"},
        user(AUDIO, AUDIO, text("the dog")),
    ]
    answers = {model.chat(history[start:], generation_config=greedy(12)).text for start in (0, 2)}
    assert len(answers) == 2


CALL = {"function": {"name": "a", "arguments": "{"}}


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "messages: found 0"),
        ([user("a"), {"role": "assistant", "content": "b"}], "messages: found 2, the last of which is not the user's"),
        ([{"role": "robot", "content": "a"}], r"messages\[0\]\.role: found 'robot', expected one of system, "),
        ([user("a"), {"role": "system", "content": "b"}, user("c")], r"messages\[1\]: found a system message"),
        (["hello"], r"messages\[0\]\.role: found 'None'"),
        ([user({"type": "image_url"})], r"messages\[0\]\.content\[0\]: found .*image_url"),
        ([{"role": "user", "content": 3}], r"messages\[0\]\.content: found '3'"),
        ([user({"type": "input_audio", "input_audio": {"data": "!!"}})], "input_audio.data: not base64"),
        ([user({"type": "input_audio", "input_audio": {"data": "", "format": "x"}})], "format: found 'x', expected"),
        ([user({"type": "input_audio", "input_audio": {"data": "aGVsbG8="}})], "not readable as audio"),
        ([user(AUDIO), {"role": "assistant", "content": [AUDIO]}, user("b")], "found audio of the assistant"),
        ([user("a") | {"tool_calls": [CALL]}], r"messages\[0\]\.tool_calls: expected a list, in a message of the"),
        ([{"role": "assistant", "tool_calls": [CALL]}, user("b")], r"tool_calls\[0\]\.function\.arguments: not JSON"),
        ([{"role": "assistant", "tool_calls": [3]}, user("b")], r"tool_calls\[0\]\.function: found '3'"),
        ([user("AudioStandsHere", ), user(AUDIO, text("AudioStandsHere"))], "or a text has 'AudioStandsHere' in it"),
    ],
)  # fmt: skip
def test_refused(model: SteerMoE, messages: list[Any], message: str):
    with pytest.raises(ValueError, match=message):
        model.chat(messages)


def test_only_the_owner_of_the_files_may_name_them():
    message = {"type": "audio", "audio": "/etc/hostname"}
    assert read_messages([user(message)])[1] == ["/etc/hostname"]
    with pytest.raises(ValueError, match=r"messages\[0\]\.content\[0\]: found .*hostname"):
        read_messages([user(message)], allow_local=False)


def test_messages_of_tools_and_developers():
    call = {"id": "1", "type": "function", "function": {"name": "lamp", "arguments": '{"on": true}'}}
    messages = [
        {"role": "developer", "content": "be kind"}, user("on"), {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": [text("done")]},
    ]  # fmt: skip
    calls = ({"type": "function", "function": {"name": "lamp", "arguments": {"on": True}}},)
    expected = [
        Turn("system", "be kind"),
        Turn("user", "on"),
        Turn("assistant", "", 0, calls),
        Turn("tool", "done"),
    ]
    assert read_messages(messages) == (expected, [])


def test_a_system_turn(model: SteerMoE, greedy: Any):
    messages = [{"role": "system", "content": "the red dog"}, user(AUDIO)]
    if model.config.prompts.format == "plain":
        with pytest.raises(ValueError, match=r"found a system turn with prompts\.format plain"):
            model.chat(messages)
    else:
        turns = [Turn("system", "the red dog"), Turn("user", "", 1)]
        assert "the red dog" in conversation(model.config.prompts, model.tokenizer, turns)[0]
        assert isinstance(model.chat(messages, generation_config=greedy(4)).text, str)


def test_base_models_are_found_above_the_adapter(tiny_variant: Any, tmp_path: Path, monkeypatch: Any):
    """An adapter whose base models have relative paths, loaded from elsewhere."""
    variant = tiny_variant("linear")
    for part in ("encoder", "llm"):
        (tmp_path / "base").mkdir(exist_ok=True)
        (tmp_path / "base" / part).symlink_to(getattr(variant, part).path)
    relative = tiny_variant("linear", {"encoder.path": "base/encoder", "llm.path": "base/llm"})
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    SteerMoE.from_config(relative).save_pretrained(tmp_path / "adapters" / "one")
    monkeypatch.chdir(tmp_path / "elsewhere")
    again = SteerMoE.from_pretrained(tmp_path / "adapters" / "one")
    assert again.config.llm.path == str(tmp_path / "base/llm")
    monkeypatch.chdir(tmp_path)
    assert SteerMoE.from_pretrained("adapters/one").config.llm.path == "base/llm"

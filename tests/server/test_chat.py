"""`/v1/chat/completions` as the official client uses it: questions about recordings, streams, calls of tools.

The mini model answers in words. Calls of tools come from a tiny Qwen2 that is trained here on one recording.
"""

import base64
import json
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from steermoe.models.steermoe import SteerMoE
from tests.speech import TOOLS

from .conftest import NAME, Running, wav

QUESTION = "how many hammers were found?"


def audio(data: bytes, kind: str = "wav") -> Any:
    encoded = base64.b64encode(data).decode()
    return {"type": "input_audio", "input_audio": {"data": encoded, "format": kind}}


def user(data: bytes, *texts: str) -> Any:
    return {"role": "user", "content": [audio(data), *({"type": "text", "text": text} for text in texts)]}


def ask(server: Running, *messages: Any, **fields: Any) -> Any:
    return server.client.chat.completions.create(model=NAME, messages=list(messages), **fields)


def test_a_question_is_answered(
    server: Running, model: SteerMoE, recordings: list[bytes], waveforms: list[np.ndarray]
) -> None:
    reply = ask(server, user(recordings[0], QUESTION))
    (choice,) = reply.choices
    assert choice.message.content == model.ask(waveforms[0], QUESTION).text
    assert (choice.message.role, choice.finish_reason, choice.message.tool_calls) == (
        "assistant",
        "stop",
        None,
    )
    assert reply.object == "chat.completion" and reply.model == NAME
    usage = reply.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert usage.completion_tokens == len(model.tokenizer.encode(choice.message.content))
    longer = ask(server, user(recordings[0], QUESTION + " hammers")).usage
    assert longer.prompt_tokens == usage.prompt_tokens + 1


def test_a_stream_is_the_answer_in_chunks(
    server: Running, model: SteerMoE, recordings: list[bytes], waveforms: list[np.ndarray]
) -> None:
    options = {"include_usage": True}
    chunks = list(ask(server, user(recordings[2]), stream=True, stream_options=options))
    *written, last, usage = chunks
    assert written[0].choices[0].delta.role == "assistant"
    assert len(written) > 2  # token by token
    text = "".join(chunk.choices[0].delta.content for chunk in written)
    assert text == model.transcribe(waveforms[2])
    assert last.choices[0].finish_reason == "stop"
    assert usage.choices == [] and usage.usage.completion_tokens >= len(text.split())
    assert len({chunk.id for chunk in chunks}) == 1


def test_an_answer_that_had_to_end_says_so(server: Running, recordings: list[bytes]) -> None:
    reply = ask(server, user(recordings[0]), max_tokens=2)
    assert (reply.choices[0].finish_reason, reply.usage.completion_tokens) == ("length", 2)
    reply = ask(server, user(recordings[0]), max_completion_tokens=3)
    assert reply.usage.completion_tokens == 3


def test_a_sampled_answer_depends_on_the_seed_alone(server: Running, recordings: list[bytes]) -> None:
    greedy = ask(server, user(recordings[0])).choices[0].message.content
    hardly_any = ask(server, user(recordings[0]), seed=7, temperature=1e-40).choices[0].message.content
    assert greedy == hardly_any
    found = {
        seed: [
            ask(server, user(recordings[0]), temperature=2.0, top_p=0.9, seed=seed).choices[0].message.content
            for _ in range(2)
        ]
        for seed in (1, 2, 3)
    }
    assert all(first == second for first, second in found.values())
    assert len({first for first, _ in found.values()}) > 1


@pytest.mark.parametrize(
    ("messages", "fields", "said"),
    [
        ([{"role": "user", "content": "hello"}], {}, "messages: found 0 parts of type input_audio, expected one"),
        (["user", "user"], {}, "messages: found 2 parts of type input_audio, expected one"),
        (["user", {"role": "assistant", "content": "so"}], {}, "the last of which is not the user's"),
        (["user"], {"seed": 2**70}, "seed: Input should be less than"),
        (["user"], {"frequency_penalty": 0.5}, "frequency_penalty: not supported by this server"),
        ([{"role": "system", "content": "be kind"}, "user"], {}, "found a system turn with prompts.format plain"),
        (["user"], {"tools": TOOLS}, "found tools with prompts.format plain"),
        (["user"], {"max_tokens": 61}, "max_tokens: found 61, allowed are at most 60"),
        (["user"], {"max_tokens": 5, "max_completion_tokens": 5}, "max_tokens: found max_completion_tokens, too"),
        (["user"], {"top_p": 0.5}, "top_p: has no effect at temperature 0"),
        (["user"], {"tool_choice": "none"}, "tool_choice: has no effect without tools"),
        (["user"], {"stream_options": {"include_usage": True}}, "stream_options: has no effect without stream"),
        (["word " * 4000], {}, "more than 16000 characters"),
        ([{"role": "user", "content": [{"type": "audio", "audio": "/etc/passwd"}]}], {},
         "messages[0].content[0]: found \"{'type': 'audio', 'audio': '/etc/passwd'}\", expected a part of type text"),
        ([{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "", "format": "xyz"}}]}], {},
         "messages[0].content[0].input_audio.format: found 'xyz', expected one of 3g2"),
     ],
)  # fmt: skip
def test_what_cannot_be_asked_is_named(
    server: Running, recordings: list[bytes], messages: list[Any], fields: dict[str, Any], said: str
) -> None:
    turns = [
        user(recordings[0])
        if turn == "user"
        else user(recordings[0], turn)
        if isinstance(turn, str)
        else turn
        for turn in messages
    ]
    with pytest.raises(openai.BadRequestError) as refused:
        ask(server, *turns, **fields)
    assert said in str(refused.value)
    assert refused.value.type == "invalid_request_error"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"{", "Invalid JSON"),
        (b"[]", "body: Input should be an object"),
        (b'{"model": "steermoe", "messages": []}', "messages: List should have at least 1 item"),
        (b'{"model": "x", "messages": [{"role": "user", "content": "?"}]}', "model: found 'x'"),
        (
            b'{"model": "a", "messages": [{}], "temperature": NaN}',
            "temperature: Input should be a finite number",
        ),
        (b'{"model": "steermoe", "messages": ["a\\ud800"]}', "Invalid JSON"),
    ],
)
def test_bodies_that_are_none(server: Running, body: bytes, said: str) -> None:
    answer = httpx.post(f"{server.address}/v1/chat/completions", content=body, trust_env=False)
    assert answer.status_code in (400, 404)
    assert said in answer.json()["error"]["message"]


def test_a_reply_is_a_turn_of_the_next_request(
    server: Running, model: SteerMoE, recordings: list[bytes], waveforms: list[np.ndarray]
) -> None:
    reply = ask(server, user(recordings[0], QUESTION)).choices[0].message
    later: Any = {"role": "user", "content": "what is pink?"}
    asked = [{"type": "audio", "audio": waveforms[0]}, {"type": "text", "text": QUESTION}]
    answered = {"role": "assistant", "content": reply.content}
    expected = model.chat([{"role": "user", "content": asked}, answered, later]).text
    others = {
        "name": "me", "reasoning_content": None, "annotations": [], "audio": None, "function_call": None,
        "tool_calls": None, "tool_errors": ["x"],
    }  # fmt: skip
    for turn in (reply, reply.model_dump() | others):
        found = ask(server, user(recordings[0], QUESTION), turn, later)
        assert found.choices[0].message.content == expected


def test_fields_without_effect_are_passed_over(server: Running, recordings: list[bytes]) -> None:
    expected = ask(server, user(recordings[0], QUESTION)).choices[0].message.content
    fields = {
        "temperature": 0, "top_p": 1, "n": 1, "stop": None, "presence_penalty": 0, "frequency_penalty": 0.0,
        "logprobs": False, "user": "me", "metadata": {"a": "b"}, "store": True, "seed": -1, "tools": None,
        "response_format": {"type": "text"}, "max_tokens": None, "logit_bias": {}, "stream": None,
    }  # fmt: skip
    assert ask(server, user(recordings[0], QUESTION), **fields).choices[0].message.content == expected
    part = audio(recordings[0])
    part["input_audio"]["data"] = "data:audio/wav;base64," + base64.encodebytes(recordings[0]).decode()
    turn = {"role": "user", "content": [part, {"type": "text", "text": QUESTION}]}
    assert ask(server, turn).choices[0].message.content == expected


FIELDS = "model messages tools stream temperature top_p max_tokens seed n stop other".split()
PARTS = ("role", "content", "name", "tool_calls", "text", "type", "input_audio")
ODD = st.recursive(
    st.sampled_from([None, True, 0, -1, 2**63, 10**400, 0.5, 1e-40, 5e-324, 1e308, "", "x", "\x00", "\ud800", "auto"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(PARTS), inner, max_size=2),
    max_leaves=4,
)  # fmt: skip


@settings(max_examples=12, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(FIELDS), st.sampled_from(PARTS), ODD, st.booleans())
def test_odd_bodies_never_break_it(server: Running, name: str, part: str, value: Any, deep: bool) -> None:
    data = wav(np.zeros(1600), 16000)
    body: dict[str, Any] = {"model": NAME, "messages": [user(data, "?")], "max_tokens": 1}
    (
        body["messages"][0]
        if part in ("role", "content", "name", "tool_calls")
        else body["messages"][0]["content"][0]
    )[part] = value
    if not deep:
        body = {"model": NAME, "messages": [user(data)], "max_tokens": 1, name: value}
    answer = httpx.post(f"{server.address}/v1/chat/completions", content=json.dumps(body), trust_env=False)
    assert answer.status_code in (200, 400, 404), answer.text
    assert answer.status_code == 200 or answer.json()["error"]["message"]


def test_bad_audio(server: Running, waveforms: list[np.ndarray]) -> None:
    with pytest.raises(openai.BadRequestError, match="not readable as audio"):
        ask(server, user(b"no audio, but a text, " * 9))
    for stream in (False, True):  # an error before the first piece of a stream is an ordinary one
        with pytest.raises(openai.BadRequestError, match=r"s of audio, expected at most 8 s") as refused:
            ask(server, user(wav(np.concatenate(waveforms), 16000)), stream=stream)
        assert refused.value.param == "messages"


# calls of tools


def test_a_spoken_request_can_end_in_a_call(calling: Running, tone: np.ndarray) -> None:
    turn = user(wav(tone, 16000), "which lamp?")
    (choice,) = ask(calling, turn, tools=TOOLS).choices
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
    (call,) = choice.message.tool_calls
    assert (call.type, call.function.name) == ("function", "lamp")
    assert json.loads(call.function.arguments) == {"room": "hall", "level": 3}
    for fields in ({}, {"tools": TOOLS, "tool_choice": "none"}):
        (choice,) = ask(calling, turn, **fields).choices
        assert (choice.finish_reason, choice.message.content) == ("stop", "one two")
    first, last = ask(calling, turn, tools=TOOLS, stream=True)
    (call,) = first.choices[0].delta.tool_calls
    assert (call.index, call.function.name) == (0, "lamp")
    assert json.loads(call.function.arguments)["level"] == 3
    assert last.choices[0].finish_reason == "tool_calls"
    (choice,) = ask(calling, turn, tools=TOOLS, max_tokens=20).choices  # the call is cut short
    assert choice.message.tool_calls is None and "which is not JSON" in choice.message.tool_errors[0]


def test_earlier_messages_are_read(calling: Running, tone: np.ndarray) -> None:
    turn = user(wav(tone, 16000), "which lamp?")
    reply = ask(calling, turn, tools=TOOLS).choices[0].message
    result = {"role": "tool", "tool_call_id": reply.tool_calls[0].id, "content": "done"}
    later = [{"role": "assistant", "content": "one two"}, {"role": "user", "content": "is the dog blue?"}]
    system = {"role": "system", "content": "the cat is red"}

    def read(*messages: Any, **fields: Any) -> int:
        return ask(calling, *messages, **fields).usage.prompt_tokens

    alone, with_tools = read(turn), read(turn, tools=TOOLS)
    assert read(system, turn) > alone + 3 and read(turn, *later) > alone + 6
    for messages in ([reply, {"role": "user", "content": "so?"}], [reply, result]):
        assert read(turn, *messages, tools=TOOLS) > with_tools + 10

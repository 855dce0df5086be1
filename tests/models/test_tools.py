"""Tool calls: parsed from the output of several families of LLMs, checked, and end to end."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from steermoe.models.steermoe import SteerMoE
from steermoe.models.tools import Answer, ToolCall, check_tools, misfit, read_answer
from tests.speech import CALL, TOOLS

HALL = ToolCall("lamp", {"room": "hall", "level": 3})


DEEP: dict[str, Any] = {}
for _ in range(300):
    DEEP = {"properties": {"a": DEEP}}


@pytest.fixture
def tokenizer(tiny_chat_dir: Path) -> PreTrainedTokenizerFast:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tiny_chat_dir)
    tokenizer.add_special_tokens({"additional_special_tokens": ["[TOOL_CALLS]", "<|python_tag|>"]})
    return tokenizer


def read(tokenizer: Any, written: str, tools: Any = TOOLS) -> Answer:
    ids = tokenizer.encode(written, add_special_tokens=False)
    return read_answer(ids, tokenizer, tools, "<|im_start|>assistant\n")


@pytest.mark.parametrize(
    ("written", "text", "calls"),
    [
        ("the cat", "the cat", ()),
        (f"<tool_call>\n{CALL}\n</tool_call>", "", (HALL,)),
        (f"well<tool_call>{CALL}</tool_call>\n<tool_call>\n{{\"name\": \"stop\", \"arguments\": {{}}}}",
         "well", (HALL, ToolCall("stop", {}))),
        (f"[TOOL_CALLS] [{CALL}, {CALL}]", "", (HALL, HALL)),
        ('[TOOL_CALLS]lamp[ARGS]{"room": "hall", "level": 3}[TOOL_CALLS]stop[ARGS]{}', "",
         (HALL, ToolCall("stop", {}))),
        ('{"name": "lamp", "parameters": {"room": "hall", "level": 3}}', "", (HALL,)),
        ('<|python_tag|>{"type": "function", "name": "lamp", "parameters": {"room": "hall", "level": 3}}; '
         '{"name": "stop", "parameters": {}}', "", (HALL, ToolCall("stop", {}))),
        ('<tool_call>{"name": "lamp", "arguments": "{\\"room\\": \\"hall\\", \\"level\\": 3}"}</tool_call>',
         "", (HALL,)),
        ('{"the cat": "sings"}', '{"the cat": "sings"}', ()),
    ],
)  # fmt: skip
def test_calls_of_every_family_are_read(tokenizer: Any, written: str, text: str, calls: Any) -> None:
    assert read(tokenizer, written) == Answer(text, calls)
    plain = read(tokenizer, written, tools=None)
    assert plain.tool_calls == () and plain.errors == ()


@pytest.mark.parametrize(
    ("written", "error"),
    [
        ('<tool_call>{"name": "lamp", "argum', "found '{\"name\": \"lamp\", \"argum', which is not JSON"),
        ("<tool_call></tool_call>", "which has no call in it"),
        ("[TOOL_CALLS] lamp", "found 'lamp', which is not JSON"),
        ("[TOOL_CALLS]lamp[ARGS]{", "found '{', which is not JSON"),
        ('<tool_call>["lamp"]</tool_call>', 'found "lamp", expected an object with name and arguments'),
        ('<tool_call>{"arguments": {}}</tool_call>', "expected an object with name and arguments"),
        ('{"name": "lamp", "parameters": [1]}', "expected an object with name and arguments"),
        ('<tool_call>{"name": "door", "arguments": {}}</tool_call>',
         "found a call of 'door', which is no tool; one of: lamp, stop"),
        ('{"name": "lamp", "parameters": {}}', "lamp: arguments: 'room' is a required property"),
        ('{"name": "lamp", "parameters": {"room": "attic"}}',
         "lamp: arguments.room: 'attic' is not one of ['kitchen', 'hall']"),
        ('{"name": "lamp", "parameters": {"room": "hall", "level": "3"}}',
         "lamp: arguments.level: '3' is not of type 'integer'"),
        ('{"name": "lamp", "parameters": {"room": "hall", "colours": ["a", 1]}}',
         "lamp: arguments.colours[1]: 1 is not of type 'string'"),
        ('{"name": "lamp", "parameters": {"room": "hall", "x": 1}}', "'x' was unexpected"),
        ('{"name": "stop", "parameters": {"now": 1}}', "'now' was unexpected"),
        ('<tool_call>' + "[" * 30000, "which is not JSON"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_kept_as_an_error(tokenizer: Any, written: str, error: str) -> None:
    answer = read(tokenizer, written)
    assert answer.tool_calls == ()
    assert len(answer.errors) == 1 and error in answer.errors[0]


def test_a_right_call_stands_beside_a_wrong_one(tokenizer: Any) -> None:
    answer = read(tokenizer, f'<tool_call>{CALL}</tool_call><tool_call>{{"name": "door"}}</tool_call>')
    assert answer.tool_calls == (HALL,) and len(answer.errors) == 1


def test_a_declared_response_template_is_followed(tokenizer: Any) -> None:
    tokenizer.response_template = {
        "start_anchor": "<|im_start|>assistant\n",
        "fields": {
            "tool_calls": {
                "open": "<<", "close": ">>", "repeats": True, "content": "json",
                "transform": {"type": "function", "function": "{content}"},
            },
            "content": {"close": "<|im_end|>", "content": "text"},
        },
    }  # fmt: skip
    assert read(tokenizer, f"<<{CALL}>>") == Answer("", (HALL,))
    assert read(tokenizer, "the cat") == Answer("the cat")
    wrong = read(tokenizer, "<<{>>")
    assert wrong.tool_calls == () and "cannot be read" in wrong.errors[0]
    assert "is no tool" in read(tokenizer, '<<{"name": "door", "arguments": {}}>>').errors[0]


@pytest.mark.parametrize(
    ("schema", "right", "wrong"),
    [
        ({"properties": {"a": {"type": ["string", "null"]}}}, [{}, {"a": None}], [{"a": 1}, {"b": 1}]),
        ({"properties": {}, "additionalProperties": {"type": "integer"}}, [{"x": 1}], [{"x": "1"}]),
        ({"anyOf": [{"required": ["a"]}, {"required": ["b"]}]}, [{"a": 1}, {"b": 1}], [{"c": 1}]),
        ({"properties": {"a": {"$ref": "#/$defs/b"}}, "$defs": {"b": {"type": "null"}}}, [{"a": None}], [{"a": 0}]),
        ({"properties": {"a": {"pattern": "^(b+)+$"}}}, [{"a": "b" * 50 + "c"}], []),  # not evaluated
        ({"properties": {"a": {"$ref": "http://127.0.0.1:9/schema"}}}, [{}], [{"a": 1}]),  # never fetched
        ({"$ref": "#"}, [], [{}]),
    ],
)  # fmt: skip
def test_arguments_are_checked(schema: dict, right: list, wrong: list) -> None:
    assert [misfit(arguments, schema) for arguments in right] == [""] * len(right)
    assert all(misfit(arguments, schema) for arguments in wrong)


@pytest.mark.parametrize(
    ("tools", "message"),
    [
        ([], "tools: found none"),
        ([{"name": "lamp"}], r"tools\[0\]: found {'name': 'lamp'}, expected"),
        ([TOOLS[0], "lamp"], r"tools\[1\]: found lamp"),
        ([TOOLS[0], TOOLS[0]], "tools: found lamp more than once"),
        ([{"function": {"name": "a", "parameters": []}}], r"tools\[0\]: found"),
        (
            [{"function": {"name": "a", "parameters": {"type": "what"}}}],
            "parameters: not a JSON schema: 'what' is not",
        ),
    ],
)
def test_definitions_are_checked(tools: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_tools(tools)


# asked end to end


def test_an_answer_can_be_a_call(caller: SteerMoE, tone: np.ndarray, greedy: Callable[..., Any]) -> None:
    assert caller.ask(tone, "which lamp?", tools=TOOLS) == Answer("", (HALL,))
    assert caller.ask(tone, "which lamp?") == Answer("one two")
    cut_short = caller.ask(tone, "which lamp?", tools=TOOLS, generation_config=greedy(20))
    assert cut_short.tool_calls == () and "which is not JSON" in cut_short.errors[0]


def test_tools_need_a_chat(tiny_variant: Callable[..., Any], tiny_chat_dir: Path, tone: np.ndarray) -> None:
    plain = SteerMoE.from_config(tiny_variant("linear", {"llm.path": str(tiny_chat_dir)}))
    with pytest.raises(ValueError, match=r"found tools with prompts\.format plain"):
        plain.ask(tone, "which lamp?", tools=TOOLS)
    bare = SteerMoE.from_config(tiny_variant("linear", {"prompts.format": "chat"}))
    with pytest.raises(ValueError, match="the tokenizer has no chat template"):
        bare.ask(tone, "which lamp?", tools=TOOLS)
    with pytest.raises(ValueError, match="tools: found none"):
        bare.ask(tone, tools=[])

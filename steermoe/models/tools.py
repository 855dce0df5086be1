"""Answers that call tools: read from what the LLM wrote, and checked against the definitions. Nothing is run.

A tool is a function definition as OpenAI's API and chat templates take it:
`{"type": "function", "function": {"name": ..., "description": ..., "parameters": <JSON schema>}}`.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from steermoe.data.tokens import unmarked

SHOWN = 120  # characters of what the LLM wrote, in errors
TYPES: dict[str, tuple[type, ...]] = {  # of JSON schema
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
    "null": (type(None),),
}
SPACE_OR_COMMA = re.compile(r"[\s;,]*")


class Malformed(str):
    """What is wrong with a call that could not even be read."""


@dataclass(frozen=True)
class ToolCall:
    """One call: the name is that of a tool, and the arguments fit its parameters."""

    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True)
class Answer:
    """What the LLM said.

    Attributes:
        text: besides calls.
        tool_calls: those that are right.
        errors: what is wrong with the others, one line each.
        confidence: the geometric mean of the probabilities of its tokens, in 0..1; None where it was not asked for,
            or there are none.
        gates: an array (frames, experts) by layer; None where they were not asked for.
        warnings: what speaks against it, a line each; see `trust`.
    """

    text: str
    tool_calls: tuple[ToolCall, ...] = ()
    errors: tuple[str, ...] = ()
    confidence: float | None = field(default=None, compare=False)
    gates: Mapping[str, np.ndarray] | None = field(default=None, compare=False)
    warnings: tuple[str, ...] = field(default=(), compare=False)


def check_tools(tools: Sequence[dict]) -> None:
    """Raises ValueError where a tool is no function definition, or two have the same name."""
    names = []
    for place, tool in enumerate(tools):
        function = tool.get("function") if isinstance(tool, dict) else None
        name = function.get("name") if isinstance(function, dict) else None
        parameters = function.get("parameters", {}) if isinstance(function, dict) else None
        if not isinstance(name, str) or not isinstance(parameters, dict):
            raise ValueError(
                f"tools[{place}]: found {str(tool)[:SHOWN]}, expected "
                '{"type": "function", "function": {"name": ..., "parameters": {a JSON schema}}}'
            )
        names.append(name)
    if not names:
        raise ValueError("tools: found none; leave `tools` out to ask without")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"tools: found {', '.join(twice)} more than once; a call could not tell which")


def read_answer(ids: list[int], tokenizer: Any, tools: Sequence[dict] | None, opening: str) -> Answer:
    """The answer that token ids are.

    A tokenizer that declares a `response_template` is taken at its word (`parse_response` of transformers);
    for the others the row of FORMATS whose mark the text has reads the calls.

    Args:
        ids: generated ids, without end token.
        tokenizer: the LLM's.
        tools: what may be called; None: whatever is written is text.
        opening: the prompt's end, which may have opened the answer (`parse_response` wants to know).
    """
    text = tokenizer.decode(ids, skip_special_tokens=True).strip()
    if tools is None:
        return Answer(text)
    written = tokenizer.decode(ids, skip_special_tokens=False).strip()
    if getattr(tokenizer, "response_template", None) is not None:
        try:
            message = tokenizer.parse_response(written, prefix=unmarked(opening), tools=list(tools))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            return Answer(text, errors=(f"found {written[:SHOWN]!r}, which cannot be read: {error}",))
        found = [_function(call) for call in message.get("tool_calls") or []]
        return _checked(message.get("content") or "", found, tools)
    for mark, read in FORMATS.items():
        if re.search(mark, written):
            spoken, _, _ = re.split(f"({mark})", written, maxsplit=1)[:3]
            for token in tokenizer.all_special_tokens:
                spoken = spoken.replace(token, "")
            found = list(read(written)) or [Malformed(f"found {written[:SHOWN]!r}, which has no call in it")]
            return _checked(spoken.strip(), found, tools)
    return Answer(text)


def _function(call: Any) -> Any:
    """What is called, of a call as a chat message has it."""
    return call.get("function", call) if isinstance(call, dict) else call


def _checked(text: str, found: list[Any], tools: Sequence[dict]) -> Answer:
    """An answer of what was found: the calls that are right, and what is wrong with the others."""
    known = {tool["function"]["name"]: tool["function"].get("parameters", {}) for tool in tools}
    calls, errors = [], []
    for call in found:
        if isinstance(call, Malformed):
            errors.append(call)
            continue
        name = call.get("name") if isinstance(call, dict) else None
        arguments = call.get("arguments", call.get("parameters", {})) if isinstance(call, dict) else None
        if isinstance(arguments, str):  # JSON within JSON, as OpenAI's API has it
            arguments = next(_objects(arguments), None)
        if not isinstance(name, str) or not isinstance(arguments, dict):
            shown = json.dumps(call, ensure_ascii=False)[:SHOWN]
            errors.append(f"found {shown}, expected an object with name and arguments")
        elif name not in known:
            errors.append(f"found a call of {name!r}, which is no tool; one of: {', '.join(known)}")
        elif wrong := misfit(arguments, {"type": "object", **known[name]}, "arguments"):
            errors.append(f"{name}: {wrong}")
        else:
            calls.append(ToolCall(name, arguments))
    return Answer(text, tuple(calls), tuple(errors))


def misfit(value: Any, schema: dict[str, Any], place: str) -> str:
    """Why a value does not fit a JSON schema; "" where it does.

    The keywords type, enum, const, anyOf, required, properties, additionalProperties and items are checked.
    Unlike in JSON schema, properties that are not named are wrong unless additionalProperties says otherwise:
    a function takes no arguments that it does not have.
    """
    shown = json.dumps(value, ensure_ascii=False)[:SHOWN]
    if choices := schema.get("anyOf"):
        wrong = [misfit(value, choice, place) for choice in choices]
        return "" if "" in wrong else wrong[0]
    kinds = schema.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if kinds and not any(_is(value, kind) for kind in kinds):
        return f"{place}: found {shown}, expected {' or '.join(kinds)}"
    legal = schema.get("enum", [schema["const"]] if "const" in schema else None)
    if legal is not None and value not in legal:
        return f"{place}: found {shown}, expected one of {json.dumps(legal, ensure_ascii=False)}"
    if isinstance(value, list):
        inner = (misfit(item, schema.get("items", {}), f"{place}[{i}]") for i, item in enumerate(value))
        return next((wrong for wrong in inner if wrong), "")
    if isinstance(value, dict) and ("properties" in schema or schema.get("type") == "object"):
        return _misfit_of_object(value, schema, place)
    return ""


def _misfit_of_object(value: dict[str, Any], schema: dict[str, Any], place: str) -> str:
    named, others = schema.get("properties", {}), schema.get("additionalProperties", False)
    if missing := [name for name in schema.get("required", []) if name not in value]:
        return f"{place}: {missing[0]!r} is missing"
    for name, inner in value.items():
        if name not in named and others is False:
            return f"{place}: found {name!r}, expected one of: {', '.join(named) or 'none'}"
        rule = named.get(name, others if isinstance(others, dict) else {})
        if wrong := misfit(inner, rule, f"{place}.{name}"):
            return wrong
    return ""


def _is(value: Any, kind: str) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    return isinstance(value, TYPES.get(kind, ()))


def _objects(text: str) -> Iterator[Any]:
    """The JSON values that stand one after the other, lists item by item, up to one that is malformed."""
    place, decoder = 0, json.JSONDecoder()
    text = text.strip()
    while place < len(text):
        try:
            value, place = decoder.raw_decode(text, place)
        except (json.JSONDecodeError, RecursionError) as error:
            yield Malformed(f"found {text[place : place + SHOWN]!r}, which is not JSON: {error}")
            return
        yield from value if isinstance(value, list) else [value]
        if gap := SPACE_OR_COMMA.match(text, place):
            place = gap.end()


def _hermes(written: str) -> Iterator[Any]:
    for inner in re.findall(r"<tool_call>(.*?)(?:</tool_call>|(?=<tool_call>)|$)", written, re.DOTALL):
        yield from _objects(inner)


def _mistral(written: str) -> Iterator[Any]:
    for inner in written.split("[TOOL_CALLS]")[1:]:
        name, named, arguments = inner.partition("[ARGS]")
        if named:
            yield from ({"name": name.strip(), "arguments": value} for value in _objects(arguments))
        else:
            yield from _objects(inner.removesuffix("</s>"))


def _llama(written: str) -> Iterator[Any]:
    yield from _objects(written.removeprefix("<|python_tag|>"))


# Pattern of the mark -> reader of the whole text, yielding a JSON value a call.
FORMATS: dict[str, Callable[[str], Iterator[Any]]] = {
    r"<tool_call>": _hermes,  # Hermes, Qwen 2.5 and 3
    r"\[TOOL_CALLS\]": _mistral,
    r"^(?:<\|python_tag\|>)?\s*\{\s*\"(?:name|type)\"": _llama,  # Llama 3.1 and later
}

"""Answers that call tools: parsed from the LLM's output and checked against the definitions. Nothing is run.

A tool is a function definition as OpenAI's API and chat templates take it:
`{"type": "function", "function": {"name": ..., "description": ..., "parameters": <JSON schema>}}`.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jsonschema
import numpy as np
from jsonschema.exceptions import best_match
from jsonschema.validators import extend
from referencing import Registry

from steermoe.data.tokens import unmarked

MAX_SHOWN = 120  # characters of the LLM's output in errors
COMPOSITION = ("$ref", "allOf", "anyOf", "oneOf")  # may name properties in another place
# Without `pattern`: a client's regular expression can take forever on the LLM's output.
Checker: Any = extend(jsonschema.Draft202012Validator, {"pattern": None})
SPACE_OR_COMMA = re.compile(r"[\s;,]*")


class Malformed(str):
    """Why a call could not be parsed."""


@dataclass(frozen=True)
class ToolCall:
    """A call of a known tool with arguments that fit its parameters."""

    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True)
class Answer:
    """The LLM's answer.

    Attributes:
        text: the text outside calls.
        tool_calls: the valid calls.
        errors: what is wrong with each of the others.
        confidence: geometric mean of the tokens' probabilities, in 0..1; None if not computed or without tokens.
        gates: (frames, experts) of each hook point; None if not requested.
        warnings: reasons not to trust the answer; see `trust`.
        truncated: it ended at the limit of tokens, not by itself.
    """

    text: str
    tool_calls: tuple[ToolCall, ...] = ()
    errors: tuple[str, ...] = ()
    confidence: float | None = field(default=None, compare=False)
    gates: Mapping[str, np.ndarray] | None = field(default=None, compare=False)
    warnings: tuple[str, ...] = field(default=(), compare=False)
    truncated: bool = field(default=False, compare=False)


def check_tools(tools: Sequence[dict]) -> None:
    """Check function definitions.

    Raises:
        ValueError: there is none, one is malformed, its parameters are no JSON schema, or a name is used twice.
    """
    names = []
    for place, tool in enumerate(tools):
        function = tool.get("function") if isinstance(tool, dict) else None
        name = function.get("name") if isinstance(function, dict) else None
        parameters = function.get("parameters", {}) if isinstance(function, dict) else None
        if not isinstance(name, str) or not isinstance(parameters, dict):
            raise ValueError(
                f"tools[{place}]: found {str(tool)[:MAX_SHOWN]}, expected "
                '{"type": "function", "function": {"name": ..., "parameters": {a JSON schema}}}'
            )
        where = f"tools[{place}].function.parameters"
        try:
            jsonschema.Draft202012Validator.check_schema(parameters)
        except (jsonschema.SchemaError, RecursionError) as error:
            raise ValueError(
                f"{where}: not a JSON schema: {str(error).splitlines()[0][:MAX_SHOWN]}"
            ) from error
        if "patternProperties" in json.dumps(parameters):
            raise ValueError(f"{where}: patternProperties are not supported; name the properties")
        names.append(name)
    if not names:
        raise ValueError("tools: found none; leave `tools` out to ask without")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"tools: found {', '.join(twice)} more than once; every tool needs its own name")


def read_answer(ids: list[int], tokenizer: Any, tools: Sequence[dict] | None, opening: str) -> Answer:
    """Parse an answer.

    Where a tokenizer declares a `response_template`, transformers' `parse_response` does it; otherwise the first entry
    of FORMATS whose mark is in the text.

    Args:
        ids: generated ids, without end token.
        tokenizer: the LLM's.
        tools: the tools that may be called; None: everything is text.
        opening: the end of the prompt, which `parse_response` needs.
    """
    text = tokenizer.decode(ids, skip_special_tokens=True).strip()
    if tools is None:
        return Answer(text)
    written = tokenizer.decode(ids, skip_special_tokens=False).strip()
    if getattr(tokenizer, "response_template", None) is not None:
        try:
            message = tokenizer.parse_response(written, prefix=unmarked(opening), tools=list(tools))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            return Answer(text, errors=(f"found {written[:MAX_SHOWN]!r}, which cannot be read: {error}",))
        found = [_function(call) for call in message.get("tool_calls") or []]
        return _checked(message.get("content") or "", found, tools)
    for mark, read in FORMATS.items():
        if re.search(mark, written):
            spoken, _, _ = re.split(f"({mark})", written, maxsplit=1)[:3]
            for token in tokenizer.all_special_tokens:
                spoken = spoken.replace(token, "")
            found = list(read(written)) or [
                Malformed(f"found {written[:MAX_SHOWN]!r}, which has no call in it")
            ]
            return _checked(spoken.strip(), found, tools)
    return Answer(text)


def _function(call: Any) -> Any:
    """Return the function of a call as in a chat message."""
    return call.get("function", call) if isinstance(call, dict) else call


def _checked(text: str, found: list[Any], tools: Sequence[dict]) -> Answer:
    """Separate the valid calls from the errors."""
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
            shown = json.dumps(call, ensure_ascii=False)[:MAX_SHOWN]
            errors.append(f"found {shown}, expected an object with name and arguments")
        elif name not in known:
            errors.append(f"found a call of {name!r}, which is no tool; one of: {', '.join(known)}")
        elif wrong := misfit(arguments, known[name]):
            errors.append(f"{name}: {wrong}")
        else:
            calls.append(ToolCall(name, arguments))
    return Answer(text, tuple(calls), tuple(errors))


def misfit(arguments: dict[str, Any], parameters: dict[str, Any]) -> str:
    """Return why arguments do not fit a tool's parameters; "" if they do.

    Unlike in JSON Schema, arguments that are not named are wrong unless `additionalProperties` allows them.
    """
    schema = {"type": "object", **parameters}
    if schema.keys().isdisjoint(COMPOSITION):
        schema.setdefault("additionalProperties", False)
    try:
        error = best_match(Checker(schema, registry=Registry()).iter_errors(arguments))
    except Exception as error:  # of the client's schema: a reference that is not there, a loop, a huge number
        return f"the schema of the parameters cannot be used: {type(error).__name__}"
    if error is None:
        return ""
    return f"{error.json_path.replace('$', 'arguments', 1)}: {error.message[:MAX_SHOWN]}"


def _objects(text: str) -> Iterator[Any]:
    """Yield consecutive JSON values, lists item by item, up to the first malformed one."""
    place, decoder = 0, json.JSONDecoder()
    text = text.strip()
    while place < len(text):
        try:
            value, place = decoder.raw_decode(text, place)
        except (json.JSONDecodeError, RecursionError) as error:
            yield Malformed(f"found {text[place : place + MAX_SHOWN]!r}, which is not JSON: {error}")
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


# Pattern of a mark -> parser of the whole text, yielding one JSON value per call.
FORMATS: dict[str, Callable[[str], Iterator[Any]]] = {
    r"<tool_call>": _hermes,  # Hermes, Qwen 2.5 and 3
    r"\[TOOL_CALLS\]": _mistral,
    r"^(?:<\|python_tag\|>)?\s*\{\s*\"(?:name|type)\"": _llama,  # Llama 3.1 and later
}

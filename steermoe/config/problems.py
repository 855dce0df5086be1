"""Wording of what is wrong with a configuration: a line a problem, with what was found and what is legal."""

import difflib
import json
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from pydantic import ValidationError
from pydantic_core import PydanticCustomError

BOUNDS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
KINDS = {
    "integer": "a whole number",
    "number": "a number",
    "string": "text",
    "boolean": "true or false",
    "null": "null",
    "object": "keys with values",
}
LONGEST_VALUE = 80  # characters of a found value that are shown


class ConfigError(ValueError):
    """Every problem of a configuration, a line each: file, dotted path, found, legal, nearest legal name."""

    def __init__(self, lines: Sequence[str]) -> None:
        self.lines = list(lines)
        count = "1 problem" if len(lines) == 1 else f"{len(lines)} problems"
        super().__init__("\n".join([f"{count} in the configuration:", *(f"  {line}" for line in lines)]))


def illegal(legal: str | Iterable[str], found: Any = ...) -> PydanticCustomError:
    """What a validator raises: `legal` in words or as names; `found` where it is only a part of the value."""
    legal = legal if isinstance(legal, str) else list(legal)
    return PydanticCustomError("illegal", "illegal", {"legal": legal, "found": found})


def problem(place: str, found: Any, legal: str | Collection[str]) -> str:
    """A line: `place` (file and dotted path), found, legal (in words, or names; then with the nearest)."""
    words = legal if isinstance(legal, str) else one_of(legal)
    return f"{place}: found {_shown(found)}; legal: {words}{nearest(found, legal)}"


def nearest(found: Any, legal: str | Collection[str]) -> str:
    """`; nearest: NAME`, where one of the legal names is near to what was found."""
    if isinstance(legal, str) or not isinstance(found, str):
        return ""
    close = difflib.get_close_matches(found, legal, n=1, cutoff=0.5)
    return f"; nearest: {close[0]}" if close else ""


def one_of(names: Collection[str]) -> str:
    """The names as words."""
    return f"one of {', '.join(names)}" if len(names) > 1 else "".join(names) or "none"


def located(error: ValidationError, schema: dict[str, Any]) -> list[tuple[str, str]]:
    """The problems of a validation, as pairs of dotted path and what follows it in a line.

    `schema` is the JSON schema of what was validated: legal values are worded from it.
    """
    pairs = []
    for item in error.errors(include_url=False):
        steps = [step for step in item["loc"] if step != "[key]"]
        path = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps)[1:]
        match item["type"]:
            case "missing":
                line = f": missing; legal: {_words(_at(schema, steps), schema)}"
            case "extra_forbidden":
                keys = list(_inside(_at(schema, steps[:-1]), schema)["properties"])
                line = f": unknown key; legal: {one_of(keys)}{nearest(steps[-1], keys)}"
            case "illegal":
                context = item.get("ctx", {})
                found = item["input"] if context["found"] is ... else context["found"]
                line = problem("", found, context["legal"])
            case _:
                node = _at(schema, steps)
                line = problem("", item["input"], node.get("enum") or _words(node, schema))
        pairs.append((path, line))
    return pairs


def section_form(name: str, schema: dict[str, Any]) -> str:
    """The section `name` as it is written, with what is legal in the place of values."""
    keys = _at(schema, [name])["properties"]
    return f"{{{', '.join(f'{key}: <{_words(node, schema)}>' for key, node in keys.items())}}}"


def _at(schema: dict[str, Any], steps: Sequence[int | str]) -> dict[str, Any]:
    node = _resolved(schema, schema)
    for step in steps:
        node = _inside(node, schema)
        if isinstance(step, int):
            inner = node.get("items")
        else:
            inner = node.get("properties", {}).get(step) or node.get("additionalProperties")
        node = _resolved(inner or {}, schema)
    return node


def _inside(node: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    """The section that a node is, where it may be null, too."""
    found = (_resolved(choice, schema) for choice in node.get("anyOf", ()))
    return next((choice for choice in found if "properties" in choice), node)


def _resolved(node: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    if "$ref" in node:
        return schema["$defs"][node["$ref"].removeprefix("#/$defs/")]
    return node


def _words(node: dict[str, Any], schema: dict[str, Any]) -> str:
    node = _resolved(node, schema)
    if "properties" in node:
        return f"a section with {', '.join(node['properties'])}"
    if "description" in node:
        return node["description"]
    if "enum" in node:
        return one_of([str(value) for value in node["enum"]])
    if "anyOf" in node:
        return " or ".join(_words(choice, schema) for choice in node["anyOf"])
    if node.get("type") == "array":
        return f"a list, each item {_words(node['items'], schema)}"
    limits = " and ".join(f"{sign} {node[bound]:g}" for bound, sign in BOUNDS.items() if bound in node)
    return f"{KINDS[node['type']]} {limits}".rstrip()


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE - 3]}..."

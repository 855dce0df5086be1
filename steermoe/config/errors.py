"""Errors of the configuration: one line for each problem, with what was found and what is allowed."""

import difflib
import json
import re
from collections.abc import Collection, Iterator, Sequence
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticCustomError

KINDS = {
    "string_type": "text",
    "bool_type": "true or false",
    "dict_type": "keys with values",
    "list_type": "a list",
}
LONGEST_VALUE = 80  # characters of a found value that are shown
RENAMED = {  # keys of version 0.1, by the part of a path that was renamed
    "arms": "variants",
    "bridge": "projector",
    "kernel": "downsample_factor",
    "after": "downsample_after_layer",
    "site": "hook_point",
    "load_balance": "router_aux_loss_coef",
    "z_loss": "router_z_loss_coef",
    "beams": "num_beams",
    "no_repeat_ngram": "no_repeat_ngram_size",
    "batch_seconds": "max_batch_seconds",
    "steps": "max_steps",
    "clip": "max_grad_norm",
    "steering_clip": "steering_max_grad_norm",
    "eval_every": "eval_steps",
}


class ConfigError(ValueError):
    """All problems of a configuration, one line each: file, dotted path, found, allowed, nearest allowed name."""

    def __init__(self, lines: Sequence[str]) -> None:
        self.lines = list(lines)
        count = "1 problem" if len(lines) == 1 else f"{len(lines)} problems"
        super().__init__("\n".join([f"{count} in the configuration:", *(f"  {line}" for line in lines)]))


def illegal(allowed: str | Collection[str], found: Any = ...) -> PydanticCustomError:
    """Return what a validator raises.

    Args:
        allowed: what is allowed, in words or as a list of names.
        found: the wrong part of the value; by default the whole value.
    """
    allowed = allowed if isinstance(allowed, str) else list(allowed)
    return PydanticCustomError("illegal", "illegal", {"allowed": allowed, "found": found})


def broken_rules(rules: Sequence[tuple[str, str, Any]]) -> PydanticCustomError:
    """Return what a section raises whose values do not fit each other: key, what is allowed, what was found."""
    return PydanticCustomError("rules", "rules", {"broken": list(rules)})


def problem(place: str, found: Any, allowed: str | Collection[str]) -> str:
    """Return a line: `place` (file and dotted path), what was found, what is allowed, the nearest allowed name."""
    words = allowed if isinstance(allowed, str) else one_of(allowed)
    text = json.dumps(found, ensure_ascii=False, default=str)
    shown = text if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE - 3]}..."
    return f"{place}: found {shown}; allowed: {words}{nearest(found, allowed)}"


def nearest(found: Any, allowed: str | Collection[str]) -> str:
    """Return `; did you mean NAME?` if one of the allowed names is similar to what was found, else nothing."""
    if isinstance(allowed, str) or not isinstance(found, str):
        return ""
    close = difflib.get_close_matches(found, allowed, n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""


def one_of(names: Collection[str]) -> str:
    """Return the names as words."""
    return f"one of {', '.join(names)}" if len(names) > 1 else "".join(names) or "none"


def unknown_key(key: str, keys: Collection[str]) -> str:
    """Return the end of a line about an unknown key: its new name if it was renamed, else the allowed keys."""
    if RENAMED.get(key) in keys:
        return f": renamed; the key is now {RENAMED[key]}"
    return f": unknown key; allowed: {one_of(keys)}{nearest(key, keys)}"


def located(error: ValidationError, kind: type[BaseModel]) -> list[tuple[str, str]]:
    """Return the problems of a validation of `kind` as pairs: dotted path, and what follows it in a line."""
    return [pair for item in error.errors(include_url=False) for pair in _lines(item, kind)]


def _lines(item: Any, kind: type[BaseModel]) -> Iterator[tuple[str, str]]:
    steps = [step for step in item["loc"] if step != "[key]"]
    path = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps)[1:]
    match item["type"]:
        case "rules":
            for key, allowed, found in item["ctx"]["broken"]:
                yield f"{path}.{key}".lstrip("."), problem("", found, allowed)
        case "missing":
            yield path, ": missing; every key is required, with the value null where it does not apply"
        case "extra_forbidden":
            yield path, unknown_key(str(steps[-1]), _keys(kind, steps[:-1]))
        case "illegal":
            allowed, found = item["ctx"]["allowed"], item["ctx"]["found"]
            if isinstance(allowed, str):
                allowed += _or_null(kind, steps)
            yield path, problem("", item["input"] if found is ... else found, allowed)
        case "literal_error":
            yield path, problem("", item["input"], re.findall(r"'([^']*)'", item["ctx"]["expected"]))
        case "model_type":
            keys = ", ".join(_keys(kind, steps))
            yield path, problem("", item["input"], f"a section with {keys}{_or_null(kind, steps)}")
        case _:
            words = KINDS.get(item["type"], item["msg"])
            yield path, problem("", item["input"], f"{words}{_or_null(kind, steps)}")


def _annotation(kind: Any, steps: Sequence[Any]) -> Any:
    """Return the annotation of the value at `steps` of a section `kind`."""
    for step in steps:
        section = _section_in(kind)
        fields = section.model_fields if section else {}
        if step in fields:
            kind = fields[step].annotation
        else:  # an item of a list, or a value of a mapping
            inner = [each for each in (kind, *get_args(kind)) if get_origin(each) in (list, dict)]
            kind = get_args(inner[0])[-1] if inner else Any
    return kind


def _keys(kind: Any, steps: Sequence[Any]) -> list[str]:
    section = _section_in(_annotation(kind, steps))
    return list(section.model_fields) if section else []


def _or_null(kind: Any, steps: Sequence[Any]) -> str:
    return " or null" if type(None) in get_args(_annotation(kind, steps)) else ""


def _section_in(kind: Any) -> type[BaseModel] | None:
    """Return the section that an annotation allows, if it does."""
    choices = (kind, *get_args(kind))
    return next((each for each in choices if isinstance(each, type) and issubclass(each, BaseModel)), None)

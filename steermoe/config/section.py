"""The base class of all sections of the configuration, and the types of their values."""

import math
from collections.abc import Callable, Collection, Iterable, Iterator
from functools import partial
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, PlainValidator, model_validator

from steermoe.config.errors import broken_rules, illegal

# Names that a model's `path` can be, besides hub ids, folders and files; pinned in `steermoe.weights`.
BASE_MODELS = ("whisper-base", "smollm2-135m-instruct", "kokoro-82m", "piper-joe", "wordnet")
PACKAGE = "package:"  # begins the path of a file in a package of the package index
COMMIT, SHA256 = 40, 64  # hexadecimal digits


class Section(BaseModel):
    """A section: frozen, strict, without defaults, so that DVC sees every value."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    def _rules(self) -> Iterator[tuple[str, str] | tuple[str, str, Any]]:
        """Yield the broken rules between values: key, what is allowed, and what was found if not the key's value."""
        yield from ()

    @model_validator(mode="after")
    def _obey(self) -> Self:
        broken = [
            (rule[0], rule[1], rule[2] if len(rule) > 2 else getattr(self, rule[0])) for rule in self._rules()
        ]
        if broken:
            raise broken_rules(broken)
        return self


def checked(allowed: str, test: Callable[[Any], bool]) -> PlainValidator:
    """Return a validator of values that `test` accepts; `allowed` says in an error what those are."""

    def check(value: Any) -> Any:
        if not test(value):
            raise illegal(allowed)
        return value

    return PlainValidator(check)


def name_in(names: Collection[str]) -> AfterValidator:
    """Return a validator of names that are rows of a registry."""

    def check(name: str) -> str:
        if name not in names:
            raise illegal(names)
        return name

    return AfterValidator(check)


def _different(names: list[str]) -> list[str]:
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise illegal("every name once", found=twice)
    return names


def _some(names: list[str]) -> list[str]:
    if not names:
        raise illegal("a list of at least one name")
    return names


def whole(value: Any, least: int) -> bool:
    """Return whether a value is a whole number from `least` on; True and False are none."""
    return type(value) is int and value >= least


def pinned_as(path: str, revision: str | None) -> Iterable[tuple[str, str]]:
    """Yield the rule between path and revision of a model that is broken: what pins which kind of path."""
    if path.startswith(PACKAGE):
        if revision is None or len(revision) != SHA256:
            yield (
                "revision",
                f"the SHA-256 of the file, {SHA256} hexadecimal digits, as {path!r} is in a package",
            )
    elif not of_the_hub(path):
        if revision is not None:
            what = "a name that pins its files" if path in BASE_MODELS else "a folder"
            yield "revision", f"null, as {path!r} is {what}"
    elif revision is not None and len(revision) != COMMIT:
        yield "revision", f"a commit of the hub, {COMMIT} hexadecimal digits, as {path!r} is a hub id"


def of_the_hub(path: str) -> bool:
    """Return whether a path can be a hub id, `name` or `owner/name`, judged by its letters."""
    elsewhere = path in BASE_MODELS or path.startswith((".", "/", "~", PACKAGE)) or path.endswith(".gguf")
    return not elsewhere and path.count("/") < 2


def _whole(least: int) -> Any:
    return checked(f"a whole number >= {least}", lambda value: whole(value, least))


def _number(allowed: str, test: Callable[[float], bool]) -> Any:
    def check(value: Any) -> float:
        if type(value) not in (int, float) or not math.isfinite(value) or not test(value):
            raise illegal(allowed)
        return float(value)

    return PlainValidator(check)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _is_hex(value: Any, lengths: tuple[int, ...]) -> bool:
    return _is_text(value) and len(value) in lengths and not set(value) - set("0123456789abcdef")


Dtype = Literal["float32", "bfloat16"]
Rows = Annotated[int, _whole(0)]
Count = Annotated[int, _whole(1)]
AtLeast2 = Annotated[int, _whole(2)]
Seed = Annotated[
    int, checked("a whole number from 0 to 4294967295", lambda seed: whole(seed, 0) and seed < 2**32)
]
NotNegative = Annotated[float, _number("a number >= 0", lambda value: value >= 0)]
Positive = Annotated[float, _number("a number > 0", lambda value: value > 0)]
Share = Annotated[float, _number("a number >= 0 and < 1", lambda value: 0 <= value < 1)]
OpenShare = Annotated[float, _number("a number > 0 and < 1", lambda value: 0 < value < 1)]
PartOfOne = Annotated[float, _number("a number > 0 and <= 1", lambda value: 0 < value <= 1)]
Text = Annotated[str, checked("text that is not empty", _is_text)]
Names = Annotated[list[Text], AfterValidator(_different)]
SomeNames = Annotated[list[Text], AfterValidator(_different), AfterValidator(_some)]
Depth = Annotated[
    Literal["all"] | int,
    checked(
        "all, or a whole number >= 1 (the first layers)", lambda depth: depth == "all" or whole(depth, 1)
    ),
]
Commit = Annotated[
    str, checked("a commit of the hub, 40 hexadecimal digits", partial(_is_hex, lengths=(COMMIT,)))
]
Revision = Annotated[
    str,
    checked(
        "a commit of the hub, 40 hexadecimal digits, or the SHA-256 of a file in a package, 64",
        partial(_is_hex, lengths=(COMMIT, SHA256)),
    ),
]

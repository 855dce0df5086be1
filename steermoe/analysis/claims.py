"""What others published, as they published it: claims with source, date and protocol, from claims.yaml.

They are never measurements of ours, and never stand in one table with them: `table` gives them a heading that
says so.
"""

from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Literal

import polars as pl
from pydantic import Field, ValidationError, ValidationInfo, field_validator
from ruamel.yaml import YAML

from steermoe import config
from steermoe.config.problems import ConfigError, illegal, located
from steermoe.config.sections import Section

HEADING = "published by others, other protocols"
FILE = "steermoe/analysis/claims.yaml"


class Source(Section):
    """Where a claim stands, and since when."""

    reference: str
    date: str | None = None


class Models(Section):
    """A configuration whose parameters a claim counts."""

    encoder: str
    llm: str
    method: Literal["steering", "linear", "lora"]
    num_experts: int | None = None


class Claim(Section):
    """A published figure.

    Attributes:
        value: in `unit`.
        source: a key of the file's sources.
        protocol: how it was measured; `unknown` where that is not stated.
        status: standing: not withdrawn, and nothing is known against it; withdrawn: by its authors;
            contradicted: by what can be computed, or by another claim.
        of, part: the configuration, and the part of it, whose parameters it counts.
        recompute: another computation that checks it: its name under `how`, and its arguments.
        against: the id of a claim that it cannot stand beside.
        note: what became of it, or why it is wrong.
    """

    id: str
    topic: str
    system: str
    task: str
    dataset: str
    split: str
    metric: str
    value: float
    unit: str
    source: str
    protocol: str
    status: Literal["standing", "withdrawn", "contradicted"]
    of: Models | None = None
    part: str = "trained"
    recompute: dict[str, Any] | None = None
    against: str | None = None
    note: str | None = Field(None, validate_default=True)

    @field_validator("note")
    @classmethod
    def _explained(cls, note: str | None, info: ValidationInfo) -> str | None:
        if note is None and info.data.get("status") != "standing":
            raise illegal("a reason, as the claim is not standing")
        return note


class Method(Section):
    """The published method's own settings."""

    steering: config.Steering
    lora: config.Lora
    bridge: config.Bridge


@dataclass(frozen=True)
class Claims:
    """The file.

    Attributes:
        claims: by id, in the file's order.
        sources: by key.
        method: the settings that the published counts are of.
    """

    claims: dict[str, Claim]
    sources: dict[str, Source]
    method: Method

    @property
    def topics(self) -> list[str]:
        """All topics, in the file's order."""
        return list(dict.fromkeys(claim.topic for claim in self.claims.values()))

    def about(self, topic: str | None) -> list[Claim]:
        """The claims of a topic; None: all.

        Raises:
            ConfigError: there is no such topic.
        """
        if topic is not None and topic not in self.topics:
            raise ConfigError([f"topic: found {topic!r}; legal: {', '.join(self.topics)}"])
        return [claim for claim in self.claims.values() if topic in (None, claim.topic)]

    def cited(self, claim: Claim) -> str:
        """Source and date in words."""
        source = self.sources[claim.source]
        return f"{source.reference}, {source.date}" if source.date else source.reference


@cache
def load() -> Claims:
    """The packaged file, checked.

    Raises:
        ConfigError: a row lacks something, or names a source or a claim that there is not.
    """
    text = files("steermoe.analysis").joinpath("claims.yaml").read_text(encoding="utf-8")
    return parse(text)


def parse(text: str) -> Claims:
    """The claims in the text of a file of the form of claims.yaml.

    Raises:
        ConfigError: as `load`.
    """
    tree, lines = YAML(typ="safe").load(text), []
    sources = {key: _read(Source, row, f"sources.{key}", lines) for key, row in tree["sources"].items()}
    method = _read(Method, tree["sections"], "sections", lines)
    claims: dict[str, Claim] = {}
    for table in tree["tables"]:
        shared = {key: value for key, value in table.items() if key != "claims"}
        for row in table["claims"]:
            values = shared | row
            values["value"] = float(values.get("value", "nan"))
            claim = _read(Claim, values, f"claim {row.get('id')}", lines)
            if claim is not None:
                if claim.id in claims:
                    lines.append(f"{FILE}: claim {claim.id}: found twice; legal: every id once")
                claims[claim.id] = claim
    for claim in claims.values():
        if claim.source not in sources:
            lines.append(
                f"{FILE}: claim {claim.id}.source: found {claim.source!r}; legal: a key of `sources`"
            )
        if claim.against is not None and claim.against not in claims:
            lines.append(
                f"{FILE}: claim {claim.id}.against: found {claim.against!r}; legal: the id of a claim"
            )
        if claim.status == "contradicted" and not (claim.of or claim.recompute or claim.against):
            lines.append(
                f"{FILE}: claim {claim.id}: contradicted, but by nothing: add of, recompute or against"
            )
    if lines or method is None:
        raise ConfigError(lines)
    return Claims(claims, {key: source for key, source in sources.items() if source is not None}, method)


def _read(kind: Any, row: Any, place: str, lines: list[str]) -> Any:
    try:
        return kind.model_validate(row)
    except ValidationError as error:
        lines += [f"{FILE}: {place}.{path}{line}" for path, line in located(error, kind.model_json_schema())]
        return None


@dataclass(frozen=True)
class Table:
    """Claims to stand beside a comparison, under a heading that says what they are."""

    heading: str
    rows: pl.DataFrame


def table(topic: str) -> Table:
    """The claims of a topic: system, dataset, split, metric, value, unit, protocol, status, source.

    Raises:
        ConfigError: there is no such topic.
    """
    known = load()
    columns = ("system", "dataset", "split", "metric", "value", "unit", "protocol", "status")
    rows = [
        {**{name: getattr(claim, name) for name in columns}, "source": known.cited(claim)}
        for claim in known.about(topic)
    ]
    return Table(f"{topic}: {HEADING}", pl.DataFrame(rows))

"""Reads params.yaml and the profile it names, checks both together, and switches the profile."""

import io
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError, ValidationInfo, field_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.representer import RoundTripRepresenter

from steermoe.config.arms import Arm, ArmConfig, ArmName, Overrides, Settings, arm_config
from steermoe.config.corpora import Corpora, Corpus
from steermoe.config.language import Generation, Prompts
from steermoe.config.method import Bridge, Lora, Steering
from steermoe.config.problems import ConfigError, illegal, located, problem
from steermoe.config.sections import (
    Encoder,
    Evaluation,
    Llm,
    Preprocessing,
    ProfileTraining,
    Section,
    Seed,
    SomeNames,
)

Model = TypeVar("Model", bound=BaseModel)


class Params(Section):
    """params.yaml."""

    profile: str
    corpora: SomeNames
    compare: SomeNames
    reference: str
    seed: Seed
    steering: Steering
    lora: Lora
    llm_lora: Lora
    bridge: Bridge
    prompts: Prompts
    generation: Generation
    evaluation: Evaluation
    arms: dict[ArmName, Arm]

    @field_validator("compare")
    @classmethod
    def _are_arms(cls, names: list[str], info: ValidationInfo) -> list[str]:
        arms = _there(info, "arms", dict)
        for name in names:
            if name not in arms:
                raise illegal(arms, found=name)
        return names

    @field_validator("reference")
    @classmethod
    def _is_compared(cls, name: str, info: ValidationInfo) -> str:
        compare = _there(info, "compare", list)
        if name not in compare:
            raise illegal(compare)
        return name


def _there(info: ValidationInfo, key: str, kind: type) -> list[str]:
    """The names under another key as they stand in the file, right or wrong."""
    value: Any = (info.context or {}).get(key)
    return [name for name in value if isinstance(name, str)] if isinstance(value, kind) else []


class Profile(Section):
    """A profile in configs/."""

    encoder: Encoder
    llm: Llm
    corpora: Corpora
    preprocessing: Preprocessing
    training: ProfileTraining

    @field_validator("corpora")
    @classmethod
    def _serve_every_use(cls, corpora: Corpora) -> Corpora:
        for use in ("train", "dev", "test"):
            if not any(getattr(corpus, use) for corpus in corpora.named().values()):
                raise illegal(f"at least one corpus with a split in `{use}`", found=list(corpora.named()))
        return corpora

    @field_validator("preprocessing")
    @classmethod
    def _names_its_corpora(cls, section: Preprocessing, info: ValidationInfo) -> Preprocessing:
        corpora = info.data["corpora"].named() if "corpora" in info.data else section.unreadable
        for name in section.unreadable:
            if name not in corpora:
                raise illegal(corpora, found={"unreadable": name})
        return section


@dataclass(frozen=True)
class Config:
    """The whole configuration, checked: params.yaml with the profile in force.

    Attributes:
        corpora: the settings of each corpus, in the order of params.yaml.
        arms: every arm that is possible, resolved; `compare` names those in force.
    """

    profile: str
    corpora: dict[str, Corpus]
    arms: dict[str, ArmConfig]
    compare: list[str]
    reference: str
    seed: int
    steering: Steering
    lora: Lora
    llm_lora: Lora
    bridge: Bridge
    prompts: Prompts
    generation: Generation
    evaluation: Evaluation
    encoder: Encoder
    llm: Llm
    preprocessing: Preprocessing
    training: ProfileTraining

    def arm(self, name: str) -> ArmConfig:
        """The resolved configuration of an arm.

        Raises:
            ConfigError: there is no such arm.
        """
        if name not in self.arms:
            raise ConfigError([problem("arm", name, list(self.arms))])
        return self.arms[name]


def load(params: Path) -> Config:
    """Read params.yaml and, beside it, configs/<profile>.yaml.

    Raises:
        ConfigError: with every problem of both files, those of every arm included.
    """
    return _checked(params, _read(params))


def switch_profile(params: Path, profile: str) -> None:
    """Put another profile in force: sets `profile` and `corpora` in params.yaml, and keeps all else as it is.

    Raises:
        ConfigError: the configuration would not be valid; params.yaml is then left alone.
    """
    values = _read(params) | {"profile": profile}
    corpora = _read(_profile_file(params, values)).get("corpora")
    _rewrite(params, {"profile": profile, "corpora": list(corpora) if isinstance(corpora, dict) else []})


def put_in_force(params: Path, arms: list[str]) -> None:
    """Train and compare other arms: sets `compare` in params.yaml, and keeps all else as it is.

    Raises:
        ConfigError: the configuration would not be valid; params.yaml is then left alone.
    """
    _rewrite(params, {"compare": arms})


class _NullInWords(RoundTripRepresenter):
    """Writes `null` where ruamel would leave the place empty."""


_NullInWords.add_representer(
    type(None), lambda representer, _: representer.represent_scalar("tag:yaml.org,2002:null", "null")
)


def _rewrite(params: Path, changes: dict[str, Any]) -> None:
    _checked(params, _read(params) | changes)
    yaml = YAML()
    yaml.preserve_quotes, yaml.width, yaml.Representer = True, 4096, _NullInWords
    tree = yaml.load(params.read_text(encoding="utf-8"))
    for name, value in changes.items():
        if isinstance(value, list) and isinstance(tree.get(name), list):
            tree[name][:] = value  # in place: the comment hangs on the list
        else:
            tree[name] = value
    text = io.StringIO()
    yaml.dump(tree, text)
    whole = params.with_name(f".{params.name}.{os.getpid()}")
    with whole.open("w", encoding="utf-8") as file:
        file.write(text.getvalue())
        file.flush()
        os.fsync(file.fileno())
    whole.replace(params)


def _checked(params: Path, values: dict[str, Any]) -> Config:
    lines: list[str] = []
    tuned = _section(Params, values, str(params), lines)
    if not isinstance(values.get("profile"), str):
        raise ConfigError(lines)
    try:
        file = _profile_file(params, values)
        sizes = _read(file)
    except ConfigError as error:
        raise ConfigError([*lines, *error.lines]) from error
    profile = _section(Profile, sizes, str(file), lines)
    lines += _corpora_differ(params, values, sizes)
    arms = _arms(params, values, sizes, lines)
    if lines or tuned is None or profile is None:
        raise ConfigError(lines)
    given = profile.corpora.named()
    corpora = {name: given[name] for name in tuned.corpora}
    resolved = {name: arm_config(name, *arm, corpora) for name, arm in arms.items()}
    twins = _twins(params, {name: resolved[name] for name in tuned.compare})
    if twins:
        raise ConfigError(twins)
    shared = {name: getattr(tuned, name) for name in Params.model_fields if name not in ("corpora", "arms")}
    sized = {name: getattr(profile, name) for name in Profile.model_fields if name != "corpora"}
    return Config(corpora=corpora, arms=resolved, **shared, **sized)


def _read(file: Path) -> dict[str, Any]:
    yaml = YAML(typ="safe", pure=True)  # pure is YAML 1.2, where 1e-4 is a number
    try:
        values = yaml.load(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError([f"{file}: no such file"]) from None
    except MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise ConfigError([f"{file}: {line}not YAML: {error.problem or error.context}"]) from error
    if not isinstance(values, dict):
        raise ConfigError([problem(str(file), values, "keys with values")])
    strange = [problem(f"{file}: key", key, "text") for key in _keys(values) if not isinstance(key, str)]
    if strange:
        raise ConfigError(strange)
    return values


def _keys(tree: Any) -> Iterator[Any]:
    if isinstance(tree, dict):
        yield from tree
    for inner in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ():
        yield from _keys(inner)


def _profile_file(params: Path, values: dict[str, Any]) -> Path:
    folder = params.parent / "configs"
    names = sorted(file.stem for file in folder.glob("*.yaml"))
    if values.get("profile") not in names:
        raise ConfigError([problem(f"{params}: profile", values.get("profile"), names)])
    return folder / f"{values['profile']}.yaml"


def _section(kind: type[Model], values: dict[str, Any], file: str, lines: list[str]) -> Model | None:
    try:
        return kind.model_validate_json(json.dumps(values, default=str), context=values)
    except ValidationError as error:
        lines += [f"{file}: {path}{line}" for path, line in located(error, kind.model_json_schema())]
        return None


def _corpora_differ(params: Path, values: dict[str, Any], sizes: dict[str, Any]) -> list[str]:
    """DVC expands stages over the list in params.yaml (it cannot over a profile's keys): they must agree."""
    named, there = values.get("corpora"), sizes.get("corpora")
    if not isinstance(named, list) or not isinstance(there, dict) or named == list(there):
        return []
    legal = f"[{', '.join(map(str, there))}], those of configs/{values['profile']}.yaml in their order"
    return [f"{problem(f'{params}: corpora', named, legal)}; run `make profile PROFILE={values['profile']}`"]


def _arms(
    params: Path, values: dict[str, Any], sizes: dict[str, Any], lines: list[str]
) -> dict[str, tuple[Arm, Settings]]:
    """The arms whose rows are right, with their settings; the problems of their overrides are added."""
    both = values | sizes
    shared = {name: both[name] for name in Settings.model_fields if name in both}
    compare = values.get("compare")
    overrides = Overrides(shared, str(params), in_force=compare if isinstance(compare, list) else [])
    rows, arms = values.get("arms"), {}
    for name, row in rows.items() if isinstance(rows, dict) else ():
        try:
            arm = Arm.model_validate_json(json.dumps(row, default=str))
        except ValidationError:
            continue  # told already, as a problem of params.yaml
        settings = overrides.resolve(name, arm, lines)
        if settings is not None:
            arms[name] = (arm, settings)
    return arms


def _twins(params: Path, arms: dict[str, ArmConfig]) -> list[str]:
    """Arms in force that are the same but for the name: the second would be trained for nothing."""
    seen: dict[str, str] = {}
    lines = []
    for name, arm in arms.items():
        text = arm.model_copy(update={"name": ""}).to_json()
        if text in seen:
            lines.append(f"{params}: arms.{name}: the same as arms.{seen[text]}; legal: an arm that differs")
        seen.setdefault(text, name)
    return lines

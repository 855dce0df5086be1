"""Reads params.yaml and the profile it names, and checks both together."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError

from steermoe.config.corpora import Corpora, Corpus
from steermoe.config.language import Generation, Prompts
from steermoe.config.lock import Lock, lock_file, pinned, pinned_video, read_lock
from steermoe.config.method import Lora, Projector, Steering
from steermoe.config.params import Params
from steermoe.config.problems import ConfigError, located, problem, section_form
from steermoe.config.profile import OVERRIDDEN, Profile, overridden, unserved
from steermoe.config.sections import (
    Encoder,
    Evaluation,
    Llm,
    Preprocessing,
    ProfileTraining,
)
from steermoe.config.variants import Overrides, Settings, Variant, VariantConfig, variant_config
from steermoe.config.video import Video

Model = TypeVar("Model", bound=BaseModel)


@dataclass(frozen=True)
class Config:
    """The whole configuration, checked: params.yaml with the selected profile.

    Attributes:
        corpora: the settings of each corpus, in the order of params.yaml.
        variants: every variant that is possible, resolved; `compare` names those selected.
    """

    profile: str
    corpora: dict[str, Corpus]
    variants: dict[str, VariantConfig]
    compare: list[str]
    reference: str
    seed: int
    steering: Steering
    lora: Lora
    llm_lora: Lora
    projector: Projector
    prompts: Prompts
    generation: Generation
    evaluation: Evaluation
    encoder: Encoder
    video: Video | None
    llm: Llm
    preprocessing: Preprocessing
    training: ProfileTraining

    def variant(self, name: str) -> VariantConfig:
        """The resolved configuration of a variant.

        Raises:
            ConfigError: there is no such variant.
        """
        if name not in self.variants:
            raise ConfigError([problem("variant", name, list(self.variants))])
        return self.variants[name]


def load(params: Path) -> Config:
    """Read params.yaml and, beside it, configs/<profile>.yaml.

    Raises:
        ConfigError: with every problem of both files, those of every variant included.
    """
    return checked(params, read(params))


def checked(params: Path, values: dict[str, Any]) -> Config:
    """The configuration of `values`, read from params.yaml or changed since, with their profile.

    Raises:
        ConfigError: as `load`.
    """
    lines: list[str] = []
    file, sizes, unread = _profile(params, values)
    rows = _rows(values) | _rows(sizes)
    tuned = _section(Params, values, str(params), lines, values | {"variants": rows})
    if file is None:
        raise ConfigError([*lines, *unread])
    profile = _section(Profile, sizes, str(file), lines)
    lines += _corpora_differ(params, values, sizes)
    lines += [
        problem(f"{file}: variants", name, f"a name that {params} does not have in its variants")
        for name in _rows(values).keys() & _rows(sizes).keys()
    ]
    variants = _variants({params: _rows(values), file: _rows(sizes)}, values, sizes, lines)
    if lines or tuned is None or profile is None:
        raise ConfigError(lines)
    generation, evaluation = _overridden(file, values, profile, tuned, lines)
    given, lock = profile.corpora.named(), read_lock(lock_file(params, tuned.profile))
    corpora = {name: given[name] for name in tuned.corpora}
    resolved = {
        name: variant_config(name, variant, _pinned(settings, lock), corpora)
        for name, (variant, settings) in variants.items()
        if name in tuned.compare or not list(unserved(settings.selection, given))
    }
    selected = {name: resolved[name] for name in tuned.compare}
    lines += _unserved_variants(params, variants, selected, given, corpora)
    lines += _twins(params, selected)
    if lines:
        raise ConfigError(lines)
    own = ("corpora", "variants", *OVERRIDDEN)
    shared = {name: getattr(tuned, name) for name in Params.model_fields if name not in own}
    sized = {name: getattr(profile, name) for name in ("preprocessing", "training")}
    models = {name: pinned(getattr(profile, name), lock) for name in ("encoder", "llm")}
    models["video"] = pinned_video(profile.video, lock)
    return Config(
        corpora=corpora,
        variants=resolved,
        generation=generation,
        evaluation=evaluation,
        **shared,
        **sized,
        **models,
    )


def _pinned(settings: Settings, lock: Lock) -> Settings:
    models = {"encoder": pinned(settings.encoder, lock), "llm": pinned(settings.llm, lock)}
    return settings.model_copy(update=models | {"video": pinned_video(settings.video, lock)})


def _profile(params: Path, values: dict[str, Any]) -> tuple[Path | None, dict[str, Any], list[str]]:
    """The profile's file and values, or what is wrong with them, unless `profile` itself is no text."""
    if not isinstance(values.get("profile"), str):
        return None, {}, []
    try:
        file = profile_file(params, values)
        return file, read(file), []
    except ConfigError as error:
        return None, {}, error.lines


def _rows(values: Mapping[str, Any]) -> dict[str, Any]:
    rows = values.get("variants")
    return rows if isinstance(rows, dict) else {}


def _overridden(
    file: Path, values: dict[str, Any], profile: Profile, tuned: Params, lines: list[str]
) -> tuple[Generation, Evaluation]:
    """The sections that a profile may override, as it has them."""
    merged = overridden(values, profile.overrides, tuned.corpora)
    found = []
    for name, kind in OVERRIDDEN.items():
        try:
            found.append(kind.model_validate_json(json.dumps(merged[name], default=str), context=merged))
        except ValidationError as error:
            pairs = located(error, kind.model_json_schema())
            raise ConfigError([f"{file}: overrides.{name}.{path}{line}" for path, line in pairs]) from error
    generation, evaluation = found
    return generation, evaluation


def read(file: Path) -> dict[str, Any]:
    """The values of a file of YAML, whose keys are text.

    Raises:
        ConfigError: there is no such file, or it is something else.
    """
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


def profile_file(params: Path, values: dict[str, Any]) -> Path:
    """The file of the profile that `values` name.

    Raises:
        ConfigError: there is none.
    """
    folder = params.parent / "configs"
    names = sorted(file.stem for file in folder.glob("*.yaml"))
    if values.get("profile") not in names:
        raise ConfigError([problem(f"{params}: profile", values.get("profile"), names)])
    return folder / f"{values['profile']}.yaml"


def _section(
    kind: type[Model],
    values: dict[str, Any],
    file: str,
    lines: list[str],
    context: dict[str, Any] | None = None,
) -> Model | None:
    try:
        return kind.model_validate_json(json.dumps(values, default=str), context=context or values)
    except ValidationError as error:
        lines += [f"{file}: {path}{line}" for path, line in located(error, kind.model_json_schema())]
        return None


def _corpora_differ(params: Path, values: dict[str, Any], sizes: dict[str, Any]) -> list[str]:
    """DVC expands stages over the list in params.yaml (it cannot over a profile's keys): they must agree."""
    named, there = values.get("corpora"), sizes.get("corpora")
    if not isinstance(named, list) or not isinstance(there, dict):
        return []
    if named == [name for name in there if name in named]:
        return []
    anew = f"run `make profile PROFILE={values['profile']}`"
    schema = Corpora.model_json_schema()
    lacking = [name for name in Corpora.model_fields if name in named and name not in there]
    if lacking:
        return [
            f"configs/{values['profile']}.yaml: corpora: no section {name}, which {params}: corpora names; add "
            f"`{name}: {section_form(name, schema)}`"
            + (" (`python -m pipeline own` writes a profile for a folder)" if name == "folder" else "")
            + f", or take the name out: {anew}"
            for name in lacking
        ]
    legal = (
        f"[{', '.join(map(str, there))}], those of configs/{values['profile']}.yaml in their order, or some"
    )
    return [f"{problem(f'{params}: corpora', named, legal)}; {anew}"]


def _variants(
    rows: dict[Path, dict[str, Any]], values: dict[str, Any], sizes: dict[str, Any], lines: list[str]
) -> dict[str, tuple[Variant, Settings]]:
    """The variants whose rows are right, with their settings; the problems of their overrides are added.

    `rows` are those of each file that has variants.
    """
    both = values | sizes
    shared = {name: both[name] for name in Settings.model_fields if name in both}
    compare, variants = values.get("compare"), {}
    for file, table in rows.items():
        overrides = Overrides(shared, str(file), selected=compare if isinstance(compare, list) else [])
        for name, row in table.items():
            try:
                variant = Variant.model_validate_json(json.dumps(row, default=str))
            except ValidationError:
                continue  # told already, as a problem of its file
            settings = overrides.resolve(name, variant, lines)
            if settings is not None:
                variants[name] = (variant, settings)
    return variants


def _unserved_variants(
    params: Path,
    variants: dict[str, tuple[Variant, Settings]],
    selected: dict[str, VariantConfig],
    given: Mapping[str, Corpus],
    corpora: Mapping[str, Corpus],
) -> Iterator[str]:
    """What the selected variants are trained on or chosen by, but no corpus selected has."""
    for name, variant in selected.items():
        told = False
        for use, found, legal in unserved(variants[name][1].selection, given):
            told = True
            yield problem(f"{params}: compare: variant {name}: selection.{use}", found, legal)
        lacking = [corpus for corpus in needed([variant], given) if corpus not in corpora]
        if lacking and not told:
            yield (
                f"{params}: corpora: variant {name} needs {', '.join(lacking)}, not selected; add to the list, or run "
                "`python -m pipeline profile` with --compare, which does"
            )
        for use in ("train", "dev"):
            if not any(getattr(variant, f"{use}_splits").values()):
                yield f"{params}: corpora: none selected has a split in `{use}`, for variant {name}"
    if not any(corpus.test for corpus in corpora.values()):
        yield f"{params}: corpora: none selected has a split in `test`; put one selected"


def needed(variants: Iterable[VariantConfig], corpora: Iterable[str]) -> list[str]:
    """Those of the corpora that variants are trained on and chosen by."""
    named = {name for variant in variants for name in (*variant.train_splits, *variant.dev_splits)}
    return [name for name in corpora if name in named]


def _twins(params: Path, variants: dict[str, VariantConfig]) -> list[str]:
    """Variants selected that are the same but for the name: the second would be trained for nothing."""
    seen: dict[str, str] = {}
    lines = []
    for name, variant in variants.items():
        text = variant.model_copy(update={"name": ""}).to_json()
        if text in seen:
            lines.append(
                f"{params}: variants.{name}: the same as variants.{seen[text]}; legal: a variant that differs"
            )
        seen.setdefault(text, name)
    return lines

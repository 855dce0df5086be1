"""Read params.yaml and the profile that it names, and check both together."""

import copy
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError

from steermoe.config.corpora import Corpora, Corpus, SpokenQuestions
from steermoe.config.errors import ConfigError, located, nearest, one_of, problem
from steermoe.config.experiments import (
    Resolver,
    Settings,
    Shared,
    Sized,
    Variant,
    VariantConfig,
    VariantName,
    variant_config,
)
from steermoe.config.lock import Lock, lock_file, pinned, read_lock
from steermoe.config.run import Evaluation, Generation, Preprocessing, Selection
from steermoe.config.section import Section, SomeNames

Model = TypeVar("Model", bound=Section)
# Sections of params.yaml of which a profile may override values.
OVERRIDDEN = ("steering", "lora", "llm_lora", "projector", "prompts", "generation", "evaluation")


class Params(Shared):
    """params.yaml."""

    profile: str
    corpora: SomeNames
    compare: SomeNames
    reference: str
    generation: Generation
    evaluation: Evaluation
    variants: dict[VariantName, Variant]


class Profile(Sized):
    """A file in configs/: what differs by scale, and what of params.yaml it overrides."""

    corpora: Corpora
    preprocessing: Preprocessing
    overrides: dict[str, Any]
    variants: dict[VariantName, Variant]

    def _rules(self) -> Iterator[tuple[str, str] | tuple[str, str, Any]]:
        corpora = self.corpora.named()
        for use in ("train", "dev", "test"):
            if not any(getattr(corpus, use) for corpus in corpora.values()):
                yield "corpora", f"at least one corpus with a split in `{use}`", list(corpora)
        for use, found, allowed in unserved(self.selection, corpora):
            yield f"selection.{use}", ", ".join(allowed) or "null", found
        asked = corpora.get("spokenquestions")
        if isinstance(asked, SpokenQuestions) and asked.llm != self.llm:
            yield "corpora.spokenquestions.llm", "the LLM of the profile, as in `llm`", asked.llm.model_dump()
        for name in self.preprocessing.unreadable:
            if name not in corpora:
                yield "preprocessing.unreadable", one_of(list(corpora)) + nearest(name, list(corpora)), name
        sections = {name: cast(type[Section], Params.model_fields[name].annotation) for name in OVERRIDDEN}
        paths = [f"{name}.{key}" for name, section in sections.items() for key in section.model_fields]
        for path in self.overrides:
            if path not in paths:
                yield "overrides", one_of(paths) + nearest(path, paths), path


class Config(Settings):
    """The whole configuration, checked: params.yaml with the selected profile.

    Attributes:
        corpora: the settings of each selected corpus, in the order of params.yaml.
        variants: every variant that is possible, resolved; `compare` names the selected ones.
    """

    profile: str
    corpora: dict[str, Corpus]
    variants: dict[str, VariantConfig]
    compare: list[str]
    reference: str
    generation: Generation
    evaluation: Evaluation
    preprocessing: Preprocessing

    def variant(self, name: str) -> VariantConfig:
        """Return the resolved configuration of a variant.

        Raises:
            ConfigError: there is no such variant.
        """
        if name not in self.variants:
            raise ConfigError([problem("variant", name, list(self.variants))])
        return self.variants[name]


def load(params: Path) -> Config:
    """Read params.yaml and, next to it, configs/<profile>.yaml.

    Raises:
        ConfigError: with every problem of both files, those of all selected variants included.
    """
    return checked(params, read(params))


def checked(params: Path, values: dict[str, Any]) -> Config:
    """Return the configuration of `values`, read from params.yaml or changed since, with their profile.

    Raises:
        ConfigError: as `load`.
    """
    lines: list[str] = []
    tuned = _section(Params, values, f"{params}: ", lines)
    try:
        file = profile_file(params, values)
        sizes = read(file)
    except ConfigError as error:
        raise ConfigError(
            [*lines, *(error.lines if isinstance(values.get("profile"), str) else [])]
        ) from None
    profile = _section(Profile, sizes, f"{file}: ", lines)
    lines += _names_differ(params, file, values, sizes)
    overridden = _overridden(values, sizes.get("overrides"))
    if tuned is not None and profile is not None and profile.overrides:
        tuned = _section(Params, overridden, f"{file}: overrides.", lines)
    variants = _resolved({params: _rows(values), file: _rows(sizes)}, overridden, sizes, lines)
    if lines or tuned is None or profile is None:
        raise ConfigError(lines)
    given, lock = profile.corpora.named(), read_lock(lock_file(params, tuned.profile))
    corpora = {name: given[name] for name in tuned.corpora}
    resolved = {
        name: variant_config(
            name, variant, _pinned(settings, lock), corpora, tuned.evaluation, tuned.generation
        )
        for name, (variant, settings) in variants.items()
        if name in tuned.compare or not list(unserved(settings.selection, given))
    }
    selected = {name: resolved[name] for name in tuned.compare}
    for corpus in tuned.evaluation.normalizers:
        if corpus not in corpora:
            lines.append(problem("params.yaml: evaluation.normalizers", corpus, list(corpora)))
    lines += _unserved_variants(
        params, {name: variants[name][1] for name in selected}, selected, given, corpora
    )
    lines += _twins(params, selected)
    if lines:
        raise ConfigError(lines)
    shared = {
        name: getattr(tuned, name) for name in Params.model_fields if name not in ("corpora", "variants")
    }
    sized = {name: getattr(profile, name) for name in ("preprocessing", *Sized.model_fields)}
    config = Config(corpora=corpora, variants=resolved, **shared, **sized)
    return _pinned(config, lock)


Pinned = TypeVar("Pinned", bound=Settings)


def _pinned(settings: Pinned, lock: Lock) -> Pinned:
    """Return the settings with the locked commits of their frozen models."""
    video = settings.video
    return settings.model_copy(
        update={
            "encoder": pinned(settings.encoder, lock),
            "llm": pinned(settings.llm, lock),
            "video": video and video.model_copy(update={"encoder": pinned(video.encoder, lock)}),
        }
    )


def _rows(values: Mapping[str, Any]) -> dict[str, Any]:
    rows = values.get("variants")
    return rows if isinstance(rows, dict) else {}


def _section(kind: type[Model], values: Any, place: str, lines: list[str]) -> Model | None:
    try:
        return kind.model_validate_json(json.dumps(values, default=str))
    except ValidationError as error:
        lines += [f"{place}{path}{line}" for path, line in located(error, kind)]
        return None


def _overridden(values: dict[str, Any], overrides: Any) -> dict[str, Any]:
    """Return the values of params.yaml with a profile's overrides, as far as these are possible."""
    changed = copy.deepcopy(values)
    for path, value in overrides.items() if isinstance(overrides, dict) else ():
        section, _, key = str(path).partition(".")
        if path == "evaluation.normalizers" and isinstance(value, dict):
            selected = values.get(
                "corpora"
            )  # a profile may have normalisers for corpora that are not selected
            value = {corpus: name for corpus, name in value.items() if corpus in (selected or ())}
        if section in OVERRIDDEN and isinstance(changed.get(section), dict) and key in changed[section]:
            changed[section][key] = value
    return changed


def read(file: Path) -> dict[str, Any]:
    """Return the values of a YAML file whose keys are text.

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
    """Return the file of the profile that `values` name.

    Raises:
        ConfigError: there is none.
    """
    folder = params.parent / "configs"
    names = sorted(file.stem for file in folder.glob("*.yaml"))
    if values.get("profile") not in names:
        raise ConfigError([problem(f"{params}: profile", values.get("profile"), names)])
    return folder / f"{values['profile']}.yaml"


def _names_differ(params: Path, file: Path, values: dict[str, Any], sizes: dict[str, Any]) -> Iterator[str]:
    """Yield the names of corpora and variants on which the two files do not agree.

    DVC expands stages over the corpora in params.yaml (it cannot over a profile's keys), so they must agree.
    """
    rows, own = _rows(values), _rows(sizes)
    for name in rows.keys() & own.keys():
        yield problem(f"{file}: variants", name, f"a name that {params} does not have in its variants")
    compare, reference = values.get("compare"), values.get("reference")
    if isinstance(compare, list):
        for name in compare:
            if isinstance(name, str) and name not in rows | own:
                yield problem(f"{params}: compare", name, list(rows | own))
        if reference not in compare:
            yield problem(
                f"{params}: reference", reference, [name for name in compare if isinstance(name, str)]
            )
    named, there = values.get("corpora"), sizes.get("corpora")
    if (
        not isinstance(named, list)
        or not isinstance(there, dict)
        or named == [name for name in there if name in named]
    ):
        return
    repair = f"run `make profile PROFILE={values['profile']}`"
    lacking = [name for name in Corpora.model_fields if name in named and name not in there]
    for name in lacking:
        hint = " (`python -m pipeline own` writes a profile for a folder)" if name == "folder" else ""
        keys = ", ".join(Corpora.model_fields[name].annotation.model_fields)  # type: ignore[union-attr]
        yield (
            f"{file}: corpora: no section {name}, which {params}: corpora names; add it with the keys {keys}{hint}, "
            f"or take the name out: {repair}"
        )
    if not lacking:
        allowed = f"[{', '.join(map(str, there))}], those of {file} in their order, or some of them"
        yield f"{problem(f'{params}: corpora', named, allowed)}; {repair}"


def _resolved(
    rows: dict[Path, dict[str, Any]], values: dict[str, Any], sizes: dict[str, Any], lines: list[str]
) -> dict[str, tuple[Variant, Settings]]:
    """Return the variants whose rows are right, with their settings; add the problems of their overrides."""
    both = values | sizes
    compare, variants = values.get("compare"), {}
    resolver = Resolver(
        {name: both[name] for name in Settings.model_fields if name in both},
        compare if isinstance(compare, list) else [],
    )
    for file, table in rows.items():
        for name, row in table.items():
            try:
                variant = Variant.model_validate_json(json.dumps(row, default=str))
            except ValidationError:
                continue  # reported already, as a problem of its file
            settings = resolver.resolve(str(file), name, variant, lines)
            if settings is not None:
                variants[name] = (variant, settings)
    return variants


def unserved(selection: Selection, corpora: Mapping[str, Corpus]) -> Iterator[tuple[str, str, list[str]]]:
    """Yield what a selection names although the corpora do not: use, what was found, what is allowed."""
    for use in ("train", "dev"):
        for corpus, splits in (getattr(selection, use) or {}).items():
            if corpus not in corpora:
                yield use, corpus, [name for name, section in corpora.items() if getattr(section, use)]
            else:
                allowed = getattr(corpora[corpus], use)
                yield from ((use, f"{corpus}: {split}", allowed) for split in splits if split not in allowed)


def _unserved_variants(
    params: Path,
    settings: Mapping[str, Settings],
    selected: Mapping[str, VariantConfig],
    given: Mapping[str, Corpus],
    corpora: Mapping[str, Corpus],
) -> Iterator[str]:
    """Yield what the selected variants are trained on or chosen by although no selected corpus has it."""
    for name, variant in selected.items():
        missing = list(unserved(settings[name].selection, given))
        for use, found, allowed in missing:
            yield problem(f"{params}: compare: variant {name}: selection.{use}", found, allowed)
        lacking = [corpus for corpus in needed([variant], given) if corpus not in corpora]
        if lacking and not missing:
            yield (
                f"{params}: corpora: variant {name} needs {', '.join(lacking)}, which is not selected; add it to the "
                "list, or run `python -m pipeline profile` with --compare, which does"
            )
        for use in ("train", "dev"):
            if not any(getattr(variant, f"{use}_splits").values()):
                yield f"{params}: corpora: none of them has a split in `{use}`, which variant {name} needs"
    if not any(corpus.test for corpus in corpora.values()):
        yield f"{params}: corpora: none of them has a split in `test`; select one that has"


def needed(variants: Iterable[VariantConfig], corpora: Iterable[str]) -> list[str]:
    """Return those of the corpora that variants are trained on or chosen by."""
    named = {name for variant in variants for name in (*variant.train_splits, *variant.dev_splits)}
    return [name for name in corpora if name in named]


def _twins(params: Path, variants: Mapping[str, VariantConfig]) -> Iterator[str]:
    """Yield selected variants that differ in nothing but the name: the second would be trained for nothing."""
    seen: dict[str, str] = {}
    for name, variant in variants.items():
        text = variant.model_copy(update={"name": ""}).to_json()
        if text in seen:
            yield f"{params}: variants.{name}: the same as variants.{seen[text]}; change or deselect one of them"
        seen.setdefault(text, name)

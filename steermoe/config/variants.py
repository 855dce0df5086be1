"""The variants: variants, each a method and what it overrides, resolved into a self-contained configuration."""

import copy
import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Annotated, Any, Self, cast, get_args

from pydantic import AfterValidator, BaseModel, ValidationError, ValidationInfo, field_validator

from steermoe.config.corpora import Corpus
from steermoe.config.language import Prompts
from steermoe.config.method import Lora, Projector, Steering
from steermoe.config.problems import ConfigError, illegal, located, nearest, one_of, problem
from steermoe.config.sections import (
    Encoder,
    LearningRates,
    Llm,
    Method,
    ProfileTraining,
    Section,
    Seed,
    Selection,
    Training,
)
from steermoe.config.video import Video

METHODS = get_args(Method)
TAKEN = ("baseline",)  # folder of what needs no training, beside those of the variants


def _names_folders(name: str) -> str:
    if name in TAKEN or not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", name):
        raise illegal("a name of lower-case letters, digits, - and _, but not " + ", ".join(TAKEN))
    return name


VariantName = Annotated[str, AfterValidator(_names_folders)]


class Variant(Section):
    """A row of `variants`."""

    method: Method
    overrides: dict[str, Any]


class Settings(Section):
    """All that a variant may override."""

    seed: Seed
    steering: Steering
    lora: Lora
    llm_lora: Lora
    projector: Projector
    prompts: Prompts
    encoder: Encoder
    video: Video | None
    llm: Llm
    selection: Selection
    training: ProfileTraining


class VariantConfig(Section):
    """All that the training of one variant depends on; it lies in a checkpoint as config.json."""

    name: str
    method: Method
    seed: Seed
    steering: Steering | None
    lora: Lora | None
    llm_lora: Lora | None
    projector: Projector
    prompts: Prompts
    encoder: Encoder
    video: Video | None
    llm: Llm
    training: Training
    train_splits: dict[str, list[str]]
    dev_splits: dict[str, list[str]]

    @field_validator("steering", "lora", "llm_lora")
    @classmethod
    def _of_the_method(cls, section: Section | None, info: ValidationInfo) -> Section | None:
        method = info.data.get("method")
        if method and (section is not None) != (info.field_name in method.split("+")):
            needed = "a section" if section is None else "null"
            raise illegal(f"{needed}, as the method is {method}")
        return section

    @field_validator("video")
    @classmethod
    def _steered_by_the_method(cls, video: Video | None, info: ValidationInfo) -> Video | None:
        method = info.data.get("method", "steering")
        if video is not None and video.steering is not None and "steering" not in method.split("+"):
            raise illegal(f"null, as the method is {method}", found={"steering": video.steering})
        return video

    @field_validator("training")
    @classmethod
    def _rates_of_the_method(cls, training: Training, info: ValidationInfo) -> Training:
        parts = parts_of(info.data["method"]) if "method" in info.data else training.learning_rates
        if set(training.learning_rates) != set(parts):
            raise illegal(f"learning_rates of {', '.join(parts)}", found=training.learning_rates)
        return training

    def to_json(self) -> str:
        """The whole configuration as text: equal configurations give equal text."""
        return self.model_dump_json(indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The configuration that `to_json` wrote.

        Raises:
            ConfigError: the text is no such configuration.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            pairs = located(error, cls.model_json_schema())
            raise ConfigError([f"variant's configuration: {path}{line}" for path, line in pairs]) from error


def parts_of(method: str) -> dict[str, str]:
    """The parts that a method trains, and the ingredient of the method that has each part's learning rate."""
    parts: dict[str, str] = {}
    for ingredient in method.split("+"):
        rates = cast(type[BaseModel], LearningRates.model_fields[ingredient].annotation)
        parts |= {part: ingredient for part in rates.model_fields if part not in parts}
    return parts


class Overrides:
    """Resolves variants against the settings that all share.

    Args:
        shared: the values of `Settings` as they stand in the files, right or wrong.
        file: the file that has the variants, for messages.
        selected: variants whose values must be legal, and in which an override must change something. A row that
            nobody trains need not: after `dvc exp run -S steering.num_experts=16` the row that overrides just
            that changes nothing, and after `...=2` a row of two groups is impossible.
    """

    def __init__(self, shared: Mapping[str, Any], file: str, selected: Collection[str]) -> None:
        self.shared, self.file, self.selected = dict(shared), file, selected
        self.schema = Settings.model_json_schema()
        self.base, self.known = self._validated(self.shared)

    def resolve(self, name: str, variant: Variant, lines: list[str]) -> Settings | None:
        """The settings of a variant; its own problems are added to `lines`, not those of the shared settings."""
        legal = leaves(variant.method)
        merged, before = copy.deepcopy(self.shared), len(lines)
        for path, value in variant.overrides.items():
            if path not in legal:
                lines.append(self._illegal_path(name, variant.method, path, legal))
            elif not _put(merged, path.split("."), value):
                return None  # the section is missing or no section: a problem of the shared settings
        settings, found = self._validated(merged)
        for path, line in found if name in self.selected else ():
            if _overrider(path, variant.overrides):
                lines.append(f"{self._place(name, path)}{line}")
            elif (path, line) not in self.known:
                lines.append(f"{self.file}: variants.{name}.overrides, leading to {path}{line}")
        if len(lines) == before and settings and self.base and name in self.selected:
            lines += self._without_effect(name, variant, settings)
        return settings if len(lines) == before else None  # None, too, where a row out of force is impossible

    def _validated(self, values: dict[str, Any]) -> tuple[Settings | None, list[tuple[str, str]]]:
        try:
            return Settings.model_validate_json(json.dumps(values, default=str)), []
        except ValidationError as error:
            return None, located(error, self.schema)

    def _without_effect(self, name: str, variant: Variant, settings: Settings) -> Iterator[str]:
        assert self.base is not None
        for path, value in variant.overrides.items():
            if _get(settings, path) == _get(self.base, path):
                yield problem(self._place(name, path), value, "a value that differs from the shared one")

    def _illegal_path(self, name: str, method: str, path: str, legal: list[str]) -> str:
        place = f"{self.file}: variants.{name}.overrides.{path}"
        for other in METHODS:
            if path in leaves(other):
                return f"{place}: of method {other}, without effect on {method}; legal: {_sections(legal)}"
        head = path.partition(".")[0]
        siblings = [known for known in legal if known.partition(".")[0] == head]
        words = one_of(siblings) if siblings else _sections(legal)
        return f"{place}: no such value; legal: {words}{nearest(path, legal)}"

    def _place(self, name: str, path: str) -> str:
        return f"{self.file}: variants.{name}.overrides.{_owner(path)}"


def variant_config(
    name: str, variant: Variant, settings: Settings, corpora: Mapping[str, Corpus]
) -> VariantConfig:
    """The self-contained configuration of a variant: only the sections that its method reads.

    `corpora` are those selected; where the variant selects splits, they may lack a corpus of it.
    """
    values = settings.model_dump(exclude={"selection"})
    rates, ingredients = values["training"]["learning_rates"], variant.method.split("+")
    del values["training"]["distributed"]  # where a variant is trained is no part of it
    values["training"]["learning_rates"] = {
        part: rates[ingredient][part] for part, ingredient in parts_of(variant.method).items()
    }
    values |= {section: None for section in ("steering", "lora", "llm_lora") if section not in ingredients}
    if values["video"] is not None and "steering" not in ingredients:
        values["video"]["steering"] = None
    return VariantConfig(
        name=name,
        method=variant.method,
        train_splits=_splits(settings.selection.train, corpora, "train"),
        dev_splits=_splits(settings.selection.dev, corpora, "dev"),
        **values,
    )


def _splits(
    selected: dict[str, list[str]] | None, corpora: Mapping[str, Corpus], use: str
) -> dict[str, list[str]]:
    if selected is None:
        return {corpus: getattr(section, use) for corpus, section in corpora.items()}
    return {corpus: list(splits) for corpus, splits in selected.items()}


def leaves(method: str) -> list[str]:
    """The dotted paths of the single values of the settings, as far as they concern a method."""
    ingredients, parts = method.split("+"), parts_of(method)
    legal = []
    for path in _paths(Settings):
        match path.split("."):
            case ["steering" | "lora" | "llm_lora" as section, _]:
                concerns = section in ingredients
            case ["training", "learning_rates", ingredient, part]:
                concerns = parts.get(part) == ingredient
            case ["training", "distributed", _]:
                concerns = False
            case ["training", "steering_max_grad_norm"]:
                concerns = "steering" in ingredients
            case _:
                concerns = True
        if concerns:
            legal.append(path)
    return legal


def _paths(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        path, kind = f"{prefix}{name}", field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from _paths(kind, f"{path}.")
        else:
            yield path


def _sections(paths: Iterable[str]) -> str:
    """What the paths start with: `seed, lora.*, projector.*`."""
    heads = [f"{head}.*" if rest else head for head, _, rest in (path.partition(".") for path in paths)]
    return one_of(list(dict.fromkeys(heads)))


def _owner(path: str) -> str:
    """The value that a place belongs to: `lora.targets` of `lora.targets[2]`."""
    return path.partition("[")[0]


def _overrider(path: str, overrides: Mapping[str, Any]) -> bool:
    """Whether a place is one of an override's: its own, an item of its list, a key of its section."""
    return any(path == own or path.startswith((f"{own}[", f"{own}.")) for own in overrides)


def _put(tree: Any, steps: list[str], value: Any) -> bool:
    for step in steps[:-1]:
        tree = tree.get(step) if isinstance(tree, dict) else None
    if isinstance(tree, dict):
        tree[steps[-1]] = value
    return isinstance(tree, dict)


def _get(section: Any, path: str) -> Any:
    for step in path.split("."):
        section = getattr(section, step)
    return section

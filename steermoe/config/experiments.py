"""Variants: a method and the values that it overrides, resolved into a self-contained configuration."""

import copy
import json
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Self, cast, get_args

from pydantic import AfterValidator, BaseModel, ValidationError, model_validator

from steermoe.config.corpora import Corpus
from steermoe.config.errors import (
    RENAMED,
    ConfigError,
    illegal,
    located,
    nearest,
    one_of,
    problem,
)
from steermoe.config.model import Encoder, Llm, Lora, Projector, Prompts, Steering, Video
from steermoe.config.run import (
    Evaluation,
    Generation,
    LearningRates,
    Method,
    ProfileTraining,
    Selection,
    Training,
)
from steermoe.config.section import Section, Seed

METHODS = get_args(Method)
# Keys of `training` that older adapters lack, with what held for them.
ADDED = {"criterion": "loss", "wer_rows": None, "wer_normalizers": {}, "wer_ctc_weight": 0.0, "ctc": None}
ADDED_TO_CTC = {"spelling": False, "num_sampled": None}
TAKEN = ("baseline",)  # folder of what needs no training, next to those of the variants


def _names_a_folder(name: str) -> str:
    if name in TAKEN or not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", name):
        raise illegal("a name of lower-case letters, digits, - and _, but not " + ", ".join(TAKEN))
    return name


VariantName = Annotated[str, AfterValidator(_names_a_folder)]


class Variant(Section):
    """A row of `variants`."""

    method: Method
    overrides: dict[str, Any]


class Shared(Section):
    """What params.yaml says about all variants."""

    seed: Seed
    steering: Steering
    lora: Lora
    llm_lora: Lora
    projector: Projector
    prompts: Prompts


class Sized(Section):
    """What a profile says about all variants."""

    encoder: Encoder
    video: Video | None
    llm: Llm
    selection: Selection
    training: ProfileTraining


class Settings(Sized, Shared):
    """All values that a variant may override."""


class VariantConfig(Section):
    """Everything that the training of one variant depends on; a trained adapter has it as config.json."""

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

    @model_validator(mode="before")
    @classmethod
    def _of_an_older_version(cls, values: Any) -> Any:
        if isinstance(values, dict) and isinstance(values.get("training"), dict):
            training = ADDED | values["training"]
            if isinstance(training["ctc"], dict):
                training["ctc"] = ADDED_TO_CTC | training["ctc"]
            return values | {"training": training}
        return values

    def _rules(self) -> Iterator[tuple[str, str] | tuple[str, str, Any]]:
        ingredients = self.method.split("+")
        for key in ("steering", "lora", "llm_lora"):
            section = getattr(self, key)
            if (section is not None) != (key in ingredients):
                yield key, f"{'a section' if section is None else 'null'}, as the method is {self.method}"
        if self.video is not None and self.video.steering is not None and "steering" not in ingredients:
            yield "video", f"null, as the method is {self.method}", {"steering": self.video.steering}
        rates, parts = self.training.learning_rates, parts_of(self.method)
        if set(rates) != set(parts):
            yield "training", f"learning_rates of {', '.join(parts)}", rates

    def to_json(self) -> str:
        """Return the whole configuration as text: equal configurations give equal text."""
        return self.model_dump_json(indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read the configuration that `to_json` wrote.

        Raises:
            ConfigError: the text is no such configuration.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise ConfigError(
                [f"variant's configuration: {path}{line}" for path, line in located(error, cls)]
            ) from error


def parts_of(method: str) -> dict[str, str]:
    """Return the parts that a method trains, each with the ingredient that has its learning rate."""
    parts: dict[str, str] = {}
    for ingredient in method.split("+"):
        rates = cast(type[BaseModel], LearningRates.model_fields[ingredient].annotation)
        parts |= {part: ingredient for part in rates.model_fields if part not in parts}
    return parts


class Resolver:
    """Resolves variants against the settings that all share.

    Args:
        shared: the values of `Settings` as they stand in the files, right or wrong.
        selected: variants whose values must be valid, and whose overrides must change something. A variant that is
            not trained need not: after `dvc exp run -S steering.num_experts=16` the row that overrides just that
            changes nothing, and after `...=2` a row with two groups is impossible.
    """

    def __init__(self, shared: Mapping[str, Any], selected: list[str]) -> None:
        self.shared, self.selected = dict(shared), selected
        self.base, self.known = _validated(self.shared)

    def resolve(self, file: str, name: str, variant: Variant, lines: list[str]) -> Settings | None:
        """Return the settings of a variant; add its own problems to `lines`, not those of the shared settings."""
        place = f"{file}: variants.{name}.overrides"
        allowed, merged, wrong = leaves(variant.method), copy.deepcopy(self.shared), []
        for path, value in variant.overrides.items():
            if path not in allowed:
                wrong.append(f"{place}.{path}{_no_such_value(variant.method, path, allowed)}")
            elif not _put(merged, path.split("."), value):
                return (
                    None  # the section is missing or is no section, which is a problem of the shared settings
                )
        settings, found = _validated(merged)
        for path, line in found if name in self.selected else ():
            if any(path == own or path.startswith((f"{own}[", f"{own}.")) for own in variant.overrides):
                wrong.append(f"{place}.{path.partition('[')[0]}{line}")
            elif (path, line) not in self.known:
                wrong.append(f"{place}, leading to {path}{line}")
        if not wrong and settings and self.base and name in self.selected:
            for path, value in variant.overrides.items():
                if _get(settings, path) == _get(self.base, path):
                    wrong.append(
                        problem(f"{place}.{path}", value, "a value that differs from the shared one")
                    )
        lines += wrong
        return None if wrong else settings


def _validated(values: dict[str, Any]) -> tuple[Settings | None, list[tuple[str, str]]]:
    try:
        return Settings.model_validate_json(json.dumps(values, default=str)), []
    except ValidationError as error:
        return None, located(error, Settings)


def _no_such_value(method: str, path: str, allowed: list[str]) -> str:
    for other in METHODS:
        if path in leaves(other):
            return f": of method {other}, without effect on {method}; allowed: {_heads(allowed)}"
    renamed = ".".join(RENAMED.get(step, step) for step in path.split("."))
    if renamed in allowed:
        return f": renamed; the key is now {renamed}"
    siblings = [known for known in allowed if known.partition(".")[0] == path.partition(".")[0]]
    return f": no such value; allowed: {one_of(siblings) if siblings else _heads(allowed)}{nearest(path, allowed)}"


def variant_config(
    name: str,
    variant: Variant,
    settings: Settings,
    corpora: Mapping[str, Corpus],
    evaluation: Evaluation,
    generation: Generation,
) -> VariantConfig:
    """Return the self-contained configuration of a variant, with the sections that its method reads.

    `corpora` are the selected ones. A variant with a `selection` of its own may name others.
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
    splits = {}
    for use in ("train", "dev"):
        chosen = getattr(settings.selection, use)
        if chosen is None:
            chosen = {corpus: getattr(section, use) for corpus, section in corpora.items()}
        splits[f"{use}_splits"] = chosen
    values["training"]["wer_normalizers"] = {
        corpus: evaluation.of(corpus).normalizer
        for corpus, names in splits["dev_splits"].items()
        if settings.training.criterion == "wer" and names
    }
    scored = settings.training.criterion == "wer" and settings.training.ctc is not None
    values["training"]["wer_ctc_weight"] = generation.ctc_weight if scored else 0.0
    return VariantConfig(name=name, method=variant.method, **splits, **values)


def leaves(method: str) -> list[str]:
    """Return the dotted paths of the single values of the settings that concern a method."""
    ingredients, parts = method.split("+"), parts_of(method)
    found = []
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
            found.append(path)
    return found


def _paths(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        path, kind = f"{prefix}{name}", field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from _paths(kind, f"{path}.")
        else:
            yield path


def _heads(paths: list[str]) -> str:
    """Return what the paths start with: `seed, lora.*, projector.*`."""
    heads = [f"{head}.*" if rest else head for head, _, rest in (path.partition(".") for path in paths)]
    return one_of(list(dict.fromkeys(heads)))


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

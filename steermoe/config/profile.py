"""A profile in configs/: what differs by scale, and what of params.yaml it has differently."""

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import ValidationInfo, field_validator

from steermoe.config.corpora import Corpora, Corpus
from steermoe.config.language import Generation
from steermoe.config.problems import illegal
from steermoe.config.sections import (
    Encoder,
    Evaluation,
    Llm,
    Preprocessing,
    ProfileTraining,
    Section,
    Selection,
)
from steermoe.config.variants import Variant, VariantName
from steermoe.config.video import Video

USES = ("train", "dev", "test")
OVERRIDDEN = {"generation": Generation, "evaluation": Evaluation}  # sections that a profile may override


class Profile(Section):
    """A file in configs/."""

    encoder: Encoder
    video: Video | None
    llm: Llm
    corpora: Corpora
    selection: Selection
    preprocessing: Preprocessing
    training: ProfileTraining
    overrides: dict[str, Any]
    variants: dict[VariantName, Variant]

    @field_validator("corpora")
    @classmethod
    def _serve_every_use(cls, corpora: Corpora) -> Corpora:
        for use in USES:
            if not any(getattr(corpus, use) for corpus in corpora.named().values()):
                raise illegal(f"at least one corpus with a split in `{use}`", found=list(corpora.named()))
        return corpora

    @field_validator("selection")
    @classmethod
    def _selects_what_there_is(cls, section: Selection, info: ValidationInfo) -> Selection:
        for use, found, legal in unserved(
            section, info.data["corpora"].named() if "corpora" in info.data else None
        ):
            raise illegal(legal, found={use: found})
        return section

    @field_validator("preprocessing")
    @classmethod
    def _names_its_corpora(cls, section: Preprocessing, info: ValidationInfo) -> Preprocessing:
        corpora = info.data["corpora"].named() if "corpora" in info.data else section.unreadable
        for name in section.unreadable:
            if name not in corpora:
                raise illegal(corpora, found={"unreadable": name})
        return section

    @field_validator("overrides")
    @classmethod
    def _of_what_may_be_overridden(cls, overrides: dict[str, Any]) -> dict[str, Any]:
        legal = [f"{name}.{key}" for name, section in OVERRIDDEN.items() for key in section.model_fields]
        for path in overrides:
            if path not in legal:
                raise illegal(legal, found=path)
        return overrides


def unserved(
    selection: Selection, corpora: Mapping[str, Corpus] | None
) -> Iterator[tuple[str, str, list[str]]]:
    """What a selection names, but the corpora do not: use, what was found, what is legal."""
    for use in ("train", "dev"):
        for corpus, splits in (getattr(selection, use) or {}).items():
            if corpora is None:
                continue
            if corpus not in corpora:
                yield use, corpus, [name for name, section in corpora.items() if getattr(section, use)]
            else:
                legal = getattr(corpora[corpus], use)
                yield from ((use, f"{corpus}: {split}", legal) for split in splits if split not in legal)


def overridden(
    values: Mapping[str, Any], overrides: Mapping[str, Any], selected: list[str]
) -> dict[str, Any]:
    """The values of params.yaml as a profile has them; normalisers only of the selected corpora."""
    merged = {name: dict(value) if isinstance(value, dict) else value for name, value in values.items()}
    for path, value in overrides.items():
        section, key = path.split(".", 1)
        if path == "evaluation.normalizers" and isinstance(value, dict):
            value = {corpus: name for corpus, name in value.items() if corpus in selected}
        if isinstance(merged.get(section), dict):
            merged[section][key] = value
    return merged

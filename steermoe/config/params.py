"""The schema of params.yaml."""

from typing import Any

from pydantic import ValidationInfo, field_validator

from steermoe.config.language import Generation, Prompts
from steermoe.config.method import Lora, Projector, Steering
from steermoe.config.problems import illegal
from steermoe.config.sections import Evaluation, Section, Seed, SomeNames
from steermoe.config.variants import Variant, VariantName


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
    projector: Projector
    prompts: Prompts
    generation: Generation
    evaluation: Evaluation
    variants: dict[VariantName, Variant]

    @field_validator("compare")
    @classmethod
    def _are_variants(cls, names: list[str], info: ValidationInfo) -> list[str]:
        variants = _there(info, "variants", dict)
        for name in names:
            if name not in variants:
                raise illegal(variants, found=name)
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

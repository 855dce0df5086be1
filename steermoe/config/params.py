"""The schema of params.yaml."""

from typing import Any

from pydantic import ValidationInfo, field_validator

from steermoe.config.arms import Arm, ArmName
from steermoe.config.language import Generation, Prompts
from steermoe.config.method import Bridge, Lora, Steering
from steermoe.config.problems import illegal
from steermoe.config.sections import Evaluation, Section, Seed, SomeNames


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

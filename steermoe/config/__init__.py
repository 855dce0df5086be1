"""The configuration: the only schema of params.yaml and of the profiles in configs/.

Every value is required and no default stands in code: DVC sees all that matters. `load` tells every problem
of both files at once. A component takes its own section, whole.
"""

from steermoe.config.arms import ArmConfig
from steermoe.config.language import Generation, Prompts
from steermoe.config.loading import Config, load, put_in_force, switch_profile
from steermoe.config.method import Bridge, Lora, Steering
from steermoe.config.problems import ConfigError
from steermoe.config.sections import (
    Digits,
    Encoder,
    Evaluation,
    Llm,
    Synthetic,
    Training,
)

__all__ = [
    "ArmConfig",
    "Bridge",
    "Config",
    "ConfigError",
    "Digits",
    "Encoder",
    "Evaluation",
    "Generation",
    "Llm",
    "Lora",
    "Prompts",
    "Steering",
    "Synthetic",
    "Training",
    "load",
    "put_in_force",
    "switch_profile",
]

"""The configuration: the schema of params.yaml and of the profiles in configs/.

Every value is required and no default is in code, so DVC sees everything that matters. `load` reports all problems of
both files together. A component takes its own section.
"""

from steermoe.config.corpora import Corpus
from steermoe.config.edit import preview, switch_profile
from steermoe.config.errors import ConfigError
from steermoe.config.experiments import VariantConfig
from steermoe.config.load import Config, load
from steermoe.config.lock import Locked, lock_file, lock_text, read_lock
from steermoe.config.model import Encoder, Llm, Lora, Projector, Prompts, Steering, Video, VideoEncoder
from steermoe.config.run import Distillation, Distributed, Evaluation, Generation, Training
from steermoe.config.section import BASE_MODELS, PACKAGE, of_the_hub

__all__ = [
    "BASE_MODELS",
    "PACKAGE",
    "Config",
    "ConfigError",
    "Corpus",
    "Distillation",
    "Distributed",
    "Encoder",
    "Evaluation",
    "Generation",
    "Llm",
    "Locked",
    "Lora",
    "Projector",
    "Prompts",
    "Steering",
    "Training",
    "VariantConfig",
    "Video",
    "VideoEncoder",
    "load",
    "lock_file",
    "lock_text",
    "of_the_hub",
    "preview",
    "read_lock",
    "switch_profile",
]

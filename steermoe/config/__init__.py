"""The configuration: the schema of params.yaml and of the profiles in configs/.

Every value is required and no default is in code, so DVC sees everything that matters. `load` reports all problems of
both files together. A component takes its own section.
"""

from steermoe.config.corpora import (
    LANGUAGE_TAG,
    Aishell1,
    Aishell2,
    Archived,
    Clotho,
    ClothoAqa,
    Corpora,
    Corpus,
    Digits,
    Fleurs,
    Folder,
    LibriSpeech,
    Limited,
    MiniLibriSpeech,
    Mls,
    Mmau,
    MmauPro,
    Neural,
    OpenAudioBench,
    Remote,
    Shapes,
    SpokenQuestions,
    Synthetic,
    TelephonePrompts,
)
from steermoe.config.edit import preview, select, switch_profile
from steermoe.config.errors import ConfigError
from steermoe.config.experiments import VariantConfig
from steermoe.config.load import Config, load
from steermoe.config.lock import Locked, lock_file, lock_text, read_lock
from steermoe.config.model import Encoder, Llm, Lora, Projector, Prompts, Steering, Video, VideoEncoder
from steermoe.config.run import Distillation, Distributed, Evaluation, Generation, Training
from steermoe.config.section import BASE_MODELS, PACKAGE, of_the_hub

__all__ = [
    "BASE_MODELS",
    "LANGUAGE_TAG",
    "PACKAGE",
    "Aishell1",
    "Aishell2",
    "Archived",
    "Clotho",
    "ClothoAqa",
    "Config",
    "ConfigError",
    "Corpora",
    "Corpus",
    "Digits",
    "Distillation",
    "Distributed",
    "Encoder",
    "Evaluation",
    "Fleurs",
    "Folder",
    "Generation",
    "LibriSpeech",
    "Limited",
    "Llm",
    "Locked",
    "Lora",
    "MiniLibriSpeech",
    "Mls",
    "Mmau",
    "MmauPro",
    "Neural",
    "OpenAudioBench",
    "Projector",
    "Prompts",
    "Remote",
    "Shapes",
    "SpokenQuestions",
    "Steering",
    "Synthetic",
    "TelephonePrompts",
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
    "select",
    "switch_profile",
]

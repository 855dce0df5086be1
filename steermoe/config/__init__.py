"""The configuration: the only schema of params.yaml and of the profiles in configs/.

Every value is required and no default stands in code: DVC sees all that matters. `load` tells every problem
of both files at once. A component takes its own section, whole.
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
    OpenAudioBench,
    Remote,
    Shapes,
    Synthetic,
)
from steermoe.config.language import Generation, Prompts
from steermoe.config.loading import Config, load
from steermoe.config.lock import Locked, lock_file, lock_text, read_lock
from steermoe.config.method import Lora, Projector, Steering
from steermoe.config.problems import ConfigError
from steermoe.config.sections import (
    Distillation,
    Distributed,
    Encoder,
    Evaluation,
    Llm,
    Training,
    of_the_hub,
)
from steermoe.config.switching import preview, select, switch_profile
from steermoe.config.variants import VariantConfig
from steermoe.config.video import Video, VideoEncoder

__all__ = [
    "LANGUAGE_TAG",
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
    "OpenAudioBench",
    "Projector",
    "Prompts",
    "Remote",
    "Shapes",
    "Steering",
    "Synthetic",
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

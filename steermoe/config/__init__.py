"""The configuration: the only schema of params.yaml and of the profiles in configs/.

Every value is required and no default stands in code: DVC sees all that matters. `load` tells every problem
of both files at once. A component takes its own section, whole.
"""

from steermoe.config.arms import ArmConfig
from steermoe.config.corpora import (
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
    Synthetic,
)
from steermoe.config.language import Generation, Prompts
from steermoe.config.loading import Config, load, put_in_force, switch_profile
from steermoe.config.method import Bridge, Lora, Steering
from steermoe.config.problems import ConfigError
from steermoe.config.sections import (
    Distributed,
    Encoder,
    Evaluation,
    Llm,
    Training,
)

__all__ = [
    "Aishell1",
    "Aishell2",
    "Archived",
    "ArmConfig",
    "Bridge",
    "Clotho",
    "ClothoAqa",
    "Config",
    "ConfigError",
    "Corpora",
    "Corpus",
    "Digits",
    "Distributed",
    "Encoder",
    "Evaluation",
    "Fleurs",
    "Folder",
    "Generation",
    "LibriSpeech",
    "Limited",
    "Llm",
    "Lora",
    "MiniLibriSpeech",
    "Mls",
    "Mmau",
    "MmauPro",
    "OpenAudioBench",
    "Prompts",
    "Remote",
    "Steering",
    "Synthetic",
    "Training",
    "load",
    "put_in_force",
    "switch_profile",
]

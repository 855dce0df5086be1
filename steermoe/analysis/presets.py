"""Frozen models by their sizes alone: the real classes on the meta device, without weights, network and memory.

The sizes of the presets are those of the published config.json files. Anything else is a folder with a
config.json, or a hub id.
"""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from steermoe.config import of_the_hub
from steermoe.models.encoders.firered import FireRedConfig
from steermoe.models.pretrained import DTYPES, Depth, keep_layers


@dataclass(frozen=True)
class Kind:
    """An encoder architecture: a model type of transformers.

    Attributes:
        model: `module:class` of the encoder.
        layers: where its layers are, from there.
        width: which value of its config.json is their width.
        frames_per_second: that its layers work on.
        double_rate: modules before the layers that work on twice as many frames.
        longest: value of config.json with the longest input in frames; None: no limit.
    """

    model: str
    layers: str
    width: str
    frames_per_second: float
    double_rate: tuple[str, ...] = ()
    longest: str | None = None


class EncoderShape(nn.Module):
    """A frozen encoder without weights; it stands in for an `Encoder` where only shapes matter.

    Attributes:
        name: what it was asked for as: a preset's own name, a folder, a hub id; and how many layers, if not all.
        model: the wrapped module.
        layers: its layers in order.
        width: D.
        parameters_in_all: each tensor once.
        matmul_weights: weights of linear maps and convolutions that every frame meets inside the layers.
        stem_weights: those before and after the layers, per frame of the layers.
        frames_per_second: of the layers.
        max_seconds: the longest input; None: no limit.
    """

    def __init__(self, name: str, dtype: str, depth: Depth = "all") -> None:
        super().__init__()
        self.name = _cut(name, depth)
        sizes = _config(name, ENCODERS, "encoder")
        if sizes.model_type not in KINDS:
            raise ValueError(
                f"encoder: {name!r} is a {sizes.model_type!r}; shapes are known of: {', '.join(sorted(KINDS))}"
            )
        kind = KINDS[sizes.model_type]
        module, cls = kind.model.split(":")
        with torch.device("meta"):
            model = getattr(importlib.import_module(module), cls)._from_config(sizes, dtype=DTYPES[dtype])
        self.model: Any = model.requires_grad_(False)
        layers = model.get_submodule(kind.layers)
        assert isinstance(layers, nn.ModuleList)
        keep_layers(layers, depth, "encoder")
        self.layers = layers
        self.width: int = getattr(sizes, kind.width)
        self.parameters_in_all = count(model)
        self.matmul_weights = matmul_weights(layers)
        twice = sum(matmul_weights(model.get_submodule(part)) for part in kind.double_rate)
        self.stem_weights = matmul_weights(model) - self.matmul_weights + twice
        self.frames_per_second = kind.frames_per_second
        longest = getattr(sizes, kind.longest) if kind.longest else None
        self.max_seconds: float | None = longest / kind.frames_per_second if longest else None


@dataclass(frozen=True)
class LlmShape:
    """A frozen LLM without weights.

    Attributes:
        name: as it was asked for.
        model: the causal LM on the meta device.
        width: H.
        layers: its decoder layers.
        parameters_in_all: tied weights once.
        matmul_weights: weights of linear maps that every position meets inside the layers.
        head_weights: those of the output embeddings.
        attention_width: heads times the width of a head.
    """

    name: str
    model: Any
    width: int
    layers: nn.ModuleList
    parameters_in_all: int
    matmul_weights: int
    head_weights: int
    attention_width: int


def encoder_shape(name: str, dtype: str = "bfloat16", depth: Depth = "all") -> EncoderShape:
    """The first `depth` layers of an encoder: a preset, the hub id of one, a folder with a config.json, or a hub id.

    Raises:
        ValueError: there is no such model, its architecture is not known, or it has fewer layers.
    """
    return EncoderShape(_preset(name, ENCODERS), dtype, depth)


def llm_shape(name: str, dtype: str = "bfloat16", depth: Depth = "all") -> LlmShape:
    """The first `depth` layers of an LLM: a preset, the hub id of one, a folder with a config.json, another hub id.

    Raises:
        ValueError: there is no such model, it is no causal LM with a list of layers, or it has fewer.
    """
    name = _preset(name, LLMS)
    sizes = _config(name, LLMS, "llm").get_text_config()
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(sizes, dtype=DTYPES[dtype]).requires_grad_(False)
    layers = model.base_model.layers
    keep_layers(layers, depth, "llm")
    heads = sizes.num_attention_heads
    head_width = getattr(sizes, "head_dim", None) or sizes.hidden_size // heads
    return LlmShape(
        name=_cut(name, depth),
        model=model,
        width=model.get_input_embeddings().weight.shape[1],
        layers=layers,
        parameters_in_all=count(model),
        matmul_weights=matmul_weights(layers),
        head_weights=model.get_output_embeddings().weight.numel(),
        attention_width=heads * head_width,
    )


def _cut(name: str, depth: Depth) -> str:
    return name if depth == "all" else f"{name} ({depth} layers)"


def count(module: nn.Module) -> int:
    """Parameters, each tensor once."""
    return sum(parameter.numel() for parameter in module.parameters())


def matmul_weights(module: nn.Module) -> int:
    """Weights of linear maps and convolutions, biases aside: multiplications for one position."""
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d)
    return sum(part.weight.numel() for part in module.modules() if isinstance(part, kinds))


def _preset(name: str, presets: Mapping[str, Any]) -> str:
    """The preset's own name for `openai/whisper-large-v3`, and for a folder of that name which is not there yet."""
    if Path(name).exists():
        return name
    owner, _, last = name.rpartition("/")
    return last.lower() if last.lower() in presets and (owner in OWNERS or not of_the_hub(name)) else name


def _config(name: str, presets: Mapping[str, Any], setting: str) -> PreTrainedConfig:
    if name in presets:
        return presets[name]
    if not Path(name).exists() and "/" not in name:
        raise ValueError(f"{setting}: found {name!r}{_legal(presets)}")
    try:
        return AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{setting}: found {name!r}{_legal(presets)} ({reason})") from error


def _legal(presets: Mapping[str, Any]) -> str:
    names = ", ".join(presets)
    return f"; legal: {names}, a folder with a config.json, or a hub id `owner/name` that can be reached"


def _whisper(width: int, layers: int, mels: int = 80) -> PreTrainedConfig:
    return AutoConfig.for_model(
        "whisper", d_model=width, encoder_layers=layers, encoder_attention_heads=width // 64,
        encoder_ffn_dim=4 * width, num_mel_bins=mels, max_source_positions=1500,
    )  # fmt: skip


def _qwen(width: int, inner: int, layers: int, heads: int, kv: int, vocabulary: int) -> PreTrainedConfig:
    return AutoConfig.for_model(
        "qwen2", hidden_size=width, intermediate_size=inner, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=kv, vocab_size=vocabulary, tie_word_embeddings=vocabulary == 151936,
    )  # fmt: skip


OWNERS = ("", "openai", "Qwen", "FireRedTeam")
ENCODERS: dict[str, PreTrainedConfig] = {
    "whisper-base": _whisper(512, 6),
    "whisper-small": _whisper(768, 12),
    "whisper-medium": _whisper(1024, 24),
    "whisper-large-v2": _whisper(1280, 32),
    "whisper-large-v3": _whisper(1280, 32, mels=128),
    "whisper-large-v3-turbo": _whisper(1280, 32, mels=128),
    "fireredasr-aed-l": FireRedConfig(),
}
LLMS: dict[str, PreTrainedConfig] = {
    "qwen2.5-0.5b-instruct": _qwen(896, 4864, 24, 14, 2, 151936),
    "qwen2.5-1.5b-instruct": _qwen(1536, 8960, 28, 12, 2, 151936),
    "qwen2.5-3b-instruct": _qwen(2048, 11008, 36, 16, 2, 151936),
    "qwen2.5-7b-instruct": _qwen(3584, 18944, 28, 28, 4, 152064),
}
KINDS: dict[str, Kind] = {
    "whisper": Kind(
        "transformers.models.whisper.modeling_whisper:WhisperEncoder", "layers", "d_model", 50.0, ("conv1",),
        longest="max_source_positions",
    ),
    "wav2vec2-conformer": Kind(
        "transformers.models.wav2vec2_conformer.modeling_wav2vec2_conformer:Wav2Vec2ConformerModel",
        "encoder.layers", "hidden_size", 50.0,
    ),
    "wav2vec2-bert": Kind(
        "transformers.models.wav2vec2_bert.modeling_wav2vec2_bert:Wav2Vec2BertModel",
        "encoder.layers", "hidden_size", 50.0,
    ),
    "firered_conformer": Kind(
        "steermoe.models.encoders.firered:FireRedConformer", "layer_stack", "hidden_size", 25.0,
        longest="max_frames",
    ),
    "parakeet_encoder": Kind(
        "transformers.models.parakeet.modeling_parakeet:ParakeetEncoder", "layers", "hidden_size", 12.5
    ),
}  # fmt: skip

"""Count parameters, and estimate the operations and memory of a training, from shapes alone.

The real modules are built on the meta device: without weights, network and memory. A multiplication with its addition
counts as two operations; elementwise work is left out. A frozen weight has no gradient, so that the backward pass of a
frozen linear map costs as much as its forward pass; that of fused attention costs 2.5 times as much.
"""

import importlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from steermoe import config
from steermoe.config import VariantConfig
from steermoe.models.ctc import CtcHead
from steermoe.models.downsample import make_downsampler
from steermoe.models.encoders.firered import FireRedConfig
from steermoe.models.gating import hook_points
from steermoe.models.pretrained import DTYPES, Depth, keep_layers
from steermoe.models.projectors import make_projection
from steermoe.models.steering import Steering

TRAINED = ("vectors", "scales", "router", "downsample", "projection", "lora", "llm_lora")
GB, GIB = 1e9, 2**30
EFFICIENCY = (0.3, 0.6)  # share of the matrix peak that training reaches
STATE = {"weights": 4, "gradients": 4, "optimizer": 8}  # bytes per trained parameter, AdamW in float32
RESERVED = 1.5 * GIB  # context of the driver, kernels, fragmentation
GPUS = {  # peak of matrix products in bfloat16 (operations a second), its source, bytes of memory
    "h100": (989e12, "datasheet, H100 SXM dense", 80 * GB),
    "h200": (790e12, "measured on one H200; datasheet 989", 141 * GB),
    "a100": (312e12, "datasheet, A100 80 GB", 80 * GB),
    "a100-40gb": (312e12, "datasheet, A100 40 GB", 40 * GB),
    "rtx4090": (165.2e12, "datasheet, float32 accumulation", 24 * GB),
}


@dataclass(frozen=True)
class Shape:
    """A frozen encoder or LLM on the meta device.

    Attributes:
        name: as it was asked for, and how many layers, if not all.
        model: the module; `layers` are its layers, `width` is theirs.
        outside: weights of linear maps and convolutions outside the layers, per frame or position.
        frames_per_second, max_seconds: of an encoder; None: any length.
        attention_width: of an LLM, heads times the width of a head.
    """

    name: str
    model: Any
    layers: nn.ModuleList
    width: int
    outside: int
    frames_per_second: float = 0.0
    max_seconds: float | None = None
    attention_width: int = 0

    @property
    def parameters(self) -> int:
        """All parameters, tied ones once."""
        return count(self.model)

    @property
    def inside(self) -> int:
        """Weights of linear maps and convolutions in the layers."""
        return matmul_weights(self.layers)


def encoder_shape(name: str, dtype: str = "bfloat16", depth: Depth = "all") -> Shape:
    """Return the first `depth` layers of an encoder: a preset, its hub id, a folder with a config.json, or a hub id.

    Raises:
        ValueError: there is no such model, its architecture is not known, or it has fewer layers.
    """
    name, sizes = _sizes(name, ENCODERS, "encoder")
    if sizes.model_type not in ARCHITECTURES:
        legal = ", ".join(sorted(ARCHITECTURES))
        raise ValueError(f"encoder: {name!r} is a {sizes.model_type!r}; shapes are known of: {legal}")
    module, path, width, rate, twice, longest = ARCHITECTURES[sizes.model_type]
    package, _, kind = module.partition(":")
    with torch.device("meta"):
        model = getattr(importlib.import_module(package), kind)._from_config(sizes, dtype=DTYPES[dtype])
    layers = model.requires_grad_(False).get_submodule(path)
    keep_layers(layers, depth, "encoder")
    outside = matmul_weights(model) - matmul_weights(layers)
    outside += matmul_weights(model.get_submodule(twice)) if twice else 0  # it works on twice as many frames
    most = getattr(sizes, longest) / rate if longest else None
    return Shape(_cut(name, depth), model, layers, getattr(sizes, width), outside, rate, most)


def llm_shape(name: str, dtype: str = "bfloat16", depth: Depth = "all") -> Shape:
    """Return the first `depth` layers of an LLM: a preset, its hub id, a folder with a config.json, or a hub id.

    Raises:
        ValueError: there is no such model, it is no causal LM with a list of layers, or it has fewer.
    """
    name, sizes = _sizes(name, LLMS, "llm")
    sizes = sizes.get_text_config()
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(sizes, dtype=DTYPES[dtype]).requires_grad_(False)
    layers = model.base_model.layers
    keep_layers(layers, depth, "llm")
    heads, width = sizes.num_attention_heads, model.get_input_embeddings().weight.shape[1]
    attention = heads * (getattr(sizes, "head_dim", None) or sizes.hidden_size // heads)
    outside = model.get_output_embeddings().weight.numel()
    return Shape(_cut(name, depth), model, layers, width, outside, attention_width=attention)


def trained_parameters(variant: VariantConfig, encoder: Shape, llm: Shape) -> dict[str, int]:
    """Count each trained part, those of TRAINED first; this puts LoRA and the hooks of steering into the models.

    Raises:
        ValueError: a setting does not fit the models.
    """
    # One row that is not on the meta device: the projection reads the loudness of the embeddings off it.
    embeddings = torch.ones(1, llm.width)
    with torch.device("meta"):
        downsample = make_downsampler(variant.projector, encoder.width, len(encoder.layers))
        projection = make_projection(variant.projector, downsample.width, embeddings)
        parts = {"downsample": count(downsample), "projection": count(projection)}
        if (ctc := variant.training.ctc) is not None:
            parts["projection"] += count(CtcHead(embeddings, [""] if ctc.spelling else None))
        if variant.steering is not None:
            steering = Steering(variant.steering, encoder.layers, encoder.width)
            for name, parameter in steering.named_parameters():
                part = name.partition(".")[0]
                parts[part] = parts.get(part, 0) + parameter.numel()
        for part, section, shape in (("lora", variant.lora, encoder), ("llm_lora", variant.llm_lora, llm)):
            if section is not None:
                from steermoe.models.lora import add_lora  # here, for peft takes seconds to import

                added = add_lora(section, shape.model, shape.layers, part)
                parts[part] = sum(parameter.numel() for parameter in added)
    order = {part: number for number, part in enumerate(TRAINED)}
    return {part: parts[part] for part in sorted(parts, key=lambda p: order.get(p, 99)) if parts[part]}


def audit(variant: VariantConfig, encoder: str | None = None, llm: str | None = None) -> dict[str, Any]:
    """Count all parameters of a variant, or of its settings over other frozen models."""
    shapes = {
        "encoder": encoder_shape(encoder or variant.encoder.path, depth=variant.encoder.layers),
        "llm": llm_shape(llm or variant.llm.path, depth=variant.llm.layers),
    }
    frozen = {part: shape.parameters for part, shape in shapes.items()}
    trained = trained_parameters(variant, **shapes)
    total = sum(trained.values())
    return {part: shape.name for part, shape in shapes.items()} | {
        "method": variant.method, "frozen": frozen, "trained": trained, "trained_total": total,
        "trained_share": total / (total + sum(frozen.values())),
    }  # fmt: skip


def operations(
    variant: VariantConfig, encoder: Shape, llm: Shape, trained: Mapping[str, int], seconds: float, prompt: int,
    target: int,
) -> dict[str, float]:  # fmt: skip
    """Return the operations of one training step on a clip with `prompt` and `target` tokens, by pass and model."""
    frames = max(1, int(seconds * encoder.frames_per_second))
    audio = math.ceil(frames / variant.projector.downsample_factor)
    positions, layers = audio + prompt + target, len(encoder.layers)
    linear, attention = 2 * encoder.inside * frames, 4 * frames**2 * encoder.width * layers
    below = backpropagated(variant, layers) / layers
    read, head = 2 * llm.inside * positions, 2 * llm.outside * (prompt + target)
    causal = 2 * positions**2 * llm.attention_width * len(llm.layers)
    per_token = trained.get("projection", 0) + trained.get("downsample", 0)
    return {
        "encoder_forward": linear + attention + 2 * encoder.outside * frames,
        "encoder_backward": below * (linear + 2.5 * attention),
        "llm_forward": read + causal + head,
        "llm_backward": read + 2.5 * causal + head,
        "trained": 6 * (per_token * audio + (sum(trained.values()) - per_token) * frames),
    }


def backpropagated(variant: VariantConfig, layers: int) -> int:
    """Return how many of the encoder's layers a gradient passes: those above the first that is changed."""
    if variant.lora is not None:
        return layers
    steered = [] if variant.steering is None else hook_points(variant.steering, layers)
    numbers = [place.layer for place in steered if place.layer is not None]
    if not numbers or variant.steering is None:
        return 0
    inside = variant.steering.hook_point == "attention"  # of the first one the feed-forward, counted whole
    return layers - 1 - min(numbers) + inside


def activations(
    variant: VariantConfig, encoder: Shape, llm: Shape, seconds: float, prompt: int, target: int
) -> float:
    """Return the bytes that the forward pass of a clip keeps for its backward pass, attention fused."""
    size, frames = DTYPES[variant.llm.dtype].itemsize, max(1, int(seconds * encoder.frames_per_second))
    positions = math.ceil(frames / variant.projector.downsample_factor) + prompt + target
    through = backpropagated(variant, len(encoder.layers))
    per_frame = sum(kept_bytes(layer, size) for layer in encoder.layers[-through:]) if through else 0.0
    if variant.steering is not None:  # the frame itself in float32, for router and vectors
        per_frame += len(hook_points(variant.steering, len(encoder.layers))) * encoder.width * 4
    vocabulary = llm.outside / llm.width  # its logits: as computed, in float32, their gradient
    per_position = sum(kept_bytes(layer, size) for layer in llm.layers)
    return frames * per_frame + positions * per_position + target * vocabulary * (size + 8)


def kept_bytes(layer: nn.Module, size: int) -> float:
    """Return the bytes that a frozen transformer layer keeps of one position, `size` bytes a number.

    These are the outputs of linear maps but those that end a branch (a sum keeps nothing), what attention returns, the
    product of a gated activation, and the input of every norm: of an RMSNorm in float32.
    """
    maps = [part for part in layer.modules() if isinstance(part, nn.Linear)]
    width, widest = min(part.in_features for part in maps), max(part.out_features for part in maps)
    inner = [part.out_features for part in maps if part.out_features == widest > width]
    attention = [part.out_features for part in maps if part.out_features <= width == part.in_features]
    kept = sum(inner) + sum(attention) + (widest if len(inner) > 1 else 0)
    norms = [part for part in layer.modules() if type(part).__name__.endswith("Norm")]
    return kept * size + sum(width * (size if isinstance(norm, nn.LayerNorm) else 4) for norm in norms)


def memory(parts: Mapping[str, float], llm: Shape, size: int, gpus: int) -> dict[str, tuple[float, float]]:
    """Return {mode: bytes of (a device, the host)}, plain and with DeepSpeed's ZeRO (Rajbhandari et al. 2020)."""
    frozen = parts["encoder's weights"] + parts["LLM's weights"]
    weights, gradients, optimizer = (parts[f"trained {name}"] for name in STATE)
    rest = parts["activations"] + parts["context of the device"]
    gathered = 2 * max(llm.inside / len(llm.layers), llm.outside) * size  # what is in use, and fetched ahead
    states = weights + gradients + optimizer
    return {
        "plain": (frozen + states + rest, 0.0),
        "zero2": (frozen + weights + (gradients + optimizer) / gpus + rest, 0.0),
        "zero2-offload": (frozen + weights + gradients / gpus + rest, optimizer + gradients),
        "zero3": ((frozen + states) / gpus + gathered * (gpus > 1) + rest, 0.0),
        "zero3-offload": (gathered + gradients / gpus + rest, frozen + states),
    }


def plan(
    variant: VariantConfig, encoder: Shape, llm: Shape, *, hours: float, epochs: float, mean_seconds: float,
    prompt: int, target: int, peak: float, gpus: int, max_batch_seconds: float,
) -> dict[str, Any]:  # fmt: skip
    """Estimate a run on `hours` of audio in clips of `mean_seconds`.

    Returns:
        trained: parameters by part; cases: {how clips are fed: tflop_per_clip, operations, hours_at_peak, hours (at
        EFFICIENCY, shortest first), audio_hours_per_device_hour}; parts: bytes of a device without ZeRO; memory: as of
        `memory`.

    Raises:
        ValueError: a setting does not fit the encoder, or clips are longer than it takes.
    """
    longest = encoder.max_seconds
    if longest is not None and mean_seconds > longest:
        raise ValueError(f"mean-seconds: found {mean_seconds:g}; {encoder.name} takes at most {longest:g} s")
    row = longest if variant.encoder.window == "full" and longest is not None else mean_seconds
    kept = max(1, math.floor(max_batch_seconds / row)) * activations(
        variant, encoder, llm, row, prompt, target
    )
    frozen = encoder.parameters, llm.parameters
    trained = trained_parameters(variant, encoder, llm)
    sizes = DTYPES[variant.encoder.dtype].itemsize, DTYPES[variant.llm.dtype].itemsize
    parts = {
        "encoder's weights": frozen[0] * sizes[0], "LLM's weights": frozen[1] * sizes[1],
        **{f"trained {name}": sum(trained.values()) * size for name, size in STATE.items()},
        "activations": kept, "context of the device": RESERVED,
    }  # fmt: skip
    cases = {} if longest is None else {f"padded to {longest:g} s": (longest, epochs)}
    cases["not padded"] = mean_seconds, epochs
    if variant.steering is None and variant.lora is None:
        cases["not padded, encoder's output kept"] = mean_seconds, 1.0
    found = {}
    for name, (seconds, encoded) in cases.items():
        step = operations(variant, encoder, llm, trained, seconds, prompt, target)
        per_clip = sum(step.values()) * epochs - step["encoder_forward"] * (epochs - encoded)
        total = per_clip * hours * 3600 / mean_seconds
        floor = total / peak / 3600 / gpus
        found[name] = {
            "tflop_per_clip": sum(step.values()) / 1e12, "operations": total, "hours_at_peak": floor,
            "hours": (floor / EFFICIENCY[1], floor / EFFICIENCY[0]),
            "audio_hours_per_device_hour": hours * epochs / (floor * gpus),
        }  # fmt: skip
    return {"trained": trained, "cases": found, "parts": parts, "memory": memory(parts, llm, sizes[1], gpus)}


def count(module: nn.Module) -> int:
    """Count parameters, each tensor once."""
    return sum(parameter.numel() for parameter in module.parameters())


def matmul_weights(module: nn.Module) -> int:
    """Count the weights of linear maps and convolutions, biases aside: multiplications for one position."""
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d)
    return sum(part.weight.numel() for part in module.modules() if isinstance(part, kinds))


def _cut(name: str, depth: Depth) -> str:
    return name if depth == "all" else f"{name} ({depth} layers)"


def _sizes(name: str, presets: Mapping[str, PreTrainedConfig], setting: str) -> tuple[str, PreTrainedConfig]:
    """Return name and configuration of a preset, also by its hub id, of a folder, or of a model of the hub."""
    owner, _, last = name.rpartition("/")
    legal = f"; legal: {', '.join(presets)}, a folder with a config.json, or a hub id `owner/name`"
    if not Path(name).exists():
        if last.lower() in presets and (owner in OWNERS or not config.of_the_hub(name)):
            return last.lower(), presets[last.lower()]
        if "/" not in name:
            raise ValueError(f"{setting}: found {name!r}{legal}")
    try:
        return name, AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{setting}: found {name!r}{legal} that can be reached ({reason})") from error


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


OWNERS = ("", "openai", "Qwen", "FireRedTeam", "HuggingFaceTB")
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
    "smollm2-135m-instruct": AutoConfig.for_model(
        "llama", hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, vocab_size=49152, tie_word_embeddings=True,
    ),
}  # fmt: skip
ARCHITECTURES: dict[str, tuple[str, str, str, float, str | None, str | None]] = {
    # model type: class, its layers, name of their width, frames a second, module at twice that rate, name of the limit
    "whisper": (
        "transformers.models.whisper.modeling_whisper:WhisperEncoder", "layers", "d_model", 50.0, "conv1",
        "max_source_positions",
    ),
    "wav2vec2-conformer": (
        "transformers.models.wav2vec2_conformer.modeling_wav2vec2_conformer:Wav2Vec2ConformerModel",
        "encoder.layers", "hidden_size", 50.0, None, None,
    ),
    "wav2vec2-bert": (
        "transformers.models.wav2vec2_bert.modeling_wav2vec2_bert:Wav2Vec2BertModel",
        "encoder.layers", "hidden_size", 50.0, None, None,
    ),
    "firered_conformer": (
        "steermoe.models.encoders.firered:FireRedConformer",
        "layer_stack", "hidden_size", 25.0, None, "max_frames",
    ),
    "parakeet_encoder": (
        "transformers.models.parakeet.modeling_parakeet:ParakeetEncoder", "layers", "hidden_size", 12.5, None, None,
    ),
}  # fmt: skip

"""Models with random weights and batches of chosen sizes, and what is said of the machine beside every figure."""

import os
import platform
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, WhisperConfig, WhisperFeatureExtractor
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from steermoe import config
from steermoe.models.llm import load_tokenizer
from steermoe.models.steermoe import SteerMoE

ROOT = Path(__file__).parents[1]
PROMPT, TARGET = 12, 40  # tokens


def frozen_models(
    folder: Path, width: int, layers: int, vocabulary: int, llm_width: int = 512, llm_layers: int = 8
) -> tuple[str, str]:
    """A Whisper-like encoder and a Qwen2-like LLM with random weights: the folders of both."""
    heads = max(1, llm_width // 64)
    return _saved(
        folder, width, layers, "qwen2", hidden_size=llm_width, intermediate_size=llm_width * 11 // 4,
        num_hidden_layers=llm_layers, num_attention_heads=heads, num_key_value_heads=heads, vocab_size=vocabulary,
    )  # fmt: skip


def small_models(folder: Path, layers: int | None = None) -> tuple[str, str]:
    """Models of the shapes of Whisper-base's encoder and of SmolLM2-135M with random weights, or so many layers."""
    return _saved(
        folder, 512, layers or 6, "llama", hidden_size=576, intermediate_size=1536, num_hidden_layers=layers or 30,
        num_attention_heads=9, num_key_value_heads=3, vocab_size=49_152, tie_word_embeddings=True,
    )  # fmt: skip


def _saved(folder: Path, width: int, layers: int, kind: str, **sizes: Any) -> tuple[str, str]:
    encoder, llm = folder / "encoder", folder / "llm"
    heads = max(1, width // 64)
    whisper = WhisperConfig(
        d_model=width, encoder_layers=layers, encoder_attention_heads=heads, encoder_ffn_dim=4 * width
    )
    WhisperEncoder(whisper).save_pretrained(encoder)
    WhisperFeatureExtractor().save_pretrained(encoder)
    tokenizer = load_tokenizer(str(ROOT / "pretrained/llm"))
    tokenizer.save_pretrained(llm)
    decoder = AutoConfig.for_model(kind, eos_token_id=tokenizer.eos_token_id, **sizes)
    AutoModelForCausalLM.from_config(decoder).save_pretrained(llm)
    return str(encoder), str(llm)


def variant(
    name: str, paths: tuple[str, str], experts: int = 8, dtype: str = "float32"
) -> config.VariantConfig:
    """A variant of params.yaml over other frozen models, with weights of a type."""
    chosen = config.load(ROOT / "params.yaml").variant(name)
    changed: dict[str, Any] = {
        part: getattr(chosen, part).model_copy(update={"path": path, "dtype": dtype})
        for part, path in zip(("encoder", "llm"), paths, strict=True)
    }
    if chosen.steering is not None:
        changed["steering"] = chosen.steering.model_copy(update={"num_experts": experts})
    return chosen.model_copy(update=changed)


def model(name: str, paths: tuple[str, str], experts: int = 8, dtype: str = "float32") -> SteerMoE:
    """The model of `variant`, in training mode."""
    return SteerMoE.from_config(variant(name, paths, experts, dtype)).train()


def batch(
    seconds: Sequence[float], channels: int, prompt: int = PROMPT, target: int = TARGET
) -> dict[str, torch.Tensor]:
    """Clips of so many seconds, each with a prompt and a target of random tokens, as the collator pads them."""
    lengths = torch.tensor([int(100 * each) for each in seconds])
    features = torch.randn(len(lengths), channels, int(lengths.max()))
    features = features.masked_fill(torch.arange(features.shape[2]) >= lengths[:, None, None], 0)

    def full(length: int) -> torch.Tensor:
        return torch.full((len(lengths),), length)

    def ids(length: int) -> torch.Tensor:
        return torch.randint(5, 500, (len(lengths), length))

    return {
        "features": features, "feature_lengths": lengths,
        "prefix_ids": ids(0), "prefix_lengths": full(0), "prompt_ids": ids(prompt), "prompt_lengths": full(prompt),
        "target_ids": ids(target), "target_lengths": full(target),
    }  # fmt: skip


def machine() -> str:
    """What the figures were measured on, and how busy it was."""
    load = ", ".join(f"{each:.1f}" for each in os.getloadavg())
    return (
        f"{platform.machine()}, {os.cpu_count()} cores, load {load}; "
        f"torch {torch.__version__}, {torch.get_num_threads()} threads"
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown, numbers to the right."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, rule, *rows])


def spread(values: Sequence[float]) -> str:
    """The median, and the smallest and largest value."""
    return f"{statistics.median(values):.2f} [{min(values):.2f}, {max(values):.2f}]"

"""Every encoder, and every window, inside the whole model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from steermoe import config
from steermoe.data.dataset import collate
from steermoe.export.merge import write_merged
from steermoe.models.encoders import ENCODERS
from steermoe.models.steermoe import SteerMoE

CHOICES = [*((name, "unpadded") for name in ENCODERS), ("whisper", "full")]


@pytest.mark.parametrize(("name", "window"), CHOICES)
def test_the_model_transcribes_with_it(
    name: str,
    window: str,
    tiny_variant: Callable[..., config.VariantConfig],
    section: Callable[..., config.Encoder],
    speech: Callable[[int, int], np.ndarray],
    greedy: Callable[..., config.Generation],
) -> None:
    chosen: dict[str, Any] = section(name, window=window).model_dump()
    variant = tiny_variant("steering", {f"encoder.{key}": value for key, value in chosen.items()})
    model = SteerMoE.from_config(variant)
    assert model.features is model.encoder.features
    waveforms = [speech(samples, seed) for seed, samples in enumerate((16_000, 7_000, 30_000))]
    together = model.transcribe(waveforms, generation_config=greedy(6))
    assert together == [model.transcribe(each, generation_config=greedy(6)) for each in waveforms]
    assert any(together)


@pytest.mark.parametrize("name", ENCODERS)
def test_it_can_be_merged(
    name: str,
    tiny_variant: Callable[..., config.VariantConfig],
    tiny_chat_dir: Path,
    section: Callable[..., config.Encoder],
    speech: Callable[[int, int], np.ndarray],
    tmp_path: Path,
) -> None:
    """With its feature extractor and its names of weights, over an LLM with a chat template."""
    changes = {f"encoder.{key}": value for key, value in section(name).model_dump().items()}
    changes |= {"llm.path": str(tiny_chat_dir), "prompts.format": "chat"}
    model = SteerMoE.from_config(tiny_variant("steering", changes))
    model.save_pretrained(tmp_path / "adapter")
    write_merged(tmp_path / "adapter", tmp_path / "merged")
    merged = SteerMoE.from_pretrained(tmp_path / "merged")
    assert merged.frozen_hashes() == model.frozen_hashes()
    assert merged.llm.generation_config.eos_token_id == model.llm.generation_config.eos_token_id
    assert merged.tokenizer.chat_template == model.tokenizer.chat_template
    sounds = [speech(16_000, 0), speech(9_000, 1)]
    assert merged.transcribe(sounds, max_new_tokens=6) == model.transcribe(sounds, max_new_tokens=6)


PLACED: dict[str, Any] = {
    "steering.hook_point": "attention", "steering.layers": "last-2", "steering.post_encoder": True,
    "steering.router": "progressive", "steering.stages": 2, "steering.router_aux_loss_coef": 0.1,
    "steering.vector_std": 0.3, "projector.downsample_after_layer": 0,
}  # fmt: skip


@pytest.mark.parametrize(("name", "window"), CHOICES)
def test_the_model_trains_with_it(
    name: str,
    window: str,
    tiny_variant: Callable[..., config.VariantConfig],
    section: Callable[..., config.Encoder],
    speech: Callable[[int, int], np.ndarray],
) -> None:
    chosen = {f"encoder.{key}": value for key, value in section(name, window=window).model_dump().items()}
    model = SteerMoE.from_config(tiny_variant("steering", chosen | PLACED)).train()
    features = [model.features(speech(samples, seed)) for seed, samples in enumerate((16_000, 7_000))]
    item: Any = {"prefix_ids": [], "prompt_ids": [5, 6], "target_ids": [7, 8, 9]}
    batch = collate([item | {"features": each, "index": row} for row, each in enumerate(features)])
    loss = model(**batch).loss
    loss.backward()
    for part, parameters in model.parameter_groups().items():
        assert all(p.grad is not None and p.grad.any() for p in parameters), part
    assert all(p.grad is None for p in model.encoder.model.parameters())
    assert len(model.gates(speech(16_000, 0))) == len(model.steering.hook_points)  # pyright: ignore

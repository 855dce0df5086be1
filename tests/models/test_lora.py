from collections.abc import Callable
from typing import Any

import pytest
import torch

from steermoe.config import VariantConfig
from steermoe.models.encoders import Encoder, load_encoder
from steermoe.models.lora import add_lora, train_lora

FEATURES, LENGTHS = torch.randn(2, 80, 60, generator=torch.Generator().manual_seed(3)), torch.tensor([60, 33])


@pytest.fixture
def variant(tiny_variant: Callable[..., Any]) -> VariantConfig:
    return tiny_variant("lora", {"lora.dropout": 0.5})


def adapt(variant: VariantConfig, **changes: Any) -> tuple[Encoder, list[torch.nn.Parameter]]:
    assert variant.lora is not None
    encoder = load_encoder(variant.encoder)
    return encoder, add_lora(variant.lora.model_copy(update=changes), encoder.model, encoder.layers, "lora")


@torch.no_grad()
def test_it_starts_as_the_frozen_encoder(variant: VariantConfig) -> None:
    plain, _ = load_encoder(variant.encoder)(FEATURES, LENGTHS)
    encoder, _ = adapt(variant)
    assert torch.equal(encoder(FEATURES, LENGTHS)[0], plain)


def test_only_the_adapters_are_trained(variant: VariantConfig) -> None:
    encoder, parameters = adapt(variant)
    trained = {name for name, p in encoder.named_parameters() if p.requires_grad}
    assert trained and all(".lora_A." in name or ".lora_B." in name for name in trained)
    rank, layers, width, ffn = 2, 3, 32, 64
    assert sum(p.numel() for p in parameters) == layers * rank * (2 * (width + width) + (width + ffn))


@torch.no_grad()
def test_dropout_is_active_in_training_only(variant: VariantConfig) -> None:
    encoder, parameters = adapt(variant)
    for parameter in parameters:
        parameter.normal_(std=0.3)
    first, _ = encoder(FEATURES, LENGTHS)
    assert torch.equal(encoder(FEATURES, LENGTHS)[0], first)
    train_lora(encoder, True)
    assert not torch.equal(encoder(FEATURES, LENGTHS)[0], encoder(FEATURES, LENGTHS)[0])
    assert not encoder.layers[0].training
    train_lora(encoder, False)
    assert torch.equal(encoder(FEATURES, LENGTHS)[0], first)


def test_adapters_of_a_bfloat16_encoder_are_float32(variant: VariantConfig) -> None:
    variant = variant.model_copy(update={"encoder": variant.encoder.model_copy(update={"dtype": "bfloat16"})})
    encoder, parameters = adapt(variant)
    assert {p.dtype for p in parameters} == {torch.float32}
    hidden, _ = encoder(FEATURES, LENGTHS)
    assert hidden.dtype == torch.bfloat16
    hidden.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in parameters)


def test_targets_that_are_not_there_are_named(variant: VariantConfig) -> None:
    legal = "fc1, fc2, k_proj, out_proj, q_proj, v_proj"
    with pytest.raises(ValueError, match=rf"lora\.targets: found \['o_proj'\], the layers have: {legal}"):
        adapt(variant, targets=["q_proj", "o_proj"])

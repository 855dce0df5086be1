from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from steermoe import config
from steermoe.models.encoders import Encoder, load_encoder
from steermoe.models.steering import Steering

FEATURES, LENGTHS = torch.randn(2, 80, 60, generator=torch.Generator().manual_seed(3)), torch.tensor([60, 33])


@pytest.fixture
def variant(tiny_variant: Callable[..., Any]) -> config.VariantConfig:
    return tiny_variant("steering", {"steering.vector_std": 1.0})


def attach(variant: config.VariantConfig, **changes: Any) -> tuple[Encoder, Steering]:
    assert variant.steering is not None
    encoder = load_encoder(variant.encoder)
    torch.manual_seed(0)
    return encoder, Steering(variant.steering.model_copy(update=changes), encoder.layers, encoder.width)


@torch.no_grad()
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_scale_zero_is_the_unsteered_encoder_bit_for_bit(variant: config.VariantConfig, dtype: str) -> None:
    variant = variant.model_copy(update={"encoder": variant.encoder.model_copy(update={"dtype": dtype})})
    plain, _ = load_encoder(variant.encoder)(FEATURES, LENGTHS)
    encoder, steering = attach(variant)
    assert not torch.equal(encoder(FEATURES, LENGTHS)[0], plain)
    with steering.disabled():
        assert torch.equal(encoder(FEATURES, LENGTHS)[0], plain)
    steering.scales.zero_()
    steered, _ = encoder(FEATURES, LENGTHS)
    assert steered.dtype == plain.dtype
    assert torch.equal(steered, plain)


@torch.no_grad()
def test_steering_is_the_papers_formula(variant: config.VariantConfig) -> None:
    encoder, steering = attach(variant)
    steering.scales.copy_(torch.tensor([0.5, -1.0, 2.0]))
    steered, _ = encoder(FEATURES, LENGTHS)
    plain = load_encoder(variant.encoder)  # the same layers without hooks, steered by hand
    hidden, lengths = plain.stem(FEATURES, LENGTHS)
    context = plain.context(hidden, lengths)
    experts = steering.hook_points[0].experts
    for number, layer in enumerate(plain.layers):
        hidden = layer(hidden, *context)
        logits = steering.router(hidden, number)
        update = torch.zeros_like(hidden)
        for expert in range(experts):
            update += logits.softmax(-1)[..., expert, None] * steering.vectors[number * experts + expert]
        hidden = hidden + steering.scales[number] * update
    torch.testing.assert_close(steered, plain.finish(hidden), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_transformers_own_forward_is_steered_too(variant: config.VariantConfig) -> None:
    encoder, _ = attach(variant)
    assert isinstance(encoder.model, WhisperEncoder)
    full = torch.randn(1, 80, 400)
    assert torch.equal(encoder.model(full).last_hidden_state, encoder(full, torch.tensor([400]))[0])


@torch.no_grad()
def test_only_chosen_layers_are_steered_and_have_parameters(variant: config.VariantConfig) -> None:
    encoder, steering = attach(variant, layers=[2, 0])
    assert [place.layer for place in steering.hook_points] == [0, 2]
    assert len(steering.vectors) == 2 * 4 and len(steering.scales) == 2
    seen: list[tuple[int, torch.Size, torch.Size]] = []
    outputs = []
    encoder.layers[0].register_forward_hook(lambda *args: outputs.append(args[2]))
    with steering.observed(lambda index, hidden, gates: seen.append((index, hidden.shape, gates.shape))):
        encoder(FEATURES, LENGTHS)
    assert seen == [(0, (2, 30, 32), (2, 30, 4)), (1, (2, 30, 32), (2, 30, 4))]
    encoder(FEATURES, LENGTHS)
    assert len(seen) == 2  # nobody watches any more


def test_layers_that_do_not_exist_are_named(variant: config.VariantConfig) -> None:
    with pytest.raises(ValueError, match=r"steering\.layers: found \[3\], the encoder has layers 0 to 2"):
        attach(variant, layers=[1, 3])


class _TupleLayer(nn.Module):
    def forward(self, hidden: torch.Tensor) -> tuple[torch.Tensor, str]:
        return hidden, "weights"


def test_layers_that_return_tuples_are_steered(variant: config.VariantConfig) -> None:
    assert variant.steering is not None
    layers = [_TupleLayer(), nn.Identity()]
    Steering(variant.steering, layers, 8)
    hidden = torch.randn(1, 4, 8)
    output = layers[0](hidden)
    assert output[1] == "weights"
    assert not torch.equal(output[0], hidden)
    assert not torch.equal(layers[1](hidden), hidden)


def test_steering_is_computed_in_float32_under_autocast(variant: config.VariantConfig) -> None:
    _, steering = attach(variant)
    hidden = torch.randn(1, 4, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(steering(hidden, 0), steering(hidden, 0).float())
        mixed = steering(hidden, 0)
    assert torch.equal(mixed, steering(hidden, 0))


def test_gradients_reach_all_that_is_trained(variant: config.VariantConfig) -> None:
    encoder, steering = attach(variant)
    encoder(FEATURES, LENGTHS)[0].square().sum().backward()
    for name, parameter in steering.named_parameters():
        assert parameter.grad is not None, name
        rows = parameter.grad.view(len(parameter), -1)
        assert rows.abs().sum(1).min() > 0, name
    assert all(p.grad is None for p in encoder.parameters())


@torch.no_grad()
def test_strengths_scale_layers_and_experts_and_can_be_taken_back(variant: config.VariantConfig) -> None:
    encoder, steering = attach(variant, post_encoder=True)

    def heard() -> torch.Tensor:
        return steering.post(encoder(FEATURES, LENGTHS)[0])

    as_trained = heard()
    with steering.disabled():
        plain = heard()
    steering.set_scale(0)
    assert torch.equal(heard(), plain)
    steering.set_scale(1, layer=1, expert=2)
    assert not torch.equal(heard(), plain)
    steering.set_scale()
    assert torch.equal(heard(), as_trained)
    steering.set_scale(-1, post=True)
    pushed = heard()
    with torch.no_grad():
        steering.vectors[-4:] *= -1
    steering.set_scale()
    assert torch.equal(heard(), pushed)
    assert not any("strength" in name for name in steering.state_dict())
    for wrong, message in (
        ({"layer": 7}, "found 7; steered places are 0, 1, 2, post"),
        ({"expert": 4}, "expert 4"),
    ):
        with pytest.raises(ValueError, match=message):
            steering.set_scale(0.5, **wrong)  # pyright: ignore[reportArgumentType]


@torch.no_grad()
def test_attention_can_be_steered_instead(variant: config.VariantConfig) -> None:
    encoder = load_encoder(variant.encoder)
    assert variant.steering is not None
    plain, _ = encoder(FEATURES, LENGTHS)
    attentions = [encoder.attention(number) for number in range(3)]
    unsteered: list[Any] = []
    outputs: list[Any] = []
    attentions[0].register_forward_hook(lambda *args: unsteered.append(args[2]))
    section = variant.steering.model_copy(update={"hook_point": "attention"})
    steering = Steering(section, attentions, encoder.width)
    attentions[0].register_forward_hook(lambda *args: outputs.append(args[2]))
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    with steering.observed(lambda index, hidden, gates: seen.append((hidden, gates))):
        steered, _ = encoder(FEATURES, LENGTHS)
    assert len(seen) == 3 and not torch.equal(steered, plain)
    hidden, gates = seen[0]
    torch.testing.assert_close(outputs[0][0], hidden + gates @ steering.scaled_vectors(0))
    assert torch.equal(hidden, unsteered[0][0])


def test_losses_see_valid_frames_only_and_in_training_only(variant: config.VariantConfig) -> None:
    encoder, steering = attach(variant, router_aux_loss_coef=1.0, router_z_loss_coef=0.5)
    valid = {30: torch.tensor([30, 17])}
    found = []
    for features in (FEATURES, torch.cat([FEATURES, 100 * torch.ones(2, 80, 40)], 2)):
        steering.train()
        steering.start()
        encoder(features, LENGTHS)
        lengths = valid if features is FEATURES else {50: valid[30]}
        found.append(steering.losses(lengths.__getitem__))
    torch.testing.assert_close(found[0], found[1])
    found[0].backward()
    assert all(p.grad is not None for p in steering.router.parameters())
    steering.eval()
    steering.start()
    encoder(FEATURES, LENGTHS)
    assert steering.losses(valid.__getitem__) == 0


def test_an_expert_that_is_always_left_out_is_called_back(variant: config.VariantConfig) -> None:
    encoder, steering = attach(variant, layers=[0], router_aux_loss_coef=1.0, top_k=2)
    router: Any = steering.router
    with torch.no_grad():
        router.linear.bias.copy_(torch.tensor([90.0, 90.0, 80.0, 80.0]))
    steering.train()
    steering.start()
    encoder(FEATURES, LENGTHS)
    loss: Any = steering.losses(lambda width: torch.full((2,), width))
    loss.backward()
    assert (router.linear.bias.grad[2:] < 0).all()


@torch.no_grad()
@pytest.mark.parametrize(("scale", "start"), [("fixed", 0.7), ("none", None)])
def test_scales_can_be_fixed_or_none(variant: config.VariantConfig, scale: str, start: float | None) -> None:
    encoder, steering = attach(variant, scale=scale, scale_init=start)
    assert "scales" not in dict(steering.named_parameters()) and "scales" not in steering.state_dict()
    assert steering.scales.tolist() == pytest.approx([start or 1.0] * 3)
    assert encoder(FEATURES, LENGTHS)[0].isfinite().all()

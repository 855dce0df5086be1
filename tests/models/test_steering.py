"""Steering, its hook points, routers and gates, against the formulas of the papers."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from steermoe import config
from steermoe.models.encoders import Encoder, load_encoder
from steermoe.models.gating import Gate, hook_points, load_balancing_loss, z_loss
from steermoe.models.routers import ROUTERS, Shared, make_router
from steermoe.models.steering import Steering

Make = Callable[..., Any]
FEATURES, LENGTHS = torch.randn(2, 80, 60, generator=torch.Generator().manual_seed(3)), torch.tensor([60, 33])
LOGITS = 3 * torch.randn(2, 50, 6, generator=torch.Generator().manual_seed(1))
LAYERS, EXPERTS, WIDTH = 3, 4, 6
OPTIONS: dict[str, dict[str, int]] = {"hierarchical": {"groups": 2}, "progressive": {"stages": 2}}
HIDDEN, VECTORS = torch.randn(2, 5, WIDTH), torch.randn(EXPERTS, WIDTH)


@pytest.fixture
def variant(tiny_variant: Make) -> config.VariantConfig:
    return tiny_variant("steering", {"steering.vector_std": 1.0})


def attach(variant: config.VariantConfig, **changes: Any) -> tuple[Encoder, Steering]:
    assert variant.steering is not None
    encoder = load_encoder(variant.encoder)
    torch.manual_seed(0)
    return encoder, Steering(variant.steering.model_copy(update=changes), encoder.layers, encoder.width)


# steering


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
    assert steered.dtype == plain.dtype and torch.equal(steered, plain)


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
    assert isinstance(encoder.model, WhisperEncoder)  # its own forward is steered, too
    full = torch.randn(1, 80, 400)
    assert torch.equal(encoder.model(full).last_hidden_state, encoder(full, torch.tensor([400]))[0])


@torch.no_grad()
def test_attention_can_be_steered_instead(variant: config.VariantConfig) -> None:
    encoder = load_encoder(variant.encoder)
    assert variant.steering is not None
    plain, _ = encoder(FEATURES, LENGTHS)
    attentions = [encoder.attention(number) for number in range(3)]
    outputs: list[Any] = []
    attentions[0].register_forward_hook(lambda *args: outputs.append(args[2]))
    steering = Steering(
        variant.steering.model_copy(update={"hook_point": "attention"}), attentions, encoder.width
    )
    attentions[0].register_forward_hook(lambda *args: outputs.append(args[2]))
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    with steering.observed(lambda index, hidden, gates: seen.append((hidden, gates))):
        steered, _ = encoder(FEATURES, LENGTHS)
    assert len(seen) == 3 and not torch.equal(steered, plain)
    hidden, gates = seen[0]
    assert torch.equal(hidden, outputs[0][0])
    torch.testing.assert_close(outputs[1][0], hidden + gates @ steering.scaled_vectors(0))
    encoder(FEATURES, LENGTHS)
    assert len(seen) == 3  # the observer is gone


class _TupleLayer(nn.Module):
    def forward(self, hidden: torch.Tensor) -> tuple[torch.Tensor, str]:
        return hidden, "weights"


def test_layers_that_return_tuples_are_steered_in_float32(variant: config.VariantConfig) -> None:
    assert variant.steering is not None
    layers, hidden = [_TupleLayer(), nn.Identity()], torch.randn(1, 4, 8)
    steering = Steering(variant.steering, layers, 8)
    output = layers[0](hidden)
    assert output[1] == "weights" and not torch.equal(output[0], hidden)
    assert not torch.equal(layers[1](hidden), hidden)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = steering(hidden, 0)
    assert torch.equal(mixed, steering(hidden, 0)) and mixed.dtype == torch.float32


@torch.no_grad()
def test_scales_can_be_set_by_layer_and_expert_and_undone(variant: config.VariantConfig) -> None:
    encoder, steering = attach(variant, post_encoder=True)

    def encoded() -> torch.Tensor:
        return steering.post(encoder(FEATURES, LENGTHS)[0])

    as_trained = encoded()
    with steering.disabled():
        plain = encoded()
    steering.set_scale(0)
    assert torch.equal(encoded(), plain)
    with steering.scaled(1, layer=1, expert=2):
        assert not torch.equal(encoded(), plain)
    assert torch.equal(encoded(), plain)
    steering.set_scale()
    assert torch.equal(encoded(), as_trained)
    with steering.scaled(-1, layer="post"):
        pushed = encoded()
    steering.vectors[-4:] *= -1
    assert torch.equal(encoded(), pushed)
    assert not any("expert_scales" in name for name in steering.state_dict())
    for layer, expert, message in (
        (7, None, "found layer 7; steered layers are 0, 1, 2, post"),
        (None, 4, "found expert 4"),
    ):
        with pytest.raises(ValueError, match=message):
            steering.set_scale(0.5, layer, expert)


@torch.no_grad()
@pytest.mark.parametrize(("scale", "start"), [("fixed", 0.7), ("none", None)])
def test_scales_can_be_fixed_or_none(variant: config.VariantConfig, scale: str, start: float | None) -> None:
    encoder, steering = attach(variant, scale=scale, scale_init=start)
    assert "scales" not in dict(steering.named_parameters()) and "scales" not in steering.state_dict()
    assert steering.scales.tolist() == pytest.approx([start or 1.0] * 3)
    assert encoder(FEATURES, LENGTHS)[0].isfinite().all()


def test_losses_are_of_valid_frames_and_in_training_only(variant: config.VariantConfig) -> None:
    encoder, steering = attach(variant, router_aux_loss_coef=1.0, router_z_loss_coef=0.5)
    valid = torch.tensor([30, 17])
    found = []
    for features in (FEATURES, torch.cat([FEATURES, 100 * torch.ones(2, 80, 40)], 2)):
        steering.train()
        steering.reset_losses()
        encoder(features, LENGTHS)
        found.append(steering.losses(lambda width: valid))
    torch.testing.assert_close(found[0], found[1])
    found[0].backward()
    assert all(p.grad is not None for p in steering.router.parameters())
    steering.eval()
    steering.reset_losses()
    encoder(FEATURES, LENGTHS)
    assert steering.losses(lambda width: valid) == 0


def test_an_expert_that_top_k_always_drops_is_called_back(variant: config.VariantConfig) -> None:
    encoder, steering = attach(variant, layers=[0], router_aux_loss_coef=1.0, top_k=2)
    router: Any = steering.router
    with torch.no_grad():
        router.linear.bias.copy_(torch.tensor([90.0, 90.0, 80.0, 80.0]))
    steering.train()
    encoder(FEATURES, LENGTHS)
    loss: Any = steering.losses(lambda width: torch.full((2,), width))
    loss.backward()
    assert (router.linear.bias.grad[2:] < 0).all()


# hook points


@pytest.mark.parametrize(
    ("layers", "post", "expected"),
    [
        ("all", True, [0, 1, 2, 3, 4, 5, None]),
        ("none", True, [None]),
        ("every-2", False, [1, 3, 5]),
        ("every-4", False, [3]),
        ("first-2", False, [0, 1]),
        ("last-2", True, [4, 5, None]),
        ([3, 1], False, [1, 3]),
    ],
)
def test_hook_points_are_in_the_order_of_the_frames(
    make_steering: Make, layers: Any, post: bool, expected: list[int | None]
) -> None:
    found = hook_points(make_steering(layers=layers, post_encoder=post), 6)
    assert [point.layer for point in found] == expected and {point.experts for point in found} == {4}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"layers": [1, 2], "num_experts": [2, 4, 8]},
            r"num_experts: found 3 numbers, but 2 hook points .*: 1, 2",
        ),
        ({"layers": [1, 6]}, r"steering\.layers: found \[6\], the encoder has layers 0 to 5"),
        ({"layers": "first-6"}, r"steering\.layers: found 'first-6', the encoder has 6 layers; use all"),
    ],
)
def test_impossible_hook_points_are_errors(make_steering: Make, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        hook_points(make_steering(**changes), 6)


def test_each_hook_point_may_have_its_own_number_of_experts(make_steering: Make) -> None:
    found = hook_points(make_steering(layers="last-2", post_encoder=True, num_experts=[2, 4, 8]), 6)
    assert [(str(point), point.experts) for point in found] == [("4", 2), ("5", 4), ("post", 8)]


# routers


@pytest.mark.parametrize("name", ROUTERS)
def test_routers_have_the_declared_size_and_any_number_of_experts(name: str, make_steering: Make) -> None:
    section = make_steering(router=name, **OPTIONS.get(name, {}))
    linear = LAYERS * EXPERTS * (WIDTH + 1)
    expected = {
        "shared": linear,
        "mixed": EXPERTS * (WIDTH + 1) + LAYERS * EXPERTS**2,
        "hierarchical": LAYERS * (2 + EXPERTS) * (WIDTH + 1),
        "progressive": linear + LAYERS * EXPERTS // 2 * WIDTH,
        "static": LAYERS * EXPERTS,
    }
    router = make_router(section, [EXPERTS] * LAYERS, WIDTH)
    assert sum(p.numel() for p in router.parameters()) == expected[name]
    counts = [4, 8, 4]
    router = make_router(section, counts, WIDTH)
    for layer, count in enumerate(counts):
        gates = Gate(section)(router(HIDDEN * 10, layer, torch.randn(count, WIDTH)))
        assert gates.shape == (2, 5, count) and (gates >= 0).all()
        torch.testing.assert_close(gates.sum(-1), torch.ones(2, 5))


def test_a_layers_gradient_reaches_its_slice_only(make_steering: Make) -> None:
    router = Shared(make_steering(), [EXPERTS] * LAYERS, WIDTH)
    all_at_once = router.linear(HIDDEN).unflatten(-1, (LAYERS, EXPERTS))
    torch.testing.assert_close(router(HIDDEN, 1), all_at_once[:, :, 1])
    router(HIDDEN, 1)[..., 0].sum().backward()
    assert router.linear.weight.grad is not None
    used = router.linear.weight.grad.abs().sum(1) > 0
    assert used.nonzero().flatten().tolist() == [EXPERTS]


def test_a_hierarchy_multiplies_gates_of_groups_and_within(make_steering: Make) -> None:
    router: Any = make_router(make_steering(router="hierarchical", groups=2), [EXPERTS] * LAYERS, WIDTH)
    gates = router(HIDDEN, 1).softmax(-1)
    between = router.between(HIDDEN)[..., 2:4].softmax(-1)
    within = router.within(HIDDEN)[..., 4:8].unflatten(-1, (2, 2)).softmax(-1)
    torch.testing.assert_close(gates, (between[..., None] * within).flatten(-2))


def test_a_stage_reads_what_earlier_stages_add(make_steering: Make) -> None:
    router: Any = make_router(make_steering(router="progressive", stages=2), [EXPERTS] * LAYERS, WIDTH)
    gates = router(HIDDEN, 2, VECTORS).softmax(-1)
    weight, bias = router.linear.weight, router.linear.bias
    first = nn.functional.linear(HIDDEN, weight[8:10], bias[8:10]).softmax(-1) / 2
    logits = nn.functional.linear(HIDDEN, weight[10:12], bias[10:12])
    second = (logits + first @ VECTORS[:2] @ router.added[2].T).softmax(-1) / 2
    torch.testing.assert_close(gates, torch.cat([first, second], -1))


def test_a_static_router_ignores_the_frame(make_steering: Make) -> None:
    router = make_router(make_steering(router="static"), [EXPERTS] * LAYERS, WIDTH)
    torch.nn.init.normal_(next(router.parameters()))
    assert torch.equal(router(HIDDEN, 1), router(torch.randn_like(HIDDEN), 1))


# gates


def test_temperature_and_top_k(make_steering: Make) -> None:
    torch.testing.assert_close(Gate(make_steering(temperature=2.5))(LOGITS), (LOGITS / 2.5).softmax(-1))
    gates, full = Gate(make_steering(top_k=2))(LOGITS), LOGITS.softmax(-1)
    assert ((gates > 0).sum(-1) == 2).all()
    kept = full * (gates > 0)
    assert torch.equal(kept.sum(-1), full.topk(2).values.sum(-1))
    torch.testing.assert_close(gates, kept / kept.sum(-1, keepdim=True))


@pytest.mark.parametrize("top_k", [None, 2])
def test_dropout_leaves_experts_out_in_training_only(make_steering: Make, top_k: int | None) -> None:
    gate = Gate(make_steering(gate_dropout=0.5, top_k=top_k)).eval()
    assert torch.equal(gate(LOGITS), Gate(make_steering(top_k=top_k)).eval()(LOGITS))
    gates = gate.train()(LOGITS)
    torch.testing.assert_close(gates.sum(-1), torch.ones(2, 50))
    assert torch.equal(gates.argmax(-1), LOGITS.argmax(-1))  # the largest is never left out
    expected = 0.5 * 5 / 6 if top_k is None else (4 + 0.5) / 6
    assert (gates == 0).float().mean() == pytest.approx(expected, abs=0.06)
    assert not torch.equal(gates, gate(LOGITS))


def test_losses_on_routing() -> None:
    assert load_balancing_loss(torch.eye(4).repeat(8, 1)) == pytest.approx(1)  # even use
    logits = torch.tensor([[200.0, 0, 0, -200]]).repeat(32, 1).requires_grad_(True)
    collapsed = load_balancing_loss(logits.softmax(-1))
    assert collapsed.item() == pytest.approx(4)
    collapsed.backward()
    assert logits.grad is not None and logits.grad.isfinite().all()
    assert z_loss(torch.zeros(5, 4)) == pytest.approx(float(torch.tensor(4.0).log() ** 2))

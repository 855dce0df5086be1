from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from steermoe.models.gating import Gate
from steermoe.models.routers import ROUTERS, PerLayer, Progressive, Shared, make_router

LAYERS, EXPERTS, WIDTH = 3, 4, 6
OPTIONS: dict[str, dict[str, int]] = {"hierarchical": {"groups": 2}, "progressive": {"stages": 2}}
HIDDEN, VECTORS = torch.randn(2, 5, WIDTH), torch.randn(EXPERTS, WIDTH)
Make = Callable[..., Any]


@pytest.fixture(params=ROUTERS)
def section(request: pytest.FixtureRequest, make_steering: Make) -> Any:
    return make_steering(router=request.param, **OPTIONS.get(request.param, {}))


def test_gates_are_shares_that_sum_to_one(section: Any) -> None:
    router = make_router(section, [EXPERTS] * LAYERS, WIDTH)
    for layer in range(LAYERS):
        gates = Gate(section)(router(HIDDEN * 10, layer, VECTORS))
        assert gates.shape == (2, 5, EXPERTS)
        assert (gates >= 0).all()
        torch.testing.assert_close(gates.sum(-1), torch.ones(2, 5))


def test_layers_may_have_different_numbers_of_experts(section: Any) -> None:
    router = make_router(section, [4, 8, 4], WIDTH)
    vectors = [torch.randn(count, WIDTH) for count in (4, 8, 4)]
    gates = [Gate(section)(router(HIDDEN, layer, vectors[layer])) for layer in range(3)]
    assert [each.shape[-1] for each in gates] == [4, 8, 4]


def test_counts_are_those_of_the_docstrings(section: Any) -> None:
    linear = LAYERS * EXPERTS * (WIDTH + 1)
    expected = {
        "shared": linear,
        "per_layer": linear,
        "mixed": EXPERTS * (WIDTH + 1) + LAYERS * EXPERTS**2,
        "hierarchical": LAYERS * (2 + EXPERTS) * (WIDTH + 1),
        "progressive": linear + LAYERS * EXPERTS // 2 * WIDTH,
        "static": LAYERS * EXPERTS,
    }
    if section.router not in expected:
        pytest.skip("how many parameters it has is not written down here")
    router = make_router(section, [EXPERTS] * LAYERS, WIDTH)
    assert sum(p.numel() for p in router.parameters()) == expected[section.router]


def test_a_mixed_router_of_the_papers_size_is_27_times_smaller(make_steering: Make) -> None:
    sizes = []
    for name in ("mixed", "shared"):
        router = make_router(make_steering(router=name, num_experts=8), [8] * 32, 1280)
        sizes.append(sum(p.numel() for p in router.parameters()))
    assert sizes == [12_296, 327_936]


def test_the_shared_router_is_one_linear_per_layer(make_steering: Make) -> None:
    shared = Shared(make_steering(), [EXPERTS] * LAYERS, WIDTH)
    split = PerLayer(make_steering(router="per_layer"), [EXPERTS] * LAYERS, WIDTH)
    with torch.no_grad():
        for layer, linear in enumerate(split.linears):
            assert isinstance(linear, nn.Linear)
            linear.weight.copy_(shared.linear.weight[shared.rows[layer]])
            linear.bias.copy_(shared.linear.bias[shared.rows[layer]])
    for layer in range(LAYERS):
        assert torch.equal(shared(HIDDEN, layer), split(HIDDEN, layer))
    all_at_once = shared.linear(HIDDEN).unflatten(-1, (LAYERS, EXPERTS))
    torch.testing.assert_close(shared(HIDDEN, 1), all_at_once[:, :, 1])


def test_a_layers_gradient_reaches_its_slice_only(make_steering: Make) -> None:
    router = Shared(make_steering(), [EXPERTS] * LAYERS, WIDTH)
    router(HIDDEN, 1)[..., 0].sum().backward()
    assert router.linear.weight.grad is not None
    used = router.linear.weight.grad.abs().sum(1) > 0
    assert used.nonzero().flatten().tolist() == [EXPERTS]


def test_a_hierarchy_multiplies_gates_of_groups_and_within(make_steering: Make) -> None:
    section = make_steering(router="hierarchical", groups=2)
    router: Any = make_router(section, [EXPERTS] * LAYERS, WIDTH)
    gates = router(HIDDEN, 1).softmax(-1)
    between = router.between(HIDDEN)[..., 2:4].softmax(-1)
    within = router.within(HIDDEN)[..., 4:8].unflatten(-1, (2, 2)).softmax(-1)
    torch.testing.assert_close(gates, (between[..., None] * within).flatten(-2))


def test_a_stage_sees_what_those_before_it_add(make_steering: Make) -> None:
    section = make_steering(router="progressive", stages=2)
    router = Progressive(section, [EXPERTS] * LAYERS, WIDTH)
    gates = router(HIDDEN, 2, VECTORS).softmax(-1)
    first = nn.functional.linear(HIDDEN, router.linear.weight[8:10], router.linear.bias[8:10]).softmax(-1) / 2
    added = first @ VECTORS[:2]
    logits = nn.functional.linear(HIDDEN, router.linear.weight[10:12], router.linear.bias[10:12])
    second = (logits + added @ router.added[2].T).softmax(-1) / 2
    torch.testing.assert_close(gates, torch.cat([first, second], -1))


def test_a_static_router_hears_nothing(make_steering: Make) -> None:
    router = make_router(make_steering(router="static"), [EXPERTS] * LAYERS, WIDTH)
    torch.nn.init.normal_(next(router.parameters()))
    assert torch.equal(router(HIDDEN, 1), router(torch.randn_like(HIDDEN), 1))


def test_unknown_routers_are_named(make_steering: Make) -> None:
    with pytest.raises(ValueError, match=r"steering\.router: found 'shard', must be one of: .*shared"):
        make_router(make_steering().model_copy(update={"router": "shard"}), [EXPERTS], WIDTH)

from typing import Any

import pytest
import torch
from torch import nn

from steermoe.config import Steering
from steermoe.models.routers import ROUTERS, SharedRouter, make_router

LAYERS, EXPERTS, WIDTH = 3, 4, 6


def section(**changes: Any) -> Steering:
    values = {
        "num_experts": EXPERTS, "router": "shared", "layers": "all", "scale_init": 0.1, "vector_std": 0.01
    }  # fmt: skip
    return Steering.model_validate(values).model_copy(update=changes)


@pytest.mark.parametrize("name", ROUTERS)
@pytest.mark.parametrize("experts", [1, 4])
def test_gates_sum_to_one(name: str, experts: int) -> None:
    router = make_router(section(router=name, num_experts=experts), LAYERS, WIDTH)
    for layer in range(LAYERS):
        gates = router(torch.randn(2, 5, WIDTH) * 10, layer)
        assert gates.shape == (2, 5, experts)
        assert (gates >= 0).all()
        torch.testing.assert_close(gates.sum(-1), torch.ones(2, 5))


def test_the_shared_router_is_one_linear_per_layer() -> None:
    router = SharedRouter(section(), LAYERS, WIDTH)
    assert sum(p.numel() for p in router.parameters()) == (WIDTH + 1) * EXPERTS * LAYERS
    hidden = torch.randn(2, 5, WIDTH)
    for layer in range(LAYERS):
        single = nn.Linear(WIDTH, EXPERTS)
        rows = range(layer * EXPERTS, (layer + 1) * EXPERTS)
        with torch.no_grad():
            for own, row in enumerate(rows):
                single.weight[own] = router.linear.weight[row]
                single.bias[own] = router.linear.bias[row]
        assert torch.equal(router(hidden, layer), single(hidden).softmax(-1))
    logits = nn.functional.linear(hidden, router.linear.weight, router.linear.bias).unflatten(
        -1, (LAYERS, EXPERTS)
    )
    torch.testing.assert_close(router(hidden, 1), logits[:, :, 1].softmax(-1))


def test_a_layers_gradient_reaches_its_slice_only() -> None:
    router = SharedRouter(section(), LAYERS, WIDTH)
    router(torch.randn(1, 5, WIDTH), 1)[..., 0].sum().backward()
    assert router.linear.weight.grad is not None
    used = router.linear.weight.grad.abs().sum(1) > 0
    assert used.tolist() == [False] * EXPERTS + [True] * EXPERTS + [False] * EXPERTS


def test_unknown_routers_are_named() -> None:
    with pytest.raises(ValueError, match=r"steering\.router: found 'shard', must be one of: .*shared"):
        make_router(section(router="shard"), LAYERS, WIDTH)

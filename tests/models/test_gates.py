from collections.abc import Callable
from typing import Any

import pytest
import torch

from steermoe.models.gating import Gate, load_balancing_loss, z_loss

LOGITS = 3 * torch.randn(2, 50, 6, generator=torch.Generator().manual_seed(1))
Make = Callable[..., Any]


def test_temperature_divides_the_logits(make_steering: Make) -> None:
    gates = Gate(make_steering(temperature=2.5))(LOGITS)
    torch.testing.assert_close(gates, (LOGITS / 2.5).softmax(-1))


def test_top_k_keeps_the_largest_and_shares_among_them(make_steering: Make) -> None:
    gates, full = Gate(make_steering(top_k=2))(LOGITS), LOGITS.softmax(-1)
    assert ((gates > 0).sum(-1) == 2).all()
    torch.testing.assert_close(gates.sum(-1), torch.ones(2, 50))
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
    out = (gates == 0).float().mean()
    expected = 0.5 * 5 / 6 if top_k is None else (4 + 0.5) / 6
    assert out == pytest.approx(expected, abs=0.06)
    assert not torch.equal(gates, gate(LOGITS))


def test_balance_is_one_for_even_use_and_finite_for_collapse() -> None:
    even = torch.eye(4).repeat(8, 1)
    assert load_balancing_loss(even) == pytest.approx(1)
    collapsed = torch.tensor([1.0, 0, 0, 0]).repeat(32, 1)
    assert load_balancing_loss(collapsed) == pytest.approx(4)
    logits = torch.tensor([[200.0, 0, 0, -200]]).repeat(32, 1).requires_grad_(True)
    load_balancing_loss(logits.softmax(-1)).backward()
    assert logits.grad is not None and logits.grad.isfinite().all()


def test_balance_pushes_against_the_favourite() -> None:
    logits = torch.tensor([[1.0, 0, 0, 0]]).repeat(32, 1).requires_grad_(True)
    load_balancing_loss(logits.softmax(-1)).backward()
    assert logits.grad is not None and (logits.grad[:, 0] > 0).all() and (logits.grad[:, 1:] < 0).all()


def test_z_loss_is_the_square_of_the_normaliser() -> None:
    assert z_loss(torch.zeros(5, 8)) == pytest.approx(float(torch.tensor(8.0).log()) ** 2)
    assert z_loss(LOGITS[0] - LOGITS[0].logsumexp(-1, keepdim=True)) == pytest.approx(0, abs=1e-9)

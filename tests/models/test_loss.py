"""A loss that is computed some tokens at a time is the loss of all of them."""

from functools import partial
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy, linear

from steermoe.models import loss as losses
from steermoe.models.loss import hidden_loss, target_loss

TOKENS, WIDTH, VOCABULARY = 23, 16, 300


def problem(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    head = torch.randn(VOCABULARY, WIDTH, generator=generator).to(dtype)
    hidden = torch.randn(TOKENS, WIDTH, generator=generator).to(dtype)
    targets = torch.randint(VOCABULARY, (TOKENS,), generator=generator)
    targets[::2] = linear(hidden, head).argmax(-1)[::2]  # half of them right
    return hidden, targets, head


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_loss_and_gradient_are_those_of_torch(dtype: torch.dtype) -> None:
    """Targets without a chance among them."""
    generator = torch.Generator().manual_seed(2)
    logits = 4 * torch.randn(TOKENS, VOCABULARY, generator=generator)
    targets = torch.randint(VOCABULARY, (TOKENS,), generator=generator)
    logits[0], logits[1, targets[1]], logits[2] = -3.0, -300.0, 300.0
    found = []
    for way in (lambda x: target_loss(x, targets).loss, lambda x: cross_entropy(x.float(), targets)):
        given = logits.to(dtype).requires_grad_()
        loss = way(given)
        assert loss is not None
        (gradient,) = torch.autograd.grad(7 * loss, given)
        found.append((loss, gradient))
    torch.testing.assert_close(*found)
    assert found[0][1].dtype is dtype and found[0][0].dtype is torch.float32
    right = target_loss(logits, targets).num_correct
    assert right == (logits.argmax(-1) == targets).sum()


@pytest.mark.parametrize("tokens", [1, 5, 22, 23])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_chunks_make_the_loss_and_gradient_of_the_whole(
    tokens: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden, targets, head = problem(dtype)
    sizes: list[int] = []

    def score(rows: torch.Tensor) -> torch.Tensor:
        sizes.append(len(rows))
        return linear(rows, head)

    monkeypatch.setattr(losses, "AT_A_TIME", tokens * VOCABULARY)
    ours = hidden.clone().requires_grad_()
    found = hidden_loss(ours, targets, score, VOCABULARY)
    assert found.loss is not None
    (found.loss * 3).backward()
    whole = hidden.clone().requires_grad_()
    expected = target_loss(linear(whole, head), targets)
    assert expected.loss is not None
    (expected.loss * 3).backward()

    assert max(sizes) <= tokens and sum(sizes) == TOKENS
    torch.testing.assert_close(found.loss, expected.loss)
    assert ours.grad is not None and whole.grad is not None and ours.grad.dtype == dtype
    tolerance: dict[str, Any] = {"atol": 1e-2, "rtol": 1.6e-2} if dtype is torch.bfloat16 else {}
    torch.testing.assert_close(ours.grad, whole.grad, **tolerance)
    assert found.num_tokens == TOKENS and found.num_correct == expected.num_correct
    assert TOKENS > int(expected.num_correct or 0) >= TOKENS // 2


def test_chunks_without_gradients_leave_none(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, targets, head = problem()
    monkeypatch.setattr(losses, "AT_A_TIME", VOCABULARY)
    with torch.no_grad():
        found = hidden_loss(hidden, targets, partial(linear, weight=head), VOCABULARY)
    assert found.loss is not None and not found.loss.requires_grad
    torch.testing.assert_close(found.loss, target_loss(linear(hidden, head), targets).loss)


def test_a_scaled_loss_is_not_cut_for_its_scale_comes_later(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, targets, head = problem()
    monkeypatch.setattr(losses, "AT_A_TIME", VOCABULARY)
    seen = []
    with torch.autocast("cpu", torch.float16):
        hidden_loss(hidden, targets, lambda rows: seen.append(len(rows)) or linear(rows, head), VOCABULARY)
    assert seen == [TOKENS]

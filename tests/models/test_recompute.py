from collections.abc import Callable
from typing import Any

import pytest
import torch

from steermoe.models.steermoe import SteerMoE


@pytest.mark.parametrize("method", ["steering", "lora", "steering+lora+llm_lora"])
def test_loss_and_gradients_are_the_same_with_fewer_activations_kept(
    method: str, tiny_variant: Callable[..., Any], make_batch: Callable[..., Any]
) -> None:
    kept, gradients, losses = [], [], []
    for recompute in (False, True):
        model = SteerMoE.from_config(
            tiny_variant(method, {"training.gradient_checkpointing": recompute})
        ).train()
        saved = 0

        def count(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal saved
            saved += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            loss = model(**make_batch()).loss
        kept.append(saved)
        loss.backward()
        losses.append(loss.detach())
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    assert torch.equal(*losses)
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)
    assert kept[1] < 0.5 * kept[0]


@torch.no_grad()
def test_generation_is_as_without(
    tiny_variant: Callable[..., Any], make_batch: Any, heard: Any, greedy: Any
) -> None:
    answers = [
        SteerMoE.from_config(
            tiny_variant("steering", {"training.gradient_checkpointing": recompute})
        ).generate(heard(make_batch()), generation=greedy(4))
        for recompute in (False, True)
    ]
    assert answers[0] == answers[1]


def test_a_chat_s_beginning_is_trained_with_too(
    tiny_variant: Callable[..., Any], make_batch: Callable[..., Any]
) -> None:
    found = []
    for recompute in (False, True):
        model = SteerMoE.from_config(
            tiny_variant("steering", {"training.gradient_checkpointing": recompute})
        ).train()
        loss = model(**make_batch(prefix=(17, 301, 5, 44, 9))).loss
        loss.backward()
        found.append(
            (loss.detach(), {name: p.grad for name, p in model.named_parameters() if p.requires_grad})
        )
    torch.testing.assert_close(*found)

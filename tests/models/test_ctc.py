"""CTC through the embedding table of an LLM, against torch's own on made scores, and in training."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from steermoe.models.ctc import CtcHead
from steermoe.models.steermoe import SteerMoE

VOCABULARY, WIDTH, END = 40, 64, 3
ENDS = torch.tensor([END])


@pytest.fixture
def table() -> nn.Embedding:
    torch.manual_seed(0)
    return nn.Embedding(VOCABULARY, WIDTH)


def said(table: nn.Embedding, head: CtcHead, *classes: int | None) -> Tensor:
    """Audio that says a token at each position; None is the blank."""
    with torch.no_grad():
        head.blank.normal_()
        head.scale.fill_(1.0)
    return torch.stack([head.blank if c is None else table.weight[c] for c in classes]).detach()


def test_embeddings_of_tokens_are_read_as_these_tokens(table: nn.Embedding) -> None:
    head = CtcHead(table.weight)
    audio = said(table, head, None, 7, 7, None, 7, 12, 30, None)
    lengths, targets = torch.tensor([8, 6]), torch.tensor([[7, 7, 12, 30, END], [7, 7, 12, END, -1]])
    batch = torch.stack([audio, audio])
    assert head.read(batch, lengths, table) == [[7, 7, 12, 30], [7, 7, 12]]
    loss = head(batch, lengths, table, targets, torch.tensor([5, 4]), ENDS)
    assert 0 <= loss < 0.01
    head.restrict(torch.tensor([30, 12, 7, 12]))
    assert head.read(batch, lengths, table) == [[7, 7, 12, 30], [7, 7, 12]]


def test_loss_is_that_of_a_sum_over_all_alignments(table: nn.Embedding) -> None:
    """Two tokens over three positions have five alignments: ab_ a_b _ab aab abb."""
    head = CtcHead(table.weight)
    audio = torch.randn(1, 3, WIDTH)
    p = head.log_probs(audio, table)[0].exp()
    blank, a, b = 0, 9 + 1, 21 + 1
    paths = [(a, b, blank), (a, blank, b), (blank, a, b), (a, a, b), (a, b, b)]
    expected = -torch.stack([p[range(3), path].prod() for path in paths]).sum().log() / 3
    found = head(audio, torch.tensor([3]), table, torch.tensor([[9, 21, END]]), torch.tensor([3]), ENDS)
    torch.testing.assert_close(found, expected)


def test_a_row_that_cannot_be_aligned_adds_nothing(table: nn.Embedding) -> None:
    head = CtcHead(table.weight)
    audio = torch.randn(1, 2, WIDTH, requires_grad=True)
    loss = head(audio, torch.tensor([2]), table, torch.tensor([[5, 6, 7, END]]), torch.tensor([4]), ENDS)
    loss.backward()
    assert loss == 0 and audio.grad is not None and not audio.grad.any()


def test_training_with_it_runs_the_llm_only_after_its_steps(tiny_variant: Any, make_batch: Any) -> None:
    variant = tiny_variant("steering", {"training.ctc": {"steps": 2, "coef": 0.5}, "training.max_steps": 6})
    model = SteerMoE.from_config(variant).train()
    given, calls = make_batch(), []
    model.llm.base_model.register_forward_hook(lambda *_: calls.append(0))
    alone = model(**given, ctc_only=True)
    assert not calls and alone.num_tokens == given.target_lengths.sum()
    alone.loss.backward()
    assert not [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    both = model(**given)
    assert len(calls) == 1
    torch.testing.assert_close(both.loss, model.eval()(**given).loss + 0.5 * alone.loss)

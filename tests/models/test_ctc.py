"""CTC through the embedding table of an LLM, against torch's own on made scores, and in training."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from steermoe.models.ctc import CtcHead, Spelling
from steermoe.models.steermoe import SteerMoE

VOCABULARY, WIDTH, END = 40, 64, 3
ENDS = torch.tensor([END])


@pytest.fixture
def table() -> nn.Embedding:
    torch.manual_seed(0)
    return nn.Embedding(VOCABULARY, WIDTH)


@pytest.fixture
def head(table: nn.Embedding) -> CtcHead:
    """A head that can say every token."""
    head = CtcHead(table.weight)
    head.allow(torch.arange(VOCABULARY))
    return head


def said(table: nn.Embedding, head: CtcHead, *classes: int | None) -> Tensor:
    """Audio that says a token at each position; None is the blank."""
    with torch.no_grad():
        head.blank.normal_()
        head.scale.fill_(1.0)
    return torch.stack([head.blank if c is None else table.weight[c] for c in classes]).detach()


def test_embeddings_of_tokens_are_read_as_these_tokens(table: nn.Embedding, head: CtcHead) -> None:
    audio = said(table, head, None, 7, 7, None, 7, 12, 30, None)
    lengths, targets = torch.tensor([8, 6]), torch.tensor([[7, 7, 12, 30, END], [7, 7, 12, END, -1]])
    batch = torch.stack([audio, audio])
    assert head.read(batch, lengths, table) == [[7, 7, 12, 30], [7, 7, 12]]
    loss = head(batch, lengths, table, targets, torch.tensor([5, 4]), ENDS)
    assert 0 <= loss < 0.01
    few = CtcHead(table.weight)
    few.allow(torch.tensor([30, 12, 7, 12]))
    few.load_state_dict(head.state_dict() | {"spoken": few.spoken})
    assert few.tokens.tolist() == [7, 12, 30]
    assert few.read(batch, lengths, table) == [[7, 7, 12, 30], [7, 7, 12]]


def test_soft_tokens_are_the_embeddings_of_what_is_said(table: nn.Embedding, head: CtcHead) -> None:
    """Where the posteriors are sharp; blanks are left out, and the order is kept."""
    audio = said(table, head, None, 7, 7, None, 12, 30, None)
    batch = torch.stack([audio, audio, head.blank.detach().expand_as(audio)])
    with torch.no_grad():
        found, lengths = head.soft_tokens(batch, torch.tensor([7, 4, 7]), table)
    assert lengths.tolist() == [4, 2, 1]
    torch.testing.assert_close(found[0, :4], table.weight[[7, 7, 12, 30]], atol=1e-2, rtol=0)
    torch.testing.assert_close(found[1, :2], table.weight[[7, 7]], atol=1e-2, rtol=0)


def test_soft_tokens_are_means_weighted_by_posteriors(table: nn.Embedding, head: CtcHead) -> None:
    audio = torch.randn(1, 1, WIDTH, requires_grad=True)
    found, lengths = head.soft_tokens(audio, torch.tensor([1]), table)
    posteriors = head.log_probs(audio, table)[0, 0, 1:].softmax(-1)
    torch.testing.assert_close(found[0, 0], posteriors @ table.weight)
    found.sum().backward()
    assert lengths.tolist() == [1] and audio.grad is not None and audio.grad.any()


def test_loss_is_that_of_a_sum_over_all_alignments(table: nn.Embedding, head: CtcHead) -> None:
    """Two tokens over three positions have five alignments: ab_ a_b _ab aab abb."""
    audio = torch.randn(1, 3, WIDTH)
    p = head.log_probs(audio, table)[0].exp()
    blank, a, b = 0, 9 + 1, 21 + 1
    paths = [(a, b, blank), (a, blank, b), (blank, a, b), (a, a, b), (a, b, b)]
    expected = -torch.stack([p[range(3), path].prod() for path in paths]).sum().log() / 3
    found = head(audio, torch.tensor([3]), table, torch.tensor([[9, 21, END]]), torch.tensor([3]), ENDS)
    torch.testing.assert_close(found, expected)


def test_sampled_tokens_stand_for_all(table: nn.Embedding) -> None:
    """The mean over many draws is the loss over all tokens, and evaluation counts all of them."""
    head = CtcHead(table.weight, num_sampled=12)
    head.allow(torch.arange(VOCABULARY))
    given = torch.randn(2, 6, WIDTH), torch.tensor([6, 5]), table, torch.tensor([[9, 21, END], [4, 4, END]])
    lengths = torch.tensor([3, 3])
    with torch.no_grad():
        drawn = torch.stack([head.train()(*given, lengths, ENDS) for _ in range(400)])
        whole = head.eval()(*given, lengths, ENDS)
    assert drawn.std() > 0.01
    torch.testing.assert_close(drawn.mean(), whole, rtol=0.03, atol=0)


def test_tokens_of_like_spelling_share_a_vector() -> None:
    torch.manual_seed(0)
    texts = [" The", " the", "the", " then", " mix", "...", ""]
    vectors = Spelling(texts, torch.randn(len(texts), WIDTH))(torch.arange(len(texts))).detach()
    torch.testing.assert_close(vectors[0], vectors[1])
    near, far = (torch.cosine_similarity(vectors[1], vectors[n], dim=0) for n in (3, 4))
    assert near > 0.3 > far


def test_a_word_that_was_never_trained_is_recognised_by_its_letters() -> None:
    """Of two such words, the one that is spelled like what was trained has the higher score."""
    torch.manual_seed(0)
    texts = [" then", " mix", " them", " fox"]
    table, audio, one = nn.Embedding(4, WIDTH), torch.randn(1, 1, WIDTH), torch.tensor([1])
    nn.init.zeros_(table.weight[2:])
    head = CtcHead(table.weight, texts)
    head.allow(torch.tensor([0, 1]))
    optimizer = torch.optim.Adam(head.parameters(), lr=1e-2)
    for _ in range(30):
        loss = head(audio, one, table, torch.tensor([[0]]), one, ENDS)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    head.allow(torch.arange(4))
    scores = head.log_probs(audio, table)[0, 0, 1:]
    assert scores[2] > scores[3] + 1


def test_a_row_that_cannot_be_aligned_adds_nothing(table: nn.Embedding, head: CtcHead) -> None:
    audio = torch.randn(1, 2, WIDTH, requires_grad=True)
    loss = head(audio, torch.tensor([2]), table, torch.tensor([[5, 6, 7, END]]), torch.tensor([4]), ENDS)
    loss.backward()
    assert loss == 0 and audio.grad is not None and not audio.grad.any()


@pytest.mark.parametrize("soft_tokens", [False, True])
def test_training_with_it_runs_the_llm_only_after_its_steps(
    soft_tokens: bool, tiny_variant: Any, make_batch: Any
) -> None:
    ctc = {"steps": 2, "coef": 0.5, "soft_tokens": soft_tokens, "spelling": True, "num_sampled": 8}
    variant = tiny_variant("steering", {"training.ctc": ctc, "training.max_steps": 6})
    model = SteerMoE.from_config(variant).train()
    given, calls = make_batch(), []
    assert model.ctc is not None
    model.ctc.allow(given.target_ids.clamp(min=0))
    model.llm.base_model.register_forward_hook(lambda *_: calls.append(0))
    alone = model(**given, ctc_only=True)
    assert not calls and alone.num_tokens == given.target_lengths.sum()
    alone.loss.backward()
    assert not [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    both = model(**given)
    assert len(calls) == 1
    torch.testing.assert_close(both.loss, model.eval()(**given).loss + 0.5 * alone.loss)

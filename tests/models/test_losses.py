"""The loss of the labels and of a teacher, against torch's own losses, whole and in chunks of tokens."""

from functools import partial
from typing import Any

import pytest
import torch
from torch.nn.functional import cosine_embedding_loss, cross_entropy, kl_div, linear, pad

from steermoe.config import Distillation
from steermoe.models import losses
from steermoe.models.losses import Lesson, distance, divergence, hidden_loss

TOKENS, WIDTH, TEACHERS, VOCABULARY = 23, 16, 12, 300


def section(logits: float = 1.0, temperature: float | None = 2.0, hidden: float = 0.0) -> Distillation:
    values = {"teacher": "folder", "logits": logits, "temperature": temperature, "hidden": hidden}
    return Distillation.model_validate(values)


def drawn(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def whole(teacher: torch.Tensor, student: torch.Tensor, temperature: float) -> torch.Tensor:
    """The divergence by torch's own function, in float64."""
    given, own = teacher.double() / temperature, student.double() / temperature
    return temperature**2 * kl_div(own.log_softmax(-1), given.softmax(-1), reduction="sum")


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_divergence_and_its_gradient_are_torchs(temperature: float) -> None:
    teacher, student = drawn(TOKENS, VOCABULARY), drawn(TOKENS, VOCABULARY, seed=2).requires_grad_()
    again = student.detach().clone().requires_grad_()
    found, expected = divergence(teacher, student, temperature), whole(teacher, again, temperature)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    gradients = torch.autograd.grad(found, student)[0], torch.autograd.grad(expected, again)[0]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


def test_entries_beyond_the_shorter_vocabulary_do_not_count() -> None:
    """As in Qwen2.5, whose sizes pad the same tokenizer's table to different lengths."""
    teacher, student = drawn(TOKENS, VOCABULARY), drawn(TOKENS, VOCABULARY, seed=2)
    expected = divergence(teacher, student, 2.0)
    assert torch.equal(divergence(pad(teacher, (0, 7), value=3.0), student, 2.0), expected)
    assert torch.equal(divergence(teacher, pad(student, (0, 7), value=3.0), 2.0), expected)


def test_distance_is_torchs_whatever_the_norms() -> None:
    teacher, student = drawn(TOKENS, WIDTH), drawn(TOKENS, WIDTH, seed=2)
    expected = cosine_embedding_loss(student, teacher, torch.ones(TOKENS), reduction="sum")
    torch.testing.assert_close(distance(teacher, student), expected)
    torch.testing.assert_close(distance(3 * teacher, 0.5 * student), expected)


TAUGHT = [None, section(0.7, 2.0, 0.0), section(0.0, None, 0.4), section(0.7, 3.0, 0.4)]


@pytest.mark.parametrize("learned", TAUGHT, ids=["labels", "logits", "hidden", "both"])
@pytest.mark.parametrize("tokens", [1, 22, 23])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_chunks_make_the_loss_and_gradient_of_the_whole(
    learned: Distillation | None, tokens: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    head, taught_head = (drawn(VOCABULARY, WIDTH, seed=seed, dtype=dtype) / 4 for seed in (3, 4))
    hidden, taught = (drawn(TOKENS, WIDTH, seed=seed, dtype=dtype) for seed in (5, 6))
    targets = torch.randint(VOCABULARY, (TOKENS,), generator=torch.Generator().manual_seed(7))
    sizes: list[int] = []

    def score(rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        sizes.append(len(rows))
        return linear(rows, weight)

    lesson = None if learned is None else Lesson(learned, taught, partial(linear, weight=taught_head))
    monkeypatch.setattr(losses, "AT_A_TIME", (1 if lesson is None else 2) * tokens * VOCABULARY)
    ours = hidden.clone().requires_grad_()
    found = hidden_loss(ours, targets, partial(score, weight=head), VOCABULARY, lesson)
    assert found.loss is not None
    (found.loss * 3).backward()

    own = hidden.clone().requires_grad_()
    scores = linear(own, head)
    labels, correct = cross_entropy(scores.float(), targets), (scores.argmax(-1) == targets).sum()
    added = labels.new_zeros((), dtype=torch.float64)
    if learned is not None and learned.temperature is not None:
        logits = linear(taught, taught_head), linear(own, head)
        added = added + learned.logits * whole(*logits, learned.temperature)
    if learned is not None and learned.hidden:
        similarity = torch.cosine_similarity(own.double(), taught.double(), dim=-1)
        added = added + learned.hidden * (1 - similarity).sum()
    expected = labels + added / TOKENS
    (expected * 3).backward()

    assert max(sizes) <= tokens
    tolerance: dict[str, Any] = {"atol": 1e-5, "rtol": 1e-4}
    if dtype is torch.bfloat16:
        tolerance = {"atol": 1e-2, "rtol": 1.6e-2}
    torch.testing.assert_close(found.loss.double(), expected, **tolerance)
    assert (found.num_tokens, found.num_correct) == (TOKENS, correct)
    if learned is None:
        assert found.distillation is None
    else:
        assert found.distillation is not None and not found.distillation.requires_grad
        torch.testing.assert_close(found.distillation.double(), (added / TOKENS).detach(), **tolerance)
    assert ours.grad is not None and own.grad is not None and ours.grad.dtype == dtype
    torch.testing.assert_close(ours.grad, own.grad, **tolerance)


def test_a_student_of_another_width_learns_from_logits_alone() -> None:
    taught = drawn(TOKENS, TEACHERS)
    lesson = Lesson(section(), taught, partial(linear, weight=drawn(VOCABULARY, TEACHERS, seed=2)))
    hidden, head = drawn(TOKENS, WIDTH, seed=3), drawn(VOCABULARY, WIDTH, seed=4)
    targets = torch.zeros(TOKENS, dtype=torch.long)
    plain = hidden_loss(hidden, targets, partial(linear, weight=head), VOCABULARY)
    found = hidden_loss(hidden, targets, partial(linear, weight=head), VOCABULARY, lesson)
    assert found.loss is not None and plain.loss is not None and found.distillation is not None
    torch.testing.assert_close(found.loss, plain.loss + found.distillation)
    assert found.distillation > 0 and found.num_correct == plain.num_correct


def test_chunks_without_gradients_leave_none(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, head = drawn(TOKENS, WIDTH), drawn(VOCABULARY, WIDTH, seed=2)
    targets = torch.zeros(TOKENS, dtype=torch.long)
    monkeypatch.setattr(losses, "AT_A_TIME", VOCABULARY)
    with torch.no_grad():
        found = hidden_loss(hidden, targets, partial(linear, weight=head), VOCABULARY)
    assert found.loss is not None and not found.loss.requires_grad
    torch.testing.assert_close(found.loss, cross_entropy(linear(hidden, head), targets))

"""What is learned from a teacher, against torch's own losses, whole and some tokens at a time."""

from functools import partial
from typing import Any

import pytest
import torch
from torch.nn.functional import cosine_embedding_loss, kl_div, linear, pad

from steermoe.config import Distillation
from steermoe.models import loss as losses
from steermoe.models.lesson import Lesson, distance, divergence
from steermoe.models.loss import hidden_loss, target_loss

TOKENS, WIDTH, TEACHERS, VOCABULARY = 23, 16, 12, 300


def section(logits: float = 1.0, temperature: float | None = 2.0, hidden: float = 0.0) -> Distillation:
    values = {"teacher": "folder", "logits": logits, "temperature": temperature, "hidden": hidden}
    return Distillation.model_validate(values)


def drawn(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def whole(teacher: torch.Tensor, student: torch.Tensor, temperature: float) -> torch.Tensor:
    """By torch's own function, in float64, as its documentation has it."""
    given, own = teacher.double() / temperature, student.double() / temperature
    return temperature**2 * kl_div(own.log_softmax(-1), given.softmax(-1), reduction="sum")


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 8.0])
def test_divergence_and_its_gradient_are_torchs(temperature: float) -> None:
    teacher, student = drawn(TOKENS, VOCABULARY), drawn(TOKENS, VOCABULARY, seed=2).requires_grad_()
    again = student.detach().clone().requires_grad_()
    found, expected = divergence(teacher, student, temperature), whole(teacher, again, temperature)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    found.backward()
    expected.backward()
    assert student.grad is not None and again.grad is not None
    torch.testing.assert_close(student.grad, again.grad, rtol=1e-4, atol=1e-6)


def test_at_high_temperatures_logits_are_matched_themselves() -> None:
    """Hinton et al. 2015, equation 4: the gradient tends to the difference of centred logits over V."""
    teacher, student = drawn(TOKENS, VOCABULARY), drawn(TOKENS, VOCABULARY, seed=2).requires_grad_()
    divergence(teacher, student, 1000.0).backward()
    centred = [logits - logits.mean(-1, keepdim=True) for logits in (student.detach(), teacher)]
    assert student.grad is not None
    torch.testing.assert_close(student.grad, (centred[0] - centred[1]) / VOCABULARY, rtol=0.02, atol=1e-4)


def test_at_low_temperatures_only_the_likeliest_token_counts() -> None:
    teacher, student = drawn(TOKENS, VOCABULARY), drawn(TOKENS, VOCABULARY, seed=2)
    cold = 1e-3
    gaps = student.max(-1).values - student.gather(-1, teacher.argmax(-1)[:, None])[:, 0]
    torch.testing.assert_close(divergence(teacher, student, cold) / cold, gaps.sum(), rtol=0.01, atol=0)


def test_rows_behind_the_shorter_vocabulary_do_not_count() -> None:
    """As of Qwen2.5, whose sizes pad the same tokenizer's table to different lengths."""
    teacher, student = drawn(TOKENS, VOCABULARY), drawn(TOKENS, VOCABULARY, seed=2)
    expected = divergence(teacher, student, 2.0)
    assert torch.equal(divergence(pad(teacher, (0, 7), value=3.0), student, 2.0), expected)
    assert torch.equal(divergence(teacher, pad(student, (0, 7), value=3.0), 2.0), expected)


def test_distance_is_torchs_and_knows_no_length() -> None:
    teacher, student = drawn(TOKENS, WIDTH), drawn(TOKENS, WIDTH, seed=2)
    expected = cosine_embedding_loss(student, teacher, torch.ones(TOKENS), reduction="sum")
    torch.testing.assert_close(distance(teacher, student), expected)
    torch.testing.assert_close(distance(3 * teacher, 0.5 * student), expected)


def test_who_equals_its_teacher_has_nothing_to_learn() -> None:
    hidden, head = drawn(TOKENS, WIDTH), drawn(VOCABULARY, WIDTH, seed=2)
    score = partial(linear, weight=head)
    assert Lesson(section(hidden=0.0), hidden, score)(hidden, score(hidden), slice(None)) == 0
    beside = Lesson(section(hidden=1.0), hidden, score)(hidden, score(hidden), slice(None))
    assert abs(float(beside)) < 1e-5 * TOKENS


PARTS = [section(0.7, 2.0, 0.0), section(0.0, None, 0.4), section(0.7, 3.0, 0.4)]


@pytest.mark.parametrize("learned", PARTS, ids=["logits", "hidden", "both"])
@pytest.mark.parametrize("tokens", [1, 5, 22, 23])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_chunks_make_the_loss_and_gradient_of_the_whole(
    learned: Distillation, tokens: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    head, taught_head = (drawn(VOCABULARY, WIDTH, seed=seed, dtype=dtype) / 4 for seed in (3, 4))
    hidden, taught = (drawn(TOKENS, WIDTH, seed=seed, dtype=dtype) for seed in (5, 6))
    targets = torch.randint(VOCABULARY, (TOKENS,), generator=torch.Generator().manual_seed(7))
    sizes: list[int] = []

    def score(rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        sizes.append(len(rows))
        return linear(rows, weight)

    monkeypatch.setattr(losses, "AT_A_TIME", 2 * tokens * VOCABULARY)
    ours = hidden.clone().requires_grad_()
    lesson = Lesson(learned, taught, partial(score, weight=taught_head))
    found = hidden_loss(ours, targets, partial(score, weight=head), VOCABULARY, lesson)
    assert found.loss is not None and found.distillation is not None
    (found.loss * 3).backward()

    own = hidden.clone().requires_grad_()
    labels = target_loss(linear(own, head), targets).loss
    assert labels is not None
    added = labels.new_zeros((), dtype=torch.float64)
    if learned.temperature is not None:
        added = added + learned.logits * whole(
            linear(taught, taught_head), linear(own, head), learned.temperature
        )
    if learned.hidden:
        added = (
            added
            + learned.hidden * (1 - torch.cosine_similarity(own.double(), taught.double(), dim=-1)).sum()
        )
    expected = labels + added / TOKENS
    (expected * 3).backward()

    assert max(sizes) <= tokens and sum(sizes) == TOKENS * (1 + (learned.temperature is not None))
    tolerance: dict[str, Any] = {"atol": 1e-5, "rtol": 1e-4}
    if dtype is torch.bfloat16:
        tolerance = {"atol": 1e-2, "rtol": 1.6e-2}
    torch.testing.assert_close(found.loss.double(), expected, **tolerance)
    torch.testing.assert_close(found.distillation.double(), (added / TOKENS).detach(), **tolerance)
    assert not found.distillation.requires_grad
    assert ours.grad is not None and own.grad is not None
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
    assert plain.distillation is None

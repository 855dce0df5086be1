"""Batches as the collator makes them, with random features and ids, and models over the tiny base models."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch.nn.utils.rnn import pad_sequence

from steermoe.data.dataset import Batch
from steermoe.models import chat, inference

FRAMES = (37, 160, 5, 98)  # feature frames of the rows: odd, even, shorter than a pooling window
MakeBatch = Callable[..., Batch]


@pytest.fixture(autouse=True)
def noise_is_speech(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random models are given noise, which the real rule (test_inference.py) would not let through."""
    if not getattr(request.module, "REAL_SPEECH", False):
        for module in (inference, chat):
            monkeypatch.setattr(module, "unanswerable", lambda *_: False)


@torch.no_grad()
def stirred(model: Any, by: float = 0.3) -> Any:
    """The model away from its initial values, at which steering and LoRA do next to nothing."""
    generator = torch.Generator().manual_seed(9)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and "projection" not in name:
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=by)
    return model


@pytest.fixture(scope="session")
def make_batch() -> MakeBatch:
    """`make_batch(frames, prompts, targets, rows, prefix)`: a row depends on its lengths and number only."""

    def make(
        frames: Sequence[int] = FRAMES,
        prompts: Sequence[int] = (4, 2, 7, 3),
        targets: Sequence[int] = (3, 6, 1, 2),
        rows: Sequence[int] | None = None,
        prefix: Sequence[int] = (),
        **videos: torch.Tensor,
    ) -> Batch:
        features, prompt_ids, target_ids = [], [], []
        for row in range(len(frames)) if rows is None else rows:
            generator = torch.Generator().manual_seed(row)
            features.append(torch.randn(frames[row], 80, generator=generator))
            prompt_ids.append(torch.randint(1, 300, (prompts[row],), generator=generator))
            target_ids.append(torch.randint(1, 300, (targets[row],), generator=generator))
        return Batch(
            features=pad_sequence(features, batch_first=True).transpose(1, 2),
            feature_lengths=torch.tensor([len(x) for x in features]),
            prefix_ids=torch.tensor([list(prefix)] * len(features), dtype=torch.long),
            prefix_lengths=torch.full((len(features),), len(prefix)),
            prompt_ids=pad_sequence(prompt_ids, batch_first=True),
            prompt_lengths=torch.tensor([len(x) for x in prompt_ids]),
            target_ids=pad_sequence(target_ids, batch_first=True, padding_value=-100),
            target_lengths=torch.tensor([len(x) for x in target_ids]),
            **videos,
        )

    return make

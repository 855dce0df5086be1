"""Batches as the collator makes them, with random features and ids, and models over the tiny base models."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch.nn.utils.rnn import pad_sequence

from steermoe.data.dataset import Batch
from steermoe.models import chat, trust
from steermoe.models import inference as answers

Batch = dict[str, torch.Tensor]
FRAMES = (37, 160, 5, 98)  # feature frames of the rows: odd, even, shorter than a pooling window


@pytest.fixture(autouse=True)
def noise_is_speech(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random models are given noise, which the real rule (tests/models/test_trust.py) would not let through."""
    monkeypatch.setattr(trust, "unanswerable", lambda *_: False)
    for module in (answers, chat):
        monkeypatch.setattr(module, "unanswerable", trust.unanswerable)


@pytest.fixture(scope="session")
def make_batch() -> Callable[..., Batch]:
    """`make_batch(frames, prompts, targets, rows, prefix)`: a row depends on its lengths and number only."""

    def make(
        frames: Sequence[int] = FRAMES,
        prompts: Sequence[int] = (4, 2, 7, 3),
        targets: Sequence[int] = (3, 6, 1, 2),
        rows: Sequence[int] | None = None,
        prefix: Sequence[int] = (),
    ) -> Batch:
        features, prompt_ids, target_ids = [], [], []
        for row in range(len(frames)) if rows is None else rows:
            generator = torch.Generator().manual_seed(row)
            features.append(torch.randn(frames[row], 80, generator=generator))
            prompt_ids.append(torch.randint(1, 300, (prompts[row],), generator=generator))
            target_ids.append(torch.randint(1, 300, (targets[row],), generator=generator))
        return {
            "features": pad_sequence(features, batch_first=True).transpose(1, 2),
            "feature_lengths": torch.tensor([len(x) for x in features]),
            "prefix_ids": torch.tensor([list(prefix)] * len(features), dtype=torch.long),
            "prefix_lengths": torch.full((len(features),), len(prefix)),
            "prompt_ids": pad_sequence(prompt_ids, batch_first=True),
            "prompt_lengths": torch.tensor([len(x) for x in prompt_ids]),
            "target_ids": pad_sequence(target_ids, batch_first=True, padding_value=-100),
            "target_lengths": torch.tensor([len(x) for x in target_ids]),
        }

    return make


@pytest.fixture(scope="session")
def heard() -> Callable[[Batch], Batch]:
    """The part of a batch that `generate` takes."""
    return Batch.of

"""The order of the training data: the same for every variant with the same seed, data and budget.

Several processes share each batch, row by row. One that gets no row (a batch of one long utterance) takes the
first once more, for all must run the model: its index is inverted (`~row`), and it counts for nothing.
"""

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Dataset, Sampler

from steermoe.config import Training
from steermoe.data.batching import bucketed_batches
from steermoe.data.dataset import Item


def share(batch: list[int], rank: int, world: int) -> list[int]:
    """The rows of a batch that are this process'."""
    return batch[rank::world] or [~batch[0]]


def counted_tokens(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Target tokens of the rows that count, a number in float64."""
    counts = batch["indices"] >= 0
    return (batch["target_lengths"] * counts).sum(dtype=torch.float64)


class Shares(Dataset[Item]):
    """A dataset that understands inverted indices."""

    def __init__(self, whole: Dataset[Item]) -> None:
        self.whole = whole

    def __getitem__(self, index: int) -> Item:
        item = self.whole[index if index >= 0 else ~index]
        return {**item, "index": index}


def steps_of(training: Training, seconds: Sequence[float], seed: int, window: float = 0.0) -> int:
    """Optimizer steps of a training: as many as it says, or all batches of its epochs, whose numbers differ a little.

    Args:
        training: its section.
        seconds: length of every training row.
        seed: of the order of the rows.
        window: as of `bucketed_batches`.
    """
    if training.max_steps is not None:
        return training.max_steps
    epochs = range(training.epochs or 0)
    return sum(len(bucketed_batches(seconds, training.max_batch_seconds, seed, e, window)) for e in epochs)


class StepBatches(Sampler[list[int]]):
    """The rows of one process through a whole training: a list of indices a step, epoch after epoch.

    To the Trainer this is a single epoch of `steps` batches. Epochs of length buckets differ in their number
    of batches, and the Trainer's arithmetic of epochs, and so its way to resume, would go wrong on them.
    """

    def __init__(
        self,
        seconds: Sequence[float],
        budget: float,
        seed: int,
        steps: int,
        rank: int,
        world: int,
        window: float = 0.0,
    ) -> None:
        if not seconds:
            raise ValueError("no rows to make batches of")
        self._order = (list(seconds), budget, seed, window)
        self._steps, self._rank, self._world = steps, rank, world

    def __len__(self) -> int:
        return self._steps

    def __iter__(self) -> Iterator[list[int]]:
        seconds, budget, seed, window = self._order
        given, epoch = 0, 0
        while given < self._steps:
            for batch in bucketed_batches(seconds, budget, seed, epoch, window)[: self._steps - given]:
                yield share(batch, self._rank, self._world)
                given += 1
            epoch += 1

    def audio_seconds(self) -> Iterator[float]:
        """Seconds of audio that all processes together have read after each step, padding aside."""
        seconds, budget, seed, window = self._order
        total = 0.0
        for batch in StepBatches(seconds, budget, seed, self._steps, 0, 1, window):
            total += sum(seconds[row] for row in batch)
            yield total

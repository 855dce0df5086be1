"""The order of the training data: the same for every variant with the same seed, data and budget.

Several processes share each batch, row by row. All processes must run the model, so one that gets no row (of a batch
of one long utterance) takes the first row again, marked by an inverted index (`~row`), which does not count.
"""

from collections.abc import Iterator, Sequence
from itertools import accumulate, count, islice

import torch
from torch.utils.data import Dataset, Sampler

from steermoe.config import Training
from steermoe.data.batching import bucketed_batches
from steermoe.data.dataset import Item


def share(batch: list[int], rank: int, world: int) -> list[int]:
    """Return the rows of a batch that process `rank` of `world` computes."""
    return batch[rank::world] or [~batch[0]]


def counted_tokens(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the number of target tokens of the rows that count, in float64."""
    counts = batch["indices"] >= 0
    return (batch["target_lengths"] * counts).sum(dtype=torch.float64)


class SharedDataset(Dataset[Item]):
    """A dataset that also takes inverted indices."""

    def __init__(self, dataset: Dataset[Item]) -> None:
        self._dataset = dataset

    def __getitem__(self, index: int) -> Item:
        return {**self._dataset[index if index >= 0 else ~index], "index": index}


def total_steps(training: Training, seconds: Sequence[float], seed: int, window: float = 0.0) -> int:
    """Return the number of optimizer steps: `max_steps`, or all batches of `epochs`, which differ a little in number.

    Args:
        training: its section.
        seconds: length of every training row.
        seed: of the order of the rows.
        window: as in `bucketed_batches`.

    Raises:
        ValueError: the warm-up or the first evaluation come after the last step of `epochs`.
    """
    if training.max_steps is not None:
        return training.max_steps
    budget, epochs = training.max_batch_seconds, range(training.epochs or 0)
    steps = sum(len(bucketed_batches(seconds, budget, seed, epoch, window)) for epoch in epochs)
    for name, most in (("warmup_steps", steps - 1), ("eval_steps", steps)):
        if (found := getattr(training, name)) > most:
            length = f"{training.epochs} epochs are {steps} steps"
            raise ValueError(f"training.{name}: found {found}; legal: at most {most}, as {length}")
    return steps


class StepBatches(Sampler[list[int]]):
    """The rows of one process: a list of indices for each step, epoch after epoch.

    Args:
        seconds: length of every training row.
        budget, seed, window: as in `bucketed_batches`.
        steps: of the whole training.
        rank, world: this process and the number of processes.
        start: steps that are done already.
    """

    def __init__(
        self,
        seconds: Sequence[float],
        budget: float,
        seed: int,
        steps: int,
        rank: int = 0,
        world: int = 1,
        window: float = 0.0,
        start: int = 0,
    ) -> None:
        if not seconds:
            raise ValueError("no rows to make batches of")
        self._seconds, self._options = list(seconds), (budget, seed, window)
        self._steps, self._rank, self._world, self._start = steps, rank, world, start

    def __len__(self) -> int:
        return self._steps - self._start

    def __iter__(self) -> Iterator[list[int]]:
        for batch in islice(self._whole(), self._start, None):
            yield share(batch, self._rank, self._world)

    def audio_seconds(self) -> list[float]:
        """Return the seconds of audio that all processes have read after each step, without padding."""
        return list(accumulate(sum(self._seconds[row] for row in batch) for batch in self._whole()))

    def _whole(self) -> Iterator[list[int]]:
        budget, seed, window = self._options
        epochs = (bucketed_batches(self._seconds, budget, seed, epoch, window) for epoch in count())
        return islice((batch for epoch in epochs for batch in epoch), self._steps)

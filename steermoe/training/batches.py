"""The order of the training data: the same for every arm with the same seed, data and budget."""

from collections.abc import Iterator, Sequence

from torch.utils.data import Sampler

from steermoe.data.batching import bucketed_batches


class StepBatches(Sampler[list[int]]):
    """The batches of one process through a whole training: a list of indices a step, epoch after epoch.

    To the Trainer this is a single epoch of `steps` batches. Epochs of length buckets differ in their number
    of batches, and the Trainer's arithmetic of epochs, and so its way to resume, would go wrong on them.
    """

    def __init__(
        self, seconds: Sequence[float], budget: float, seed: int, steps: int, rank: int, world: int
    ) -> None:
        self._order = (list(seconds), budget, seed)
        self._steps, self._rank, self._world = steps, rank, world

    def __len__(self) -> int:
        return self._steps

    def __iter__(self) -> Iterator[list[int]]:
        seconds, budget, seed = self._order
        given, epoch = 0, 0
        while given < self._steps * self._world:
            for batch in bucketed_batches(seconds, budget, seed, epoch):
                if given < self._steps * self._world and given % self._world == self._rank:
                    yield batch
                given += 1
            epoch += 1

    def audio_seconds(self) -> Iterator[float]:
        """Seconds of audio that all processes together have read after each step, padding aside."""
        seconds, budget, seed = self._order
        everyone = StepBatches(seconds, budget, seed, self._steps * self._world, 0, 1)
        total = 0.0
        for given, batch in enumerate(everyone, 1):
            total += sum(seconds[row] for row in batch)
            if given % self._world == 0:
                yield total

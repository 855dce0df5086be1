"""Random initial values, the same for a part of the model whatever the other parts are."""

import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from steermoe.models.exclusive import LOCK


@contextmanager
def seeded(seed: int, part: str) -> Iterator[None]:
    """Draw from a generator of this part's own, and leave the global one as it was."""
    with LOCK, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + zlib.crc32(part.encode()))
        yield

"""The queue: who shares a batch, what comes first, what one bad row does to the others."""

import threading
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steermoe.serving.batching import Batcher, Job, chosen
from steermoe.serving.limits import Limits
from steermoe.serving.request_error import RequestError


class Asked(NamedTuple):
    seconds: float
    together: str | None = "greedy"


jobs = st.lists(
    st.builds(Asked, st.floats(0.1, 40), st.sampled_from(["greedy", "other", None])).map(Job),
    min_size=1,
    max_size=30,
)


@given(jobs, st.integers(1, 8), st.floats(1, 60))
def test_a_batch_has_the_oldest_and_its_like_within_the_limits(
    waiting: list[Job], rows: int, seconds: float
) -> None:
    batch = chosen(waiting, rows, seconds)
    assert batch[0] is waiting[0]
    assert len({id(job) for job in batch}) == len(batch) <= rows
    assert {job.asked.together for job in batch} == {waiting[0].asked.together}
    if len(batch) > 1:
        assert batch[0].asked.together is not None
        assert max(job.asked.seconds for job in batch) * len(batch) <= seconds


def test_the_nearest_in_length_come_along() -> None:
    waiting = [Job(Asked(seconds)) for seconds in (3.0, 30.0, 3.2, 2.9, 12.0)]
    assert [job.asked.seconds for job in chosen(waiting, 3, 60)] == [3.0, 2.9, 3.2]
    assert [job.asked.seconds for job in chosen(waiting[1:], 8, 60)] == [30.0, 12.0]


def test_everything_is_answered_in_batches_though_one_row_is_bad() -> None:
    sizes: list[int] = []
    go = threading.Event()

    def answer(batch: Sequence[Job]) -> tuple[list[Any], int]:
        go.wait(10)
        sizes.append(len(batch))
        if any(job.asked.seconds == 7.0 for job in batch):
            raise ValueError("seven")
        return [job.asked.seconds for job in batch], 0

    batcher = Batcher(answer, Limits(batch_rows=4))
    submitted = [batcher.submit(Asked(seconds)) for seconds in (1.0, 2.0, 7.0, 4.0, 5.0)]
    go.set()
    with pytest.raises(ValueError, match="seven"):
        submitted[2].result.result(10)
    assert [job.result.result(10) for job in submitted if job is not submitted[2]] == [1.0, 2.0, 4.0, 5.0]
    assert sum(sizes) >= 5 and len(sizes) < 10
    assert batcher.close(10) and not batcher.alive


def test_what_was_taken_is_answered_at_the_end_and_no_more_is_taken() -> None:
    batcher = Batcher(lambda batch: (time.sleep(0.05), ([None] * len(batch), 0))[1], Limits(batch_rows=1))
    submitted = [batcher.submit(Asked(1.0)) for _ in range(4)]
    assert batcher.close(10)
    assert all(job.result.done() for job in submitted)
    with pytest.raises(RequestError) as refused:
        batcher.submit(Asked(1.0))
    assert refused.value.status == 503


def test_a_close_that_takes_too_long_ends_what_waits() -> None:
    go = threading.Event()
    batcher = Batcher(lambda batch: (go.wait(10), ([None] * len(batch), 0))[1], Limits(batch_rows=1))
    submitted = [batcher.submit(Asked(1.0)) for _ in range(3)]
    assert not batcher.close(0.1)
    for job in submitted:
        error = job.result.exception(1)
        assert isinstance(error, RequestError) and error.status == 503
    go.set()


def test_limits_are_positive() -> None:
    with pytest.raises(ValueError, match="limits: found queue 0; legal: more than 0"):
        Limits(queue=0)

"""The queue: who shares a batch, what comes first, what one bad row does to the others."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steermoe.server.batching import Answer, Batcher, Job, Join, WholeBatchError, chosen
from steermoe.server.errors import RequestError
from steermoe.server.limits import Limits


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


def at_once(result: Callable[[Sequence[Job]], Sequence[Any]]) -> Answer:
    """Answers a batch as a whole; nobody joins."""

    def answer(batch: Sequence[Job], join: Join) -> Iterator[tuple[Job, Any]]:
        yield from zip(batch, result(batch), strict=True)

    return answer


def test_everything_is_answered_in_batches_though_one_row_is_bad() -> None:
    sizes: list[int] = []
    go = threading.Event()

    def answer(batch: Sequence[Job]) -> list[float]:
        go.wait(10)
        sizes.append(len(batch))
        if any(job.asked.seconds == 7.0 for job in batch):
            raise ValueError("seven")
        return [job.asked.seconds for job in batch]

    batcher = Batcher(at_once(answer), Limits(batch_rows=4))
    submitted = [batcher.submit(Asked(seconds)) for seconds in (1.0, 2.0, 7.0, 4.0, 5.0)]
    go.set()
    with pytest.raises(ValueError, match="seven"):
        submitted[2].result.result(10)
    assert [job.result.result(10) for job in submitted if job is not submitted[2]] == [1.0, 2.0, 4.0, 5.0]
    assert sum(sizes) >= 5 and len(sizes) < 10
    assert batcher.close(10) and not batcher.alive


def by_and_by(go: threading.Event, seen: list[int]) -> Answer:
    """Ends one job a turn, and lets others join; fails once, when 7 s of audio are among them."""

    def answer(batch: Sequence[Job], join: Join) -> Iterator[tuple[Job, Any]]:
        go.wait(10)
        at_work = list(batch)
        while at_work:
            seen.append(len(at_work))
            if len(at_work) > 1 and any(job.asked.seconds == 7.0 for job in at_work):
                raise RuntimeError("seven spoils it for all")
            job = at_work.pop(0)
            yield job, ValueError("seven") if job.asked.seconds == 7.0 else job.asked.seconds
            at_work += join(len(at_work))

    return answer


def test_others_join_where_places_are_free() -> None:
    go, seen = threading.Event(), list[int]()
    batcher = Batcher(by_and_by(go, seen), Limits(batch_rows=4, linger=1.0))
    submitted = [batcher.submit(Asked(1.0)) for _ in range(12)]
    go.set()
    assert [job.result.result(10) for job in submitted] == [1.0] * 12
    assert seen == [4, 3] * 5 + [2, 1]  # where half of the places are free, they are taken


def test_nobody_overtakes_a_job_of_another_kind() -> None:
    go, seen = threading.Event(), list[int]()
    batcher = Batcher(by_and_by(go, seen), Limits(batch_rows=4))
    kinds = ["greedy"] * 5 + ["other"] + ["greedy"] * 6
    submitted = [batcher.submit(Asked(1.0, kind)) for kind in kinds]
    ended: list[int] = []
    for place, job in enumerate(submitted):
        job.result.add_done_callback(lambda _, place=place: ended.append(place))
    go.set()
    for job in submitted:
        job.result.result(10)
    assert batcher.close(10)
    others = [place for place in ended if place != 5]
    assert others == sorted(others)
    assert ended.index(5) < ended.index(11)  # the first batch is full of those before it and their like


def test_one_that_spoils_it_for_all_is_told_and_the_others_are_answered(
    caplog: pytest.LogCaptureFixture,
) -> None:
    go, seen = threading.Event(), list[int]()
    batcher = Batcher(by_and_by(go, seen), Limits(batch_rows=4))
    submitted = [batcher.submit(Asked(seconds)) for seconds in (1.0, 2.0, 3.0, 4.0, 5.0, 7.0, 6.0, 8.0)]
    go.set()
    with pytest.raises(ValueError, match="seven"):
        submitted[5].result.result(10)
    rest = [job.result.result(10) for job in submitted if job is not submitted[5]]
    assert rest == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0]
    assert "broke down together" in caplog.text
    assert batcher.close(10) and not batcher.alive


def test_where_nobody_can_be_answered_none_is_tried_alone() -> None:
    asked: list[int] = []

    def away(batch: Sequence[Job], join: Join) -> Iterator[tuple[Job, Any]]:
        asked.append(len(batch))
        raise WholeBatchError("no answer")
        yield

    batcher = Batcher(away, Limits(linger=1.0, batch_rows=3))
    submitted = [batcher.submit(Asked(1.0)) for _ in range(3)]
    for job in submitted:
        with pytest.raises(WholeBatchError, match="no answer"):
            job.result.result(10)
    assert asked == [3] and batcher.close(10)


def test_what_was_taken_is_answered_at_the_end_and_no_more_is_taken() -> None:
    slow = at_once(lambda batch: (time.sleep(0.05), [None] * len(batch))[1])
    batcher = Batcher(slow, Limits(batch_rows=1))
    submitted = [batcher.submit(Asked(1.0)) for _ in range(4)]
    assert batcher.close(10)
    assert all(job.result.done() for job in submitted)
    with pytest.raises(RequestError) as refused:
        batcher.submit(Asked(1.0))
    assert refused.value.status == 503


def test_a_close_that_takes_too_long_ends_what_waits() -> None:
    go = threading.Event()
    batcher = Batcher(at_once(lambda batch: (go.wait(10), [None] * len(batch))[1]), Limits(batch_rows=1))
    submitted = [batcher.submit(Asked(1.0)) for _ in range(3)]
    assert not batcher.close(0.1)
    for job in submitted:
        error = job.result.exception(1)
        assert isinstance(error, RequestError) and error.status == 503
    go.set()


def test_limits_are_positive() -> None:
    with pytest.raises(ValueError, match="limits: found queue 0; legal: more than 0"):
        Limits(queue=0)

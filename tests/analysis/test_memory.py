"""What the modes take of memory: sums that hold whatever the sizes, and the paper's sizes."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steermoe.analysis.memory import BUCKET, GIB, LIVE, MODES, memory, table
from steermoe.analysis.presets import encoder_shape, llm_shape
from steermoe.training.deepspeed import BUCKET_NUMBERS


@given(st.integers(1, 64), st.integers(1, 10**9), st.integers(10**6, 10**11), st.floats(0, 1e11))
def test_sums(processes: int, trained: int, numbers: int, activations: float) -> None:
    found = memory({"encoder": numbers, "llm": numbers}, numbers, trained, processes, activations)
    assert list(found) == list(MODES)
    for mode, (strategy, offload) in MODES.items():
        device, host = found[mode].device, found[mode].host
        assert device["activations"] == activations
        assert all(size >= 0 for size in [*device.values(), *host.values()])
        assert bool(host) is offload
        shards = processes if strategy == "zero3" else 1
        weights = device["frozen weights"] + host.get("frozen weights", 0.0)
        assert weights * shards == pytest.approx(2 * numbers)  # all there is, once or in every process
        share = processes if strategy.startswith("zero") else 1
        copies = 3 if strategy.startswith("zero") else 2  # two moments, and ZeRO's own copy of the weights
        optimizer = device["optimizer"] + host.get("optimizer", 0.0)
        assert optimizer * share == pytest.approx(
            copies * 4 * trained
        )  # of what is trained, never of the rest
    plain = found["one process"]
    assert plain.total == pytest.approx(2 * numbers + 16 * trained + activations)
    assert found["zero3, offload"].total <= found["zero3"].total + 4 * min(trained, BUCKET) + 2 * LIVE
    assert found["zero2, offload"].total <= found["zero2"].total


def test_paper_size() -> None:
    """Whisper large v3 and Qwen2.5-7B in bfloat16, 1.8 million trained parameters, 8 GPUs."""
    encoder, llm = encoder_shape("whisper-large-v3"), llm_shape("qwen2.5-7b-instruct")
    numbers = encoder.parameters_in_all + llm.parameters_in_all
    frozen = {"encoder": 2.0 * encoder.parameters_in_all, "llm": 2.0 * llm.parameters_in_all}
    rows: dict[Any, Any] = {row["mode"]: row for row in table(memory(frozen, numbers, 1.8e6, 8))}
    assert rows["ddp"]["frozen weights"] == pytest.approx(2 * 8.25e9 / GIB, rel=0.01)
    assert rows["zero2"]["GPU"] == pytest.approx(rows["ddp"]["GPU"], rel=0.01)  # next to nothing is trained
    assert rows["zero3"]["frozen weights"] == pytest.approx(2 * 8.25e9 / GIB / 8, rel=0.01)
    assert rows["zero3"]["GPU"] < rows["ddp"]["GPU"] / 3
    assert rows["zero3, offload"]["frozen weights"] == 0


def test_sizes_are_those_of_the_configuration() -> None:
    assert BUCKET == BUCKET_NUMBERS


def test_no_process_is_refused() -> None:
    with pytest.raises(ValueError, match="processes: found 0"):
        memory({"llm": 1.0}, 1, 1, 0)

"""Estimates of a run: the published floors, what memory and disk are made of, and what is refused."""

from dataclasses import replace

import pytest

from steermoe.analysis.audit import Sections
from steermoe.analysis.plan import GPUS, Corpus, Plan, Setup, assumptions, plan, refusal, this_cpu
from steermoe.analysis.presets import encoder_shape, llm_shape
from tests.analysis.paper import PAPER_LORA, PAPER_PROJECTOR, PAPER_STEERING

LIBRISPEECH = Corpus(hours=100.6, epochs=10, mean_seconds=12.69, prompt_tokens=10, target_tokens=40)
H200 = Setup(GPUS["h200"], 1, 120.0, "bfloat16", "bfloat16")


def sections(method: str = "steering") -> Sections:
    steering, lora = (
        PAPER_STEERING if method == "steering" else None,
        PAPER_LORA if method == "lora" else None,
    )
    return Sections(method, steering, lora, PAPER_PROJECTOR)


def planned(
    method: str = "steering",
    llm: str = "qwen2.5-7b-instruct",
    corpus: Corpus = LIBRISPEECH,
    setup: Setup = H200,
) -> Plan:
    return plan(encoder_shape("whisper-large-v3"), llm_shape(llm), sections(method), corpus, setup)


# What was worked out by hand: FLOP, hours at the peak of 790 TFLOP/s, audio hours an hour.
@pytest.mark.parametrize(
    ("method", "llm", "case", "operations", "hours"),
    [
        ("steering", "qwen2.5-7b-instruct", "padded to 30 s", 4.66e18, 1.64),
        ("steering", "qwen2.5-7b-instruct", "not padded", 2.11e18, 0.74),
        ("linear", "qwen2.5-7b-instruct", "not padded, encoder's output kept", 1.62e18, 0.57),
        ("steering", "qwen2.5-3b-instruct", "not padded", 1.20e18, 0.42),
    ],
)
def test_published_floor_of_a_run(method: str, llm: str, case: str, operations: float, hours: float) -> None:
    found = {row.name: row for row in planned(method, llm).cases}[case]
    assert found.operations == pytest.approx(operations, rel=0.03)
    assert found.floor_hours == pytest.approx(hours, rel=0.03)
    assert found.audio_hours_an_hour == pytest.approx(1006 / hours, rel=0.03)
    assert found.hours == pytest.approx((found.floor_hours / 0.3, found.floor_hours / 0.6))


def test_share_of_the_peak_behind_forty_a100_hours() -> None:
    padded, bare = planned(setup=replace(H200, gpu=GPUS["a100"])).cases
    assert 100 * padded.floor_hours / 40 == pytest.approx(10.4, abs=0.2)
    assert 100 * bare.floor_hours / 40 == pytest.approx(4.7, abs=0.1)


def test_clips_are_as_many_as_the_corpus_has() -> None:
    assert LIBRISPEECH.clips == pytest.approx(28_539, rel=0.001)


def test_more_devices_take_less_time_each_and_as_much_together() -> None:
    one, four = planned().cases[0], planned(setup=replace(H200, gpus=4)).cases[0]
    assert four.floor_hours == pytest.approx(one.floor_hours / 4)
    assert four.audio_hours_an_hour == pytest.approx(one.audio_hours_an_hour)


def test_memory_of_the_weights_is_that_of_their_type() -> None:
    half, single = planned(), planned(setup=replace(H200, encoder_dtype="float32", llm_dtype="float32"))
    assert half.parts["LLM's weights"] == 2 * 7_615_616_512
    assert half.parts["encoder's weights"] + half.parts["LLM's weights"] == pytest.approx(16.5e9, rel=0.001)
    assert single.parts["LLM's weights"] == 2 * half.parts["LLM's weights"]
    assert half.parts["trained optimizer"] == 8 * 5_246_752
    assert half.memory["plain"][0] == pytest.approx(sum(half.parts.values()))


def test_modes_share_and_unload_what_they_say() -> None:
    one, four = planned(), planned(setup=replace(H200, gpus=4))
    assert one.memory["zero2"] == one.memory["plain"]
    assert one.memory["zero3"] == one.memory["plain"]
    states = sum(four.parts[f"trained {name}"] for name in ("gradients", "optimizer"))
    assert four.memory["plain"][0] - four.memory["zero2"][0] == pytest.approx(0.75 * states)
    assert four.memory["zero3"][0] < four.memory["zero2"][0]
    device, host = one.memory["zero3-offload"]
    assert host > one.parts["LLM's weights"]
    assert device < one.memory["plain"][0] - 0.7 * one.parts["LLM's weights"]


def test_steering_keeps_more_activations_than_a_projection() -> None:
    assert planned().parts["activations"] > planned("linear").parts["activations"]
    assert planned("lora").parts["activations"] > planned("linear").parts["activations"]


def test_activations_grow_with_the_batch() -> None:
    small, large = (
        planned(setup=replace(H200, max_batch_seconds=n * 12.7)).parts["activations"] for n in (1, 8)
    )
    assert large == pytest.approx(8 * small)


def test_a_run_that_fits_is_not_refused() -> None:
    assert refusal(planned(), H200, "plain") is None


def test_too_little_memory_is_refused_with_what_would_fit() -> None:
    setup = replace(H200, gpu=GPUS["rtx4090"])
    found = planned(setup=setup)
    line = refusal(found, setup, "plain")
    assert line is not None and f"{found.memory['plain'][0] / 1e9:.1f} GB" in line and "24.0 GB" in line
    assert "these modes fit: zero3-offload" in line
    assert refusal(found, setup, "zero3-offload") is None


def test_memory_that_no_mode_can_save() -> None:
    setup = replace(H200, gpu=GPUS["rtx4090"], max_batch_seconds=900)
    assert "no mode fits" in str(refusal(planned(setup=setup), setup, "zero2"))


def test_a_padded_row_costs_the_whole_window() -> None:
    setups = [replace(H200, max_batch_seconds=120, padded=padded) for padded in (True, False)]
    padded, bare = (planned(setup=setup).parts["activations"] for setup in setups)
    assert padded == pytest.approx(bare, rel=0.15)  # 4 rows of 30 s, or 9 of 12.69 s


def test_clips_longer_than_the_encoder_takes() -> None:
    with pytest.raises(ValueError, match=r"mean-seconds: found 31, whisper-large-v3 takes at most 30 s"):
        planned(corpus=replace(LIBRISPEECH, mean_seconds=31))


def test_assumptions_name_the_peak_and_the_tokens() -> None:
    text = "\n".join(assumptions(LIBRISPEECH, H200))
    for part in ("790.0 TFLOP/s", "30 to 60 %", "10 prompt and 40 target", "120 audio seconds"):
        assert part in text


def test_the_processor_at_hand_is_measured() -> None:
    found = this_cpu()
    assert 1e8 < found.peak < 1e14
    assert found.memory > 2**28

"""What is behind the demo page: the listener, what its events do, and the pictures, with the trained mini adapter."""

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile

from steermoe.asr import transcript_table
from steermoe.asr.transcript import Word
from steermoe.audio.waveform import RATE, AudioError
from steermoe.demo import plots as gate_pictures
from steermoe.demo.callbacks import Visit
from steermoe.demo.inference import ALL, Listener
from steermoe.server.limits import Limits

STRONG = {ALL: [3.0] * 4}


# strengths


def test_strengths_hold_for_one_request(listener: Listener, spoken: list[SimpleNamespace]) -> None:
    samples = spoken[0].samples
    before = listener.see(samples).gates
    strong = listener.see(samples, STRONG).gates
    assert not np.allclose(before[3], strong[3], equal_nan=True)
    assert all(
        np.array_equal(*both, equal_nan=True)
        for both in zip(before, listener.see(samples).gates, strict=True)
    )


def test_strengths_are_undone_after_an_error(listener: Listener, spoken: list[SimpleNamespace]) -> None:
    assert listener.model.steering is not None
    with pytest.raises(ValueError, match="found 3, the model has 4 steered places"):
        listener.transcript(spoken[0].samples, {ALL: [2.0] * 4, 0: [0.0] * 3})
    assert (listener.model.steering.expert_scales == 1).all()


def test_an_experts_strength_counts_times_that_of_all(listener: Listener) -> None:
    steering = listener.model.steering
    assert steering is not None
    with listener._steered({ALL: [1.0, 2.0, 1.0, 1.0], 5: [1.0, -1.5, 1.0, 0.0]}):
        found = steering.expert_scales.reshape(4, 8).clone()
    expected = np.ones((4, 8), np.float32)
    expected[1] = 2
    expected[1, 5], expected[3, 5] = -3, 0
    assert np.array_equal(found.numpy(), expected)


def test_visitors_do_not_disturb_each_other(listener: Listener, spoken: list[SimpleNamespace]) -> None:
    samples = spoken[0].samples
    alone = [listener.transcript(samples, strengths).text for strengths in ({}, STRONG)]
    assert alone[0] == spoken[0].text != alone[1]
    found: dict[int, list[str]] = {0: [], 1: []}

    def visit(number: int) -> None:
        for _ in range(4):
            found[number].append(listener.transcript(samples, STRONG if number else {}).text)

    visitors = [threading.Thread(target=visit, args=(number,)) for number in found]
    for visitor in visitors:
        visitor.start()
    for visitor in visitors:
        visitor.join()
    assert found == {0: [alone[0]] * 4, 1: [alone[1]] * 4}


def test_others_are_named(mini: Any, spoken: list[SimpleNamespace]) -> None:
    both = Listener(mini, {"again": mini}, Limits())
    samples = spoken[0].samples
    assert dict(both.others_heard(samples))["again"] == both.transcript(samples).text
    assert [name for name, _ in both.others_heard(samples)] == ["steering off", "again"]
    with mini.steering.disabled():
        assert dict(both.others_heard(samples))["steering off"] == both.transcript(samples).text
    answers = {name: answer.text for name, answer in both.answers(samples, " who was it ")}
    assert answers[""] == answers["again"] == mini.ask(samples, "who was it").text


# what is seen


def test_gates_are_those_of_the_model(listener: Listener, mini: Any, talk: np.ndarray) -> None:
    seen = listener.see(talk)
    assert seen.places == ["0", "1", "2", "3"] and len(seen.gates[0]) == round(seen.seconds * 50)
    for gates in seen.gates:
        silent = np.isnan(gates).any(1)
        assert 0.05 < silent.mean() < 0.6  # the pauses between sentences
        assert np.isnan(gates[silent]).all()
        assert np.allclose(gates[~silent].sum(1), 1, atol=1e-5)
    starts = np.flatnonzero(np.diff(np.isnan(seen.gates[0][:, 0]).astype(int)) == -1) + 1
    first, second = (starts[0], starts[1]) if np.isnan(seen.gates[0][0, 0]) else (0, starts[0])
    last = first + int(np.isnan(seen.gates[0][first:second, 0]).argmax())
    samples = talk[int(first / 50 * RATE) : int(last / 50 * RATE)]
    same = np.mean(mini.gates(samples)["3"].argmax(1) == seen.gates[3][first:last].argmax(1))
    assert same > 0.9  # cut a little elsewhere


def test_picture_shows_the_strongest_expert() -> None:
    colours = gate_pictures.expert_colours(3)
    gates = np.array([[0, 1, 0], [0.2, 0.2, 0.6], [np.nan] * 3], np.float32)
    shown = gate_pictures.strongest(gates, colours)
    assert np.allclose(shown[0], colours[1]) and np.allclose(shown[2], 1)
    assert np.allclose(1 - shown[1], 0.6 * (1 - np.array(colours[2])))
    assert all(len(set(gate_pictures.expert_colours(count))) == count for count in (1, 9, 10, 20, 64))


def test_picture_changes_with_strengths_and_place(listener: Listener, spoken: list[SimpleNamespace]) -> None:
    samples, words = spoken[0].samples, [Word("one", 0.1, 0.3), Word("<b>", 0.5, 0.6)]
    seen = listener.see(samples)
    pictures = [gate_pictures.steering_picture(seen, words, 3), gate_pictures.steering_picture(seen, words, 0),
                gate_pictures.steering_picture(listener.see(samples, STRONG), words, 3)]  # fmt: skip
    assert len(set(pictures)) == 3 and all(picture.startswith(b"\x89PNG") for picture in pictures)
    assert gate_pictures.steering_picture(seen, words, 3) == pictures[0]


def test_silence_is_neither_written_nor_drawn(listener: Listener) -> None:
    silence = np.zeros(RATE, np.float32)
    seen = listener.see(silence)
    assert listener.transcript(silence).text == "" and all(np.isnan(gates).all() for gates in seen.gates)
    assert gate_pictures.steering_picture(seen, [], 0).startswith(b"\x89PNG")


# limits


def test_recordings_beyond_the_limits_are_refused(listener: Listener, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).uniform(-0.1, 0.1, 9 * RATE).astype(np.float32)
    soundfile.write(tmp_path / "long.flac", noise[: 9 * RATE] * 0, RATE)
    with pytest.raises(AudioError, match=r"9\.0 s"):
        listener.load(tmp_path / "long.flac")
    soundfile.write(tmp_path / "big.wav", noise, 48_000, subtype="FLOAT")
    with pytest.raises(AudioError, match=r"big\.wav: found 0\.5 MiB; a recording may have 0\.4"):
        listener.load(tmp_path / "big.wav")
    (tmp_path / "text.wav").write_text("this is no sound")
    with pytest.raises(AudioError, match="not readable as audio"):
        listener.load(tmp_path / "text.wav")


def test_a_comparison_that_comes_too_late_shows_nothing(listener: Listener, tmp_path: Path) -> None:
    """Its recording was replaced while it waited for its turn."""
    soundfile.write(tmp_path / "a.wav", np.zeros(RATE), RATE)
    assert list(Visit(listener, "mini").compare(str(tmp_path / "a.wav"), {}, {})) == []


def test_a_recording_that_was_taken_away_is_not_heard(listener: Listener) -> None:
    visit = Visit(listener, "mini")
    heard, texts, words = visit.hear(None, {})
    assert "comes here" in heard and (texts, words) == ({}, [])
    assert list(visit.compare(None, {}, texts)) == []


def test_nothing_that_was_said_is_markup() -> None:
    shown = transcript_table.table([("<i>", "one <b> two", None), ("x", "one <s> two", "one <b> two")])
    assert "<i>" not in shown and "<b> two" not in shown and "one &lt;b&gt; two" in shown
    assert "one <mark>&lt;s&gt;</mark> two" in shown


def test_questions_beyond_the_limits_are_refused(listener: Listener, spoken: list[SimpleNamespace]) -> None:
    for question, why in ((" ", "no question"), ("who " * 20, "80 characters; legal: 60")):
        with pytest.raises(ValueError, match=why):
            list(listener.answers(spoken[0].samples, question))

"""The demo's models and pictures, with the trained mini adapter."""

import threading
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile

from steermoe.asr.transcript import Word
from steermoe.audio.io import RATE, AudioError
from steermoe.demo import plots
from steermoe.demo.app import Callbacks
from steermoe.demo.inference import ALL, Models
from steermoe.demo.table import table

STRONG = {ALL: [3.0] * 4}


@pytest.fixture(scope="module")
def models(mini: Any) -> Models:
    return Models(mini, {}, max_seconds=8.0)


def test_scales_hold_for_one_request(models: Models, spoken: list[SimpleNamespace]) -> None:
    samples = spoken[0].samples
    before, strong, after = (models.gates(samples, scales).gates for scales in (None, STRONG, None))
    assert not np.allclose(before[3], strong[3], equal_nan=True)
    assert all(np.array_equal(*both, equal_nan=True) for both in zip(before, after, strict=True))
    with pytest.raises(ValueError, match="a factor for each of 4 hook points"):
        models.transcribe(samples, {ALL: [2.0] * 4, 0: [0.0] * 3})
    assert (models.model.steering.expert_scales == 1).all()  # pyright: ignore[reportOptionalMemberAccess]


def test_the_scale_of_an_expert_is_multiplied_by_that_of_all(
    models: Models, mini: Any, monkeypatch: Any
) -> None:
    found: list[Any] = []
    monkeypatch.setattr(
        mini, "ask", lambda *_: found.append(mini.steering.expert_scales.reshape(4, 8).clone())
    )
    list(models.ask(np.zeros(RATE), "?", {ALL: [1.0, 2.0, 1.0, 1.0], 5: [1.0, -1.5, 1.0, 0.0]}))
    expected = np.ones((4, 8), np.float32)
    expected[1] = 2
    expected[1, 5], expected[3, 5] = -3, 0
    assert np.array_equal(found[0].numpy(), expected)


def test_visitors_do_not_disturb_each_other(models: Models, spoken: list[SimpleNamespace]) -> None:
    samples = spoken[0].samples
    alone = [models.transcribe(samples, scales).text for scales in ({}, STRONG)]
    assert alone[0] == spoken[0].text != alone[1]
    found: dict[int, list[str]] = {0: [], 1: []}

    def visit(number: int) -> None:
        for _ in range(3):
            found[number].append(models.transcribe(samples, STRONG if number else {}).text)

    visitors = [threading.Thread(target=visit, args=(number,)) for number in found]
    for visitor in visitors:
        visitor.start()
    for visitor in visitors:
        visitor.join()
    assert found == {0: [alone[0]] * 3, 1: [alone[1]] * 3}


def test_others_are_named(mini: Any, spoken: list[SimpleNamespace]) -> None:
    both, samples = Models(mini, {"again": mini}), spoken[0].samples
    found = dict(both.compare(samples))
    assert list(found) == ["steering off", "again"] and found["again"] == both.transcribe(samples).text
    answers = {name: answer.text for name, answer in both.ask(samples, " who was it ")}
    assert answers[""] == answers["again"] == mini.ask(samples, "who was it").text
    for question in (" ", "who " * 300):
        with pytest.raises(ValueError, match="a question of"):
            list(both.ask(samples, question))


def test_gates_are_those_of_the_model(models: Models, mini: Any, talk: np.ndarray) -> None:
    found = models.gates(talk)
    assert found.names == ["0", "1", "2", "3"] and len(found.gates[0]) == round(found.seconds * 50)
    for gates in found.gates:
        silent = np.isnan(gates).any(1)
        assert 0.05 < silent.mean() < 0.6  # the pauses between sentences
        assert np.isnan(gates[silent]).all()
        assert np.allclose(gates[~silent].sum(1), 1, atol=1e-5)
    starts = np.flatnonzero(np.diff(np.isnan(found.gates[0][:, 0]).astype(int)) == -1) + 1
    first, second = (starts[0], starts[1]) if np.isnan(found.gates[0][0, 0]) else (0, starts[0])
    last = first + int(np.isnan(found.gates[0][first:second, 0]).argmax())
    samples = talk[int(first / 50 * RATE) : int(last / 50 * RATE)]
    same = np.mean(mini.gates(samples)["3"].argmax(1) == found.gates[3][first:last].argmax(1))
    assert same > 0.9  # cut a little elsewhere


def test_pictures(models: Models, spoken: list[SimpleNamespace]) -> None:
    colours = plots.expert_colours(3)
    gates = np.array([[0, 1, 0], [0.2, 0.2, 0.6], [np.nan] * 3], np.float32)
    shown = plots.strongest(gates, colours)
    assert np.allclose(shown[0], colours[1]) and np.allclose(shown[2], 1)
    assert np.allclose(1 - shown[1], 0.6 * (1 - np.array(colours[2])))
    assert all(len(set(plots.expert_colours(count))) == count for count in (1, 9, 10, 20, 64))
    words = [Word("one", 0.1, 0.3), Word("<b>", 0.5, 0.6)]
    found, strong = (models.gates(spoken[0].samples, scales) for scales in (None, STRONG))
    pictures = [
        plots.gates_picture(*each) for each in ((found, words, 3), (found, words, 0), (strong, words, 3))
    ]
    assert len(set(pictures)) == 3 and all(picture.startswith(b"\x89PNG") for picture in pictures)
    for samples in (np.zeros(RATE, np.float32), np.zeros(10, np.float32)):
        silence = models.gates(samples)
        assert all(np.isnan(gates).all() for gates in silence.gates)
        assert plots.gates_picture(silence, [], 0).startswith(b"\x89PNG")


def test_limits_of_recordings(models: Models, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "long.flac", np.zeros(9 * RATE), RATE)
    with pytest.raises(AudioError, match=r"9\.0 s"):
        models.load(tmp_path / "long.flac")


def test_without_a_recording_nothing_is_shown(models: Models, tmp_path: Path) -> None:
    calls = Callbacks(models, "mini")
    (tmp_path / "text.wav").write_text("this is no sound")
    for path in (None, str(tmp_path / "text.wav")):
        with nullcontext() if path is None else pytest.warns(UserWarning, match="not readable as audio"):
            text, shown = calls.transcribe(path, {}, None)
        assert 'class="hint"' in text and shown is None
        assert list(calls.compare(path, {}, shown)) == [] and "comes here" in calls.draw(path, {}, shown, 0)


def test_transcripts_and_picture(models: Models, spoken: list[SimpleNamespace], tmp_path: Path) -> None:
    soundfile.write(tmp_path / "said.wav", spoken[0].samples, RATE, subtype="FLOAT")
    calls, path = Callbacks(models, "mini"), str(tmp_path / "said.wav")
    text, shown = calls.transcribe(path, {}, None)
    assert spoken[0].text in text and shown is not None
    assert spoken[0].text in calls.draw(path, {}, shown, 3)
    assert list(calls.compare("another.wav", {}, shown)) == []
    ((text, shown),) = calls.compare(path, {}, shown)
    assert "steering off" in text and list(calls.compare(path, {}, shown)) == []
    text, scaled = calls.transcribe(path, STRONG, shown)
    assert "mini, experts scaled" in text and scaled is not None and scaled.others == shown.others
    ((text, _),) = calls.compare(path, STRONG, scaled)
    assert "as trained" in text


def test_nothing_that_was_said_is_markup() -> None:
    shown = table([("<i>", "one <b> two", None), ("x", "one <s> two", "one <b> two")])
    assert "<i>" not in shown and "<b> two" not in shown and "one &lt;b&gt; two" in shown
    assert "one <mark>&lt;s&gt;</mark> two" in shown

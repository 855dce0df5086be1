"""Noise has the level that is asked for, rooms keep words where they are, and the generator decides all."""

import numpy as np
import pytest

from steermoe.audio import augment


def rms(waveform: np.ndarray) -> float:
    return float(np.sqrt(np.mean(waveform**2)))


@pytest.mark.parametrize("colour", augment.COLOURS)
def test_noise_has_unit_rms_and_its_colour(colour: str) -> None:
    noise = augment.noise(np.random.default_rng(0), 16000, colour)
    assert rms(noise) == pytest.approx(1, abs=0.01)
    power = np.abs(np.fft.rfft(noise)) ** 2
    low, high = power[50:500].mean(), power[5000:].mean()
    assert (low > 5 * high) == (colour != "white")


@pytest.mark.parametrize("snr_db", [0.0, 10.0, 30.0])
def test_added_noise_has_the_level_asked_for(snr_db: float) -> None:
    tone = np.sin(np.arange(32000) / 7).astype(np.float32)
    added = augment.add_noise(np.random.default_rng(1), tone, snr_db) - tone
    assert 20 * np.log10(rms(tone) / rms(added)) == pytest.approx(snr_db, abs=0.1)


def test_a_room_keeps_length_and_onset() -> None:
    click = np.zeros(8000, np.float32)
    click[1000] = 1
    wet = augment.reverberate(np.random.default_rng(2), click, 16000, rt60=0.3)
    assert len(wet) == len(click)
    assert np.abs(wet[:1000]).max() < 1e-5 and wet[1000] == pytest.approx(1, abs=1e-4)
    assert rms(wet[1100:3000]) > rms(wet[5000:])  # it decays


def test_peak_is_normalised_and_silence_stays_silence() -> None:
    assert np.abs(augment.normalise_peak(np.array([0.1, -0.2], np.float32), 0.8)).max() == pytest.approx(0.8)
    assert not augment.normalise_peak(np.zeros(4, np.float32), 0.8).any()

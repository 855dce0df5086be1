"""Noise and speech have the level that is asked for, rooms keep words where they are, the generator decides all."""

import numpy as np
import pytest

from steermoe.audio import augment
from steermoe.audio.augment import LEVEL, levelled

TONE = (0.3 * np.sin(np.arange(32_000) / 7)).astype(np.float32)


def rms(waveform: np.ndarray) -> float:
    return float(np.sqrt(np.mean(waveform**2)))


@pytest.mark.parametrize("colour", augment.COLOURS)
def test_noise_has_unit_rms_and_its_colour(colour: str) -> None:
    noise = augment.noise(np.random.default_rng(0), 16000, colour)
    assert rms(noise) == pytest.approx(1, abs=0.01)
    power = np.abs(np.fft.rfft(noise)) ** 2
    assert (power[50:500].mean() > 5 * power[5000:].mean()) == (colour != "white")


@pytest.mark.parametrize("snr_db", [0.0, 10.0, 30.0])
def test_added_noise_has_the_level_asked_for(snr_db: float) -> None:
    added = augment.add_noise(np.random.default_rng(1), TONE, snr_db) - TONE
    assert 20 * np.log10(rms(TONE) / rms(added)) == pytest.approx(snr_db, abs=0.1)


def test_a_room_keeps_length_and_onset() -> None:
    click = np.zeros(8000, np.float32)
    click[1000] = 1
    wet = augment.reverberate(np.random.default_rng(2), click, 16000, rt60=0.3)
    assert len(wet) == len(click)
    assert np.abs(wet[:1000]).max() < 1e-5 and wet[1000] == pytest.approx(1, abs=1e-4)
    assert rms(wet[1100:3000]) > rms(wet[5000:])  # it decays


@pytest.mark.parametrize("gain", [8.0, 1.0, 0.05, 10**-2.5])
def test_every_level_becomes_one(gain: float) -> None:
    spoken = np.concatenate([TONE, np.zeros(16_000, np.float32)])
    np.testing.assert_allclose(levelled(np.float32(gain) * spoken), levelled(spoken), rtol=1e-4, atol=1e-7)
    assert rms(levelled(np.float32(gain) * TONE)) == pytest.approx(LEVEL, rel=1e-3)


def test_silence_stays_silence_and_peaks_are_normalised() -> None:
    assert not levelled(np.zeros(1000, np.float32)).any()
    assert np.abs(levelled(np.full(1000, 1e-7, np.float32))).max() < LEVEL / 100
    assert np.abs(augment.normalise_peak(np.array([0.1, -0.2], np.float32), 0.8)).max() == pytest.approx(0.8)
    assert not augment.normalise_peak(np.zeros(4, np.float32), 0.8).any()

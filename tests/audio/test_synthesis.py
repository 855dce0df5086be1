"""espeak-ng speaks, tells when each word starts, and refuses voices that it does not have."""

import hashlib
import multiprocessing

import numpy as np
import pytest

from steermoe.audio.synthesis import RATE, Synthesizer, Voice
from steermoe.corpora.synthetic import CASTS


@pytest.fixture(scope="module")
def engine() -> Synthesizer:
    return Synthesizer()


def voice(accent: str = "en-us", variant: str = "adam") -> Voice:
    return Voice(accent, variant, words_per_minute=160, pitch=50, pitch_range=50)


@pytest.mark.parametrize(
    "text", ["anna bought three red apples", "the cat was in the garden on monday", "zero"]
)
def test_every_word_has_a_time_within_the_sound(engine: Synthesizer, text: str) -> None:
    waveform, onsets = engine.speak(text, voice())
    assert waveform.dtype == np.float32 and np.abs(waveform).max() > 0.05
    assert len(onsets) == len(text.split())
    assert onsets == sorted(onsets) and onsets[0] >= 0 and onsets[-1] < len(waveform) / RATE


def test_faster_speech_is_shorter(engine: Synthesizer) -> None:
    slow, fast = (
        engine.speak("the old lion was in the forest", Voice("en", "m1", rate, 50, 50))[0]
        for rate in (120, 200)
    )
    assert len(fast) < 0.8 * len(slow)


def test_an_unknown_voice_is_refused(engine: Synthesizer) -> None:
    with pytest.raises(ValueError, match=r"no voice 'en-GB\+adam'"):
        engine.speak("one", voice(accent="en-GB"))


@pytest.mark.parametrize("cast", CASTS)
def test_every_voice_of_the_casts_exists(engine: Synthesizer, cast: str) -> None:
    for accent in CASTS[cast].accents:
        engine.speak("one", voice(accent))
    for variant in CASTS[cast].variants:
        assert len(engine.speak("one", voice(CASTS[cast].accents[0], variant))[0]) > 0.1 * RATE


def said_by_all() -> list[str]:
    engine = Synthesizer()
    voices = [voice(cast.accents[0], variant) for cast in CASTS.values() for variant in cast.variants]
    return [
        hashlib.sha256(engine.speak("three red apples", each)[0].tobytes()).hexdigest() for each in voices
    ]


def test_another_process_at_another_time_says_the_same() -> None:
    """Some voices have breath in them, which is random; espeak-ng seeds it by the second, and starting takes one."""
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        first = pool.apply(said_by_all)
        assert pool.apply(said_by_all) == first

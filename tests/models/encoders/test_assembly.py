"""Every encoder, and every window, inside the whole model."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from steermoe import config
from steermoe.models.encoders import ENCODERS
from steermoe.models.steermoe import SteerMoE

CHOICES = [*((name, "unpadded") for name in ENCODERS), ("whisper", "full")]


@pytest.mark.parametrize(("name", "window"), CHOICES)
def test_the_model_hears_with_it(
    name: str,
    window: str,
    tiny_arm: Callable[..., config.ArmConfig],
    section: Callable[..., config.Encoder],
    speech: Callable[[int, int], np.ndarray],
) -> None:
    chosen: dict[str, Any] = section(name, window=window).model_dump()
    arm = tiny_arm("steering", {f"encoder.{key}": value for key, value in chosen.items()})
    model = SteerMoE.from_config(arm)
    assert model.features is model.encoder.features
    waveforms = [speech(samples, seed) for seed, samples in enumerate((16_000, 7_000, 30_000))]
    together = model.transcribe(waveforms, max_new_tokens=6)
    assert together == [model.transcribe(each, max_new_tokens=6) for each in waveforms]
    assert any(together)

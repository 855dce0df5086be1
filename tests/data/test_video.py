"""Videos as bytes: what goes in comes out, and what is broken is named."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from steermoe.data import video


@given(st.integers(1, 5), st.integers(1, 9), st.integers(1, 9), st.booleans(), st.integers(0, 99))
def test_frames_come_back_bit_for_bit(count: int, height: int, width: int, colours: bool, seed: int) -> None:
    shape = (count, height, width, 3) if colours else (count, height, width)
    frames = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    data = video.encode(frames)
    assert data == video.encode(frames) and video.shape(data) == (count, height, width)
    assert np.array_equal(video.load(data), video.checked(frames))


def test_frames_that_stay_the_same_are_kept() -> None:
    frames = np.zeros((7, 5, 5, 3), np.uint8)
    frames[3:5] = 9
    assert np.array_equal(video.load(video.encode(frames)), frames)


@pytest.mark.parametrize(
    "frames",
    [
        np.zeros((2, 4, 4), np.float32), np.zeros((4, 4), np.uint8), np.zeros((2, 4, 4, 4), np.uint8),
        np.zeros((0, 4, 4), np.uint8), [[0]],
    ],
)  # fmt: skip
def test_what_are_no_frames_is_refused(frames: np.ndarray) -> None:
    with pytest.raises(video.VideoError, match=r"video: found .*, expected uint8 frames \(T, H, W\)"):
        video.encode(frames)


def test_damaged_and_foreign_files_are_refused() -> None:
    good = video.encode(np.random.default_rng(0).integers(0, 256, (4, 20, 20, 3), dtype=np.uint8))
    gif = io.BytesIO()
    Image.new("RGB", (4, 4)).save(gif, "GIF")
    for data in (b"", b"RIFF1234", gif.getvalue(), good[:30]):
        with pytest.raises(video.VideoError, match="not an animated PNG, or damaged"):
            video.shape(data)
    flipped = bytearray(good)
    flipped[len(good) // 2] ^= 255
    for data in (good[: len(good) // 2], bytes(flipped)):
        with pytest.raises(video.VideoError, match="not an animated PNG, or damaged"):
            video.load(data)


def test_limits_hold_before_anything_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    data = video.encode(np.zeros((4, 6, 5), np.uint8))
    for name, value in (("MAX_FRAMES", 3), ("MAX_PIXELS", 29), ("MAX_BYTES", 359)):
        with monkeypatch.context() as changed:
            changed.setattr(video, name, value)
            with pytest.raises(video.VideoError, match="found 4 frames of 5 x 6, at most"):
                video.load(data)
    assert video.load(data).shape == (4, 6, 5, 3)

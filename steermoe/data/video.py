"""Encode and decode the videos of shards: animated PNGs, lossless, without sound and without times of frames.

Sizes are checked against limits before anything is decoded, and no other format than PNG is read.

Shapes: T frames, H height, W width.
"""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image

COLUMN = "video"  # of shards
MAX_FRAMES = 3_000  # of a video
MAX_PIXELS = 2**22  # of a frame
MAX_BYTES = 2**29  # of all frames, decoded


class VideoError(ValueError):
    """A video cannot be used: empty, corrupt, or outside the limits."""


def checked(frames: np.ndarray) -> np.ndarray:
    """Return grey frames (T, H, W) or colour frames (T, H, W, 3), uint8, as (T, H, W, 3).

    Raises:
        VideoError: they are of another type or shape, or there are none.
    """
    found = f"{frames.dtype} {frames.shape}" if isinstance(frames, np.ndarray) else type(frames).__name__
    if not isinstance(frames, np.ndarray) or frames.dtype != np.uint8 or 0 in frames.shape:
        raise VideoError(
            f"video: found {found}, expected uint8 frames (T, H, W) or (T, H, W, 3), at least one"
        )
    if frames.ndim == 3:
        return np.repeat(frames[..., None], 3, axis=3)
    if frames.ndim != 4 or frames.shape[3] != 3:
        raise VideoError(f"video: found {found}, expected uint8 frames (T, H, W) or (T, H, W, 3)")
    return frames


def encode(frames: np.ndarray) -> bytes:
    """Encode frames (see `checked`) as an animated PNG; the same frames give the same bytes.

    Raises:
        VideoError: as `checked`.
    """
    first, *others = (Image.fromarray(frame) for frame in checked(frames))
    file = io.BytesIO()
    first.save(file, "PNG", save_all=True, append_images=others)
    return file.getvalue()


def shape(data: bytes) -> tuple[int, int, int]:
    """Return T, H and W, by the header alone.

    Raises:
        VideoError: the bytes are no PNG, or the video is outside the limits.
    """
    with _opened(data) as image:
        return _shape(image)


def load(data: bytes) -> np.ndarray:
    """Decode all frames, (T, H, W, 3) uint8.

    Raises:
        VideoError: as `shape`; or the video is damaged.
    """
    with _opened(data) as image:
        frames = np.empty((*_shape(image), 3), np.uint8)
        for number in range(len(frames)):
            image.seek(number)
            frames[number] = np.asarray(image.convert("RGB"))
        return frames


@contextmanager
def _opened(data: bytes) -> Iterator[Image.Image]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # Pillow warns of damaged animations and of very large pictures
            with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
                yield image
    except VideoError:
        raise
    # Pillow's decoder raises any of these at damaged files.
    except (OSError, ValueError, SyntaxError, EOFError, Warning, Image.DecompressionBombError) as error:
        raise VideoError(f"video: not an animated PNG, or damaged: {error}") from error


def _shape(image: Image.Image) -> tuple[int, int, int]:
    count, width, height = getattr(image, "n_frames", 1), image.width, image.height
    if count > MAX_FRAMES or width * height > MAX_PIXELS or 3 * count * width * height > MAX_BYTES:
        raise VideoError(
            f"video: found {count} frames of {width} x {height}, at most {MAX_FRAMES} frames, {MAX_PIXELS} pixels "
            f"a frame and {MAX_BYTES >> 20} MiB in all are read"
        )
    return count, height, width

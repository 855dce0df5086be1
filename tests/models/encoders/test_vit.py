"""A ViT frame by frame: transformers' own result, whatever else is in the batch."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import ViTModel
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from steermoe.config import VideoEncoder
from steermoe.models.encoders import Encoder, load_video_encoder
from steermoe.models.steering import Steering

LENGTHS = (3, 1, 6)
TOKENS = 5


@pytest.fixture
def encoder(tiny_video_dir: Path) -> Encoder:
    return load_video_encoder(section(tiny_video_dir))


def section(path: Path | str) -> VideoEncoder:
    return VideoEncoder(name="vit", path=str(path), revision=None, dtype="float32")


def frames(count: int, side: int = 8) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def batch(encoder: Encoder, lengths: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """Features padded with what nothing may look at."""
    rows = [encoder.features(frames(count)).T for count in lengths]
    padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=7.0).transpose(1, 2)
    return padded, torch.tensor(lengths)


@torch.no_grad()
def test_every_frame_is_as_transformers_has_it(encoder: Encoder, tiny_video_dir: Path) -> None:
    hidden, lengths = encoder(*batch(encoder, LENGTHS))
    assert lengths.tolist() == [TOKENS * count for count in LENGTHS]
    model: Any = ViTModel.from_pretrained(tiny_video_dir, add_pooling_layer=False)
    processor = ViTImageProcessorPil.from_pretrained(tiny_video_dir)
    for row, count in enumerate(LENGTHS):
        pixels = processor(list(frames(count)), return_tensors="pt")["pixel_values"]
        expected = model(pixels).last_hidden_state.flatten(0, 1)
        torch.testing.assert_close(hidden[row, : TOKENS * count], expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("hook_point", ["output", "attention"])
def test_a_video_does_not_depend_on_its_batch(encoder: Encoder, make_steering: Any, hook_point: str) -> None:
    layers = [encoder.attention(n) if hook_point == "attention" else encoder.layers[n] for n in range(2)]
    plain, _ = encoder(*batch(encoder, LENGTHS))
    steering = Steering(
        make_steering(hook_point=hook_point, scale_init=0.5, vector_std=1.0), layers, encoder.width
    )
    widths = []
    with steering.observed(lambda _, hidden, gates: widths.append(tuple(hidden.shape[:2]))):
        together, lengths = encoder(*batch(encoder, LENGTHS))
    assert widths == [(3, 6 * TOKENS)] * 2  # tokens of a row in one sequence, as losses on routing count them
    assert not torch.allclose(together, plain)
    for row, count in enumerate(LENGTHS):
        alone, _ = encoder(*batch(encoder, (count,)))
        torch.testing.assert_close(together[row, : lengths[row]], alone[0], atol=1e-5, rtol=1e-5)
    with steering.disabled():
        assert torch.equal(encoder(*batch(encoder, LENGTHS))[0], plain)


@torch.no_grad()
def test_no_frame_sees_another(encoder: Encoder) -> None:
    features, lengths = batch(encoder, (4,))
    before, _ = encoder(features, lengths)
    features[:, :, 2] += 1
    after, _ = encoder(features, lengths)
    same = [
        torch.equal(before[0, n * TOKENS : (n + 1) * TOKENS], after[0, n * TOKENS : (n + 1) * TOKENS])
        for n in range(4)
    ]
    assert same == [True, True, False, True]


def test_frames_of_another_size_are_resized_as_the_processor_says(encoder: Encoder) -> None:
    grey = frames(3, side=20)[..., 0]
    assert (
        encoder.features(frames(3, side=20)).shape
        == encoder.features(grey).shape
        == (encoder.features.channels, 3)
    )
    with pytest.raises(ValueError, match="expected uint8 frames"):
        encoder.features(grey.astype(np.float32))


def test_a_folder_without_its_processor_is_named(tiny_video_dir: Path, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((tiny_video_dir / name).read_bytes())
    with pytest.raises(ValueError, match=r"video\.encoder\.path: .* lacks preprocessor_config\.json"):
        load_video_encoder(section(tmp_path))
    with pytest.raises(ValueError, match=r"video\.encoder\.path: found '\./nope'"):
        load_video_encoder(section("./nope"))

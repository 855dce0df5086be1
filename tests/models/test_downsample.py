from collections.abc import Callable
from typing import Any

import pytest
import torch

from steermoe.models.downsample import DOWNSAMPLERS, Average, Concat, Convolution, Max, make_downsampler

LENGTHS = (1, 4, 5, 8, 11, 3)


Make = Callable[..., Any]
SHORTENING = [name for name in DOWNSAMPLERS if name != "none"]


@pytest.fixture
def hidden() -> torch.Tensor:
    """What lies behind each row's end is loud: it must not be heard."""
    values = torch.randn(len(LENGTHS), max(LENGTHS), 6)
    for row, length in enumerate(LENGTHS):
        values[row, length:] = 1e6
    return values


@pytest.mark.parametrize(
    ("name", "kernel"), [("none", 1), *((name, kernel) for name in SHORTENING for kernel in (1, 3, 4))]
)
def test_a_row_does_not_depend_on_its_batch(
    name: str, kernel: int, hidden: torch.Tensor, make_projector: Make
) -> None:
    downsample = make_downsampler(make_projector(downsample=name, downsample_factor=kernel), 6, 3)
    together, tokens = downsample(hidden, torch.tensor(LENGTHS))
    assert tokens.tolist() == [-(-length // kernel) for length in LENGTHS]
    assert together.shape == (len(LENGTHS), -(-max(LENGTHS) // kernel), downsample.width)
    for row, length in enumerate(LENGTHS):
        alone, _ = downsample(hidden[row : row + 1, :length], torch.tensor([length]))
        torch.testing.assert_close(together[row, : tokens[row]], alone[0])


def test_average_is_the_mean_of_the_valid_frames(hidden: torch.Tensor, make_projector: Make) -> None:
    pooled, tokens = Average(make_projector(), 6)(hidden, torch.tensor(LENGTHS))
    for row, length in enumerate(LENGTHS):
        means = [frames.mean(0) for frames in hidden[row, :length].split(4)]
        torch.testing.assert_close(pooled[row, : tokens[row]], torch.stack(means))


def test_concat_keeps_the_frames_in_order(hidden: torch.Tensor, make_projector: Make) -> None:
    joined, tokens = Concat(make_projector(downsample="concat"), 6)(hidden, torch.tensor(LENGTHS))
    for row, length in enumerate(LENGTHS):
        flat = joined[row, : tokens[row]].flatten()
        assert torch.equal(flat[: length * 6], hidden[row, :length].flatten())
        assert not flat[length * 6 :].any()


def test_maximum_is_that_of_the_valid_frames(hidden: torch.Tensor, make_projector: Make) -> None:
    pooled, tokens = Max(make_projector(downsample="max"), 6)(hidden - 5, torch.tensor(LENGTHS))
    for row, length in enumerate(LENGTHS):
        largest = [frames.amax(0) for frames in (hidden[row, :length] - 5).split(4)]
        assert torch.equal(pooled[row, : tokens[row]], torch.stack(largest))


@torch.no_grad()
def test_convolution_is_torchs_and_starts_as_the_average(hidden: torch.Tensor, make_projector: Make) -> None:
    convolve = Convolution(make_projector(downsample="conv"), 6)
    assert sum(p.numel() for p in convolve.parameters()) == 4 * 6 * 6 + 6
    full, lengths = hidden[3:4, :8], torch.tensor([8])
    torch.testing.assert_close(convolve(full, lengths)[0], Average(make_projector(), 6)(full, lengths)[0])
    torch.nn.init.normal_(convolve.linear.weight)
    weight_DDK = convolve.linear.weight.unflatten(1, (4, 6)).transpose(1, 2)
    expected = torch.conv1d(full.transpose(1, 2), weight_DDK, convolve.linear.bias, stride=4)
    torch.testing.assert_close(convolve(full, lengths)[0], expected.transpose(1, 2))


@pytest.mark.parametrize("name", SHORTENING)
def test_gradients_stay_within_the_row(name: str, hidden: torch.Tensor, make_projector: Make) -> None:
    hidden.requires_grad_(True)
    pooled, _ = make_downsampler(make_projector(downsample=name), 6, 3)(hidden, torch.tensor(LENGTHS))
    pooled.sum().backward()
    assert hidden.grad is not None
    for row, length in enumerate(LENGTHS):
        assert hidden.grad[row, :length].abs().sum() > 0
        assert not hidden.grad[row, length:].any()


def test_wider_tokens_cannot_go_to_a_later_layer(make_projector: Make) -> None:
    with pytest.raises(
        ValueError,
        match=r"projector\.downsample_after_layer: found 1 with projector\.downsample 'concat'.* 24 wide",
    ):
        make_downsampler(make_projector(downsample="concat", downsample_after_layer=1), 6, 3)
    with pytest.raises(
        ValueError, match=r"projector\.downsample_after_layer: found 3, the encoder has layers 0 to 2"
    ):
        make_downsampler(make_projector(downsample_after_layer=3), 6, 3)
    assert make_downsampler(make_projector(downsample="conv", downsample_after_layer=1), 6, 3).width == 6


def test_unknown_downsamplers_are_named(make_projector: Make) -> None:
    with pytest.raises(
        ValueError, match=r"projector\.downsample: found 'mean', must be one of: average, concat"
    ):
        make_downsampler(make_projector().model_copy(update={"downsample": "mean"}), 6, 3)

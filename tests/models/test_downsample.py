import pytest
import torch

from steermoe.config import Bridge
from steermoe.models.downsample import DOWNSAMPLERS, Average, Concat, make_downsampler

LENGTHS = (1, 4, 5, 8, 11, 3)


def section(name: str, kernel: int = 4) -> Bridge:
    return Bridge.model_validate({"downsample": name, "kernel": kernel, "projection": "linear"})


@pytest.fixture
def hidden() -> torch.Tensor:
    """What lies behind each row's end is loud: it must not be heard."""
    values = torch.randn(len(LENGTHS), max(LENGTHS), 6)
    for row, length in enumerate(LENGTHS):
        values[row, length:] = 1e6
    return values


@pytest.mark.parametrize("name", DOWNSAMPLERS)
@pytest.mark.parametrize("kernel", [1, 3, 4])
def test_a_row_does_not_depend_on_its_batch(name: str, kernel: int, hidden: torch.Tensor) -> None:
    downsample = make_downsampler(section(name, kernel), 6)
    together, tokens = downsample(hidden, torch.tensor(LENGTHS))
    assert tokens.tolist() == [-(-length // kernel) for length in LENGTHS]
    assert together.shape == (len(LENGTHS), -(-max(LENGTHS) // kernel), downsample.width)
    for row, length in enumerate(LENGTHS):
        alone, _ = downsample(hidden[row : row + 1, :length], torch.tensor([length]))
        torch.testing.assert_close(together[row, : tokens[row]], alone[0])


def test_average_is_the_mean_of_the_valid_frames(hidden: torch.Tensor) -> None:
    pooled, tokens = Average(section("average"), 6)(hidden, torch.tensor(LENGTHS))
    for row, length in enumerate(LENGTHS):
        means = [frames.mean(0) for frames in hidden[row, :length].split(4)]
        torch.testing.assert_close(pooled[row, : tokens[row]], torch.stack(means))


def test_concat_keeps_the_frames_in_order(hidden: torch.Tensor) -> None:
    joined, tokens = Concat(section("concat"), 6)(hidden, torch.tensor(LENGTHS))
    for row, length in enumerate(LENGTHS):
        flat = joined[row, : tokens[row]].flatten()
        assert torch.equal(flat[: length * 6], hidden[row, :length].flatten())
        assert not flat[length * 6 :].any()


@pytest.mark.parametrize("name", DOWNSAMPLERS)
def test_gradients_stay_within_the_row(name: str, hidden: torch.Tensor) -> None:
    hidden.requires_grad_(True)
    pooled, _ = make_downsampler(section(name), 6)(hidden, torch.tensor(LENGTHS))
    pooled.sum().backward()
    assert hidden.grad is not None
    for row, length in enumerate(LENGTHS):
        assert hidden.grad[row, :length].abs().min() > 0
        assert not hidden.grad[row, length:].any()


def test_unknown_downsamplers_are_named() -> None:
    with pytest.raises(
        ValueError, match=r"bridge\.downsample: found 'mean', must be one of: average, concat"
    ):
        make_downsampler(section("average").model_copy(update={"downsample": "mean"}), 6)

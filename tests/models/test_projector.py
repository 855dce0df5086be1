"""Down-sampling and projection: what every row of the registries must do, and the values of each."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from steermoe.models.downsample import DOWNSAMPLERS, Average, Concat, Convolution, Max, make_downsampler
from steermoe.models.projectors import PROJECTIONS, make_projection

Make = Callable[..., Any]
LENGTHS = (1, 4, 5, 8, 11, 3)
SHORTENING = [name for name in DOWNSAMPLERS if name != "none"]
OPTIONS: dict[str, dict[str, int]] = {
    "linear": {}, "mlp": {"width": 512}, "feature_space": {"width": 256, "heads": 4},
    "modality_steering": {"experts": 4}, "adapter_attention": {"width": 512, "heads": 4},
}  # fmt: skip
E, H, PROMPT = 96, 128, torch.tensor([7, 3, 5, 1])


@pytest.fixture
def hidden() -> torch.Tensor:
    """Frames after each row's end are large: they must have no effect."""
    values = torch.randn(len(LENGTHS), max(LENGTHS), 6)
    for row, length in enumerate(LENGTHS):
        values[row, length:] = 1e6
    return values


@pytest.mark.parametrize(
    ("name", "factor"), [("none", 1), *((name, factor) for name in SHORTENING for factor in (1, 3, 4))]
)
def test_a_row_does_not_depend_on_its_batch(
    name: str, factor: int, hidden: torch.Tensor, make_projector: Make
) -> None:
    downsample = make_downsampler(make_projector(downsample=name, downsample_factor=factor), 6, 3)
    hidden.requires_grad_(True)
    together, tokens = downsample(hidden, torch.tensor(LENGTHS))
    assert tokens.tolist() == [-(-length // factor) for length in LENGTHS]
    assert together.shape == (len(LENGTHS), -(-max(LENGTHS) // factor), downsample.width)
    for row, length in enumerate(LENGTHS):
        alone, _ = downsample(hidden[row : row + 1, :length], torch.tensor([length]))
        torch.testing.assert_close(together[row, : tokens[row]], alone[0])
    sum(together[row, :count].sum() for row, count in enumerate(tokens)).backward()  # pyright: ignore
    assert hidden.grad is not None
    for row, length in enumerate(LENGTHS):
        assert hidden.grad[row, :length].abs().sum() > 0 and not hidden.grad[row, length:].any()


@torch.no_grad()
def test_values_of_each_downsampler(hidden: torch.Tensor, make_projector: Make) -> None:
    lengths = torch.tensor(LENGTHS)
    averaged, tokens = Average(make_projector(), 6)(hidden, lengths)
    joined, _ = Concat(make_projector(downsample="concat"), 6)(hidden, lengths)
    largest, _ = Max(make_projector(downsample="max"), 6)(hidden - 5, lengths)
    for row, length in enumerate(LENGTHS):
        windows = hidden[row, :length].split(4)
        torch.testing.assert_close(averaged[row, : tokens[row]], torch.stack([w.mean(0) for w in windows]))
        assert torch.equal(largest[row, : tokens[row]], torch.stack([(w - 5).amax(0) for w in windows]))
        flat = joined[row, : tokens[row]].flatten()
        assert (
            torch.equal(flat[: length * 6], hidden[row, :length].flatten()) and not flat[length * 6 :].any()
        )


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


@pytest.fixture(params=PROJECTIONS)
def section(request: pytest.FixtureRequest, make_projector: Make) -> Any:
    return make_projector(projection=request.param, **OPTIONS[request.param])


@torch.no_grad()
@pytest.mark.parametrize("rms", [0.02, 3.0])
def test_projected_audio_starts_with_the_rms_of_text(section: Any, rms: float) -> None:
    embeddings = torch.randn(500, H) * rms
    projection = make_projection(section, E, embeddings)
    audio = projection(torch.randn(4, 200, E), embeddings[:28].view(4, 7, H), PROMPT)
    assert audio.shape == (4, 200, H)
    assert audio.square().mean().sqrt().item() == pytest.approx(rms, rel=0.08)


def test_counts_are_those_of_the_docstrings(section: Any) -> None:
    w, n = section.width or 0, section.experts or 0
    expected = {
        "linear": H * (E + 1),
        "mlp": w * (E + 1) + H * (w + 1),
        "feature_space": w * (E + H + 2) + 4 * w * (w + 1) + H * (w + 1),
        "modality_steering": 2 * n * (E + H) + 2 * n + H * (E + H + 1),
        "adapter_attention": w * (E + 1) + H * (w + 1) + 4 * H * (H + 1),
    }
    for embeddings in (torch.randn(5, H), torch.empty(5, H, device="meta")):
        projection = make_projection(section, E, embeddings)
        assert sum(p.numel() for p in projection.parameters()) == expected[section.projection]
    projection = make_projection(section, 8, torch.randn(50, H).bfloat16())
    half = torch.randn(1, 3, 8).bfloat16(), torch.randn(1, 2, H).bfloat16()
    assert projection(*half, torch.tensor([2])).dtype == torch.float32


@torch.no_grad()
def test_padding_of_a_prompt_is_not_read(section: Any) -> None:
    projection = make_projection(section, E, torch.randn(50, H))
    for parameter in projection.parameters():  # some are initially zero
        parameter.add_(0.1 * torch.randn_like(parameter))
    audio, prompt = torch.randn(4, 6, E), torch.randn(4, 7, H)
    expected = projection(audio, prompt, PROMPT)
    for row, length in enumerate(PROMPT):
        prompt[row, length:] = 1e4
    torch.testing.assert_close(projection(audio, prompt, PROMPT), expected)
    changed = projection(audio, prompt.roll(1, 0), PROMPT.roll(1, 0))
    assert torch.equal(changed, expected) is not projection.reads_prompt
    none = projection(audio, prompt, torch.tensor([7, 3, 5, 0]))[3:]
    torch.testing.assert_close(projection(audio[3:], prompt[3:, :0], torch.tensor([0])), none)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"downsample": "concat", "downsample_after_layer": 1}, r"found 1 with .* 'concat'.* 24 wide"),
        ({"downsample_after_layer": 3}, r"downsample_after_layer: found 3, the encoder has layers 0 to 2"),
        ({"projection": "feature_space", "width": 10, "heads": 4}, r"heads: found 4; legal: a divisor .* 10"),
    ],
)  # fmt: skip
def test_impossible_projectors_are_errors(make_projector: Make, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_downsampler(make_projector(**changes), 6, 3)
        make_projection(make_projector(**changes), 8, torch.randn(5, 4))

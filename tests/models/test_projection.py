from collections.abc import Callable
from typing import Any

import pytest
import torch

from steermoe.models.projectors import PROJECTIONS, make_projection

OPTIONS: dict[str, dict[str, int]] = {
    "linear": {},
    "mlp": {"width": 512},
    "feature_space": {"width": 256, "heads": 4},
    "modality_steering": {"experts": 4},
    "adapter_attention": {"width": 512, "heads": 4},
}
D, H, PROMPT = 96, 128, torch.tensor([7, 3, 5, 1])
Make = Callable[..., Any]


@pytest.fixture(params=PROJECTIONS)
def section(request: pytest.FixtureRequest, make_projector: Make) -> Any:
    return make_projector(projection=request.param, **OPTIONS[request.param])


@torch.no_grad()
@pytest.mark.parametrize("rms", [0.02, 3.0])
def test_projected_audio_starts_as_loud_as_text(section: Any, rms: float) -> None:
    embeddings = torch.randn(500, H) * rms
    projection = make_projection(section, D, embeddings)
    audio = projection(torch.randn(4, 200, D), embeddings[:28].view(4, 7, H), PROMPT)
    assert audio.shape == (4, 200, H)
    assert audio.square().mean().sqrt().item() == pytest.approx(rms, rel=0.08)


def test_counts_are_those_of_the_docstrings(section: Any) -> None:
    w, n = section.width or 0, section.experts or 0
    expected = {
        "linear": H * (D + 1),
        "mlp": w * (D + 1) + H * (w + 1),
        "feature_space": w * (D + H + 2) + 4 * w * (w + 1) + H * (w + 1),
        "modality_steering": 2 * n * (D + H) + 2 * n + H * (D + H + 1),
        "adapter_attention": w * (D + 1) + H * (w + 1) + 4 * H * (H + 1),
    }
    projection = make_projection(section, D, torch.randn(5, H))
    assert sum(p.numel() for p in projection.parameters()) == expected[section.projection]
    on_meta = make_projection(section, D, torch.empty(5, H, device="meta"))
    assert sum(p.numel() for p in on_meta.parameters()) == expected[section.projection]


def _moved(section: Any) -> torch.nn.Module:
    """A projection whose parameters are not those that it begins with, some of which are zero."""
    projection = make_projection(section, D, torch.randn(50, H))
    for parameter in projection.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    return projection


@torch.no_grad()
def test_no_prompt_is_what_padding_alone_is(section: Any) -> None:
    projection = _moved(section)
    audio, prompt = torch.randn(2, 6, D), torch.randn(2, 7, H)
    beside = projection(audio, prompt, torch.tensor([7, 0]))[1:]
    alone = projection(audio[1:], prompt[1:, :0], torch.tensor([0]))
    torch.testing.assert_close(alone, beside)


@torch.no_grad()
def test_what_lies_behind_a_prompt_is_not_read(section: Any) -> None:
    projection = _moved(section)
    audio, prompt = torch.randn(4, 6, D), torch.randn(4, 7, H)
    expected = projection(audio, prompt, PROMPT)
    for row, length in enumerate(PROMPT):
        prompt[row, length:] = 1e4
    torch.testing.assert_close(projection(audio, prompt, PROMPT), expected)
    changed = projection(audio, prompt.roll(1, 0), PROMPT.roll(1, 0))
    assert torch.equal(changed, expected) is not projection.reads_prompt


def test_gradients_reach_every_parameter_soon(section: Any) -> None:
    """What starts behind zeros gets its first gradient after one step."""
    projection = make_projection(section, D, torch.randn(50, H))
    audio, prompt = torch.randn(4, 6, D), torch.randn(4, 7, H)
    optimizer = torch.optim.SGD(projection.parameters(), lr=0.01)
    for _ in range(2):
        optimizer.zero_grad()
        projection(audio, prompt, PROMPT).square().sum().backward()
        optimizer.step()
    for name, parameter in projection.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name


def test_bfloat16_on_both_sides_leaves_it_in_float32(section: Any) -> None:
    projection = make_projection(section, 8, torch.randn(50, 16).bfloat16())
    assert {p.dtype for p in projection.parameters()} == {torch.float32}
    half = torch.randn(1, 3, 8).bfloat16(), torch.randn(1, 2, 16).bfloat16()
    assert projection(*half, torch.tensor([2])).dtype == torch.float32


def test_unknown_projections_and_odd_heads_are_named(make_projector: Make) -> None:
    with pytest.raises(
        ValueError, match=r"projector\.projection: found 'mpl', must be one of: .*linear, mlp"
    ):
        make_projection(make_projector().model_copy(update={"projection": "mpl"}), 8, torch.randn(5, 4))
    odd = make_projector(projection="feature_space", width=10, heads=4)
    with pytest.raises(ValueError, match=r"projector\.heads: found 4; legal: a divisor of .* 10"):
        make_projection(odd, 8, torch.randn(5, 4))

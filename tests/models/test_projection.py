import pytest
import torch

from steermoe.config import Bridge
from steermoe.models.projection import PROJECTIONS, make_projection

SECTION = Bridge.model_validate({"downsample": "average", "kernel": 4, "projection": "linear"})


@pytest.mark.parametrize("name", PROJECTIONS)
@pytest.mark.parametrize("rms", [0.02, 3.0])
def test_projected_audio_starts_as_loud_as_text(name: str, rms: float) -> None:
    embeddings = torch.randn(500, 128) * rms
    projection = make_projection(SECTION.model_copy(update={"projection": name}), 96, embeddings)
    audio = projection(torch.randn(4, 200, 96))
    assert audio.shape == (4, 200, 128)
    assert audio.square().mean().sqrt().item() == pytest.approx(rms, rel=0.05)


def test_bfloat16_on_both_sides_leaves_it_in_float32() -> None:
    projection = make_projection(SECTION, 8, torch.randn(50, 16).bfloat16())
    assert {p.dtype for p in projection.parameters()} == {torch.float32}
    assert projection(torch.randn(1, 3, 8).bfloat16()).dtype == torch.float32


def test_unknown_projections_are_named() -> None:
    with pytest.raises(ValueError, match=r"bridge\.projection: found 'mlp', must be one of: linear"):
        make_projection(SECTION.model_copy(update={"projection": "mlp"}), 8, torch.randn(5, 4))

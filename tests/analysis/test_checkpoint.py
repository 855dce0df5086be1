from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from PIL import Image

from steermoe.analysis.checkpoint import analyze
from steermoe.models.routers import ROUTERS
from steermoe.models.steermoe import SteerMoE

OPTIONS = {"hierarchical": {"steering.groups": 2}, "progressive": {"steering.stages": 2}}


@pytest.mark.parametrize("router", ROUTERS)
def test_any_router_is_analyzed(
    router: str, tiny_variant: Callable[..., Any], utterances: pl.DataFrame, tmp_path: Path
) -> None:
    changed = {"steering.router": router, **OPTIONS.get(router, {}), "steering.post_encoder": True}
    changed |= {"steering.layers": "last-2", "steering.num_experts": [4, 6, 4]}
    model = SteerMoE.from_config(tiny_variant("steering", changed))
    files = analyze(model, utterances[::10], tmp_path)
    assert {file.name for file in files} == {file.name for file in tmp_path.iterdir()}
    page = files[0].read_text()
    for file in files[1:]:
        if file.suffix == ".png":
            assert f"({file.name})" in page
            with Image.open(file) as picture:
                assert picture.width > 600 and len(picture.convert("RGB").getcolors(2**24) or []) > 10
    gates = pl.read_csv(tmp_path / "gates.csv")
    counts = gates.filter(pl.col("condition") == "all").group_by("place", maintain_order=True).len()
    assert counts.rows() == [("1", 4), ("2", 6), ("post", 4)]
    assert set(gates["condition"]) >= {"split", "task"}


def test_the_same_seed_gives_the_same_page(
    tiny_variant: Callable[..., Any], utterances: pl.DataFrame, tmp_path: Path
) -> None:
    model = SteerMoE.from_config(tiny_variant("steering"))
    pages = [
        analyze(model, utterances[:6], tmp_path / name, ("task",), seed=2)[0].read_bytes() for name in "ab"
    ]
    assert pages[0] == pages[1]


def test_what_cannot_be_analyzed_is_told(
    tiny_variant: Callable[..., Any], utterances: pl.DataFrame, tmp_path: Path
) -> None:
    steered = SteerMoE.from_config(tiny_variant("steering"))
    with pytest.raises(ValueError, match="no utterances"):
        analyze(steered, utterances[:0], tmp_path)
    with pytest.raises(ValueError, match=r"conditions: found 'mood'; legal: source_id, split, speaker"):
        analyze(steered, utterances[:3], tmp_path, ("mood",))
    with pytest.raises(ValueError, match="method linear has no experts"):
        analyze(SteerMoE.from_config(tiny_variant("linear")), utterances[:3], tmp_path)
    assert not any(tmp_path.iterdir())

from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from steermoe.analysis import specialisation
from steermoe.analysis.specialisation import Usage
from steermoe.audio.io import RATE, encode_flac
from steermoe.models.steermoe import SteerMoE

UTTERANCES, EXPERTS = 40, 4


def used(difference: float, silent: float = 0.0) -> Usage:
    """Two places; at the first, split `other` prefers expert 0, and silence expert 1; at the second nothing does."""
    rng = np.random.default_rng(3)
    split = ["clean"] * (UTTERANCES // 2) + ["other"] * (UTTERANCES // 2)
    frames = rng.integers(20, 60, (UTTERANCES, 2))
    gates = []
    for place in range(2):
        logits = rng.normal(0, 0.5, (UTTERANCES, 2, EXPERTS))
        if place == 0:
            logits[UTTERANCES // 2 :, :, 0] += difference
            logits[:, 1, 1] += silent
        shares = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        gates.append(shares * frames[..., None])
    rows = pl.DataFrame({"split": split, "speaker": ["s"] * UTTERANCES, "task": ["transcribe"] * UTTERANCES})
    return Usage(rows, ["0", "post"], gates, [frames, frames])


def test_mean_gates_are_shares_and_groups_make_up_the_whole() -> None:
    table = specialisation.table(used(1.0))
    sums = table.group_by("condition", "group", "place").agg(
        pl.col("mean_gate").sum(), pl.col("frames").first()
    )
    assert sums["mean_gate"].to_numpy() == pytest.approx(1)
    assert set(table["condition"]) == {
        "all",
        "split",
        "sound",
    }  # of one speaker and one task there is no comparison
    for condition in ("split", "sound"):
        whole = sums.filter(pl.col("condition") == "all", pl.col("place") == "0")["frames"].sum()
        assert sums.filter(pl.col("condition") == condition, pl.col("place") == "0")["frames"].sum() == whole


def test_a_planted_difference_is_found_and_no_other() -> None:
    found = specialisation.divergences(used(1.5, silent=2.0))
    p = {(row["condition"], row["place"]): row["p"] for row in found.iter_rows(named=True)}
    assert p["split", "0"] < 0.01 and p["sound", "0"] < 0.01
    assert p["split", "post"] > 0.05 and p["sound", "post"] > 0.05
    planted = found.filter(pl.col("place") == "0")
    assert (planted["divergence"] > 3 * planted["by_chance"]).all()


def test_without_a_difference_p_is_uniform() -> None:
    rng = np.random.default_rng(0)
    p = []
    for _ in range(40):
        usage = used(0.0)
        order = rng.permutation(UTTERANCES)
        dealt = Usage(
            usage.rows, usage.places, [g[order] for g in usage.gates], [f[order] for f in usage.frames]
        )
        p.append(specialisation.divergences(dealt, ("split",)).filter(pl.col("condition") == "split")["p"][0])
    assert 0.3 < np.mean(p) < 0.7 and min(p) < 0.2


def test_divergence_has_its_bounds() -> None:
    apart = specialisation._divergence([np.array([5.0, 0]), np.array([0, 7.0])], [5, 7])
    assert apart == pytest.approx(1)
    assert specialisation._divergence([np.array([2.0, 2]), np.array([5.0, 5])], [4, 10]) == pytest.approx(0)


def test_usage_of_a_model_parts_sound_from_silence(tiny_variant: Callable[..., Any]) -> None:
    model = SteerMoE.from_config(
        tiny_variant("steering", {"steering.post_encoder": True, "steering.layers": [1]})
    )
    rng = np.random.default_rng(1)
    waveform = np.concatenate([0.1 * rng.standard_normal(RATE), np.zeros(RATE // 2)]).astype(np.float32)
    rows = pl.DataFrame({"audio": [encode_flac(waveform, RATE)], "split": ["clean"]})
    found = specialisation.usage(model, rows)
    assert found.places == ["1", "post"]
    for frames, gates in zip(found.frames, found.gates, strict=True):
        assert frames.tolist() == [[50, 25]]
        assert gates.sum((0, 2)) == pytest.approx([50, 25], rel=1e-5)


def test_geometry_is_that_of_the_scaled_vectors(tiny_variant: Callable[..., Any]) -> None:
    model = SteerMoE.from_config(
        tiny_variant("steering", {"steering.layers": [0, 2], "steering.num_experts": [2, 4]})
    )
    assert model.steering is not None
    with torch.no_grad():
        model.steering.vectors[0] = -2 * model.steering.vectors[1]
    found = specialisation.geometry(model.steering)
    assert [len(found[place]["norms"]) for place in ("0", "2")] == [2, 4]
    assert found["0"]["similarity"][0] == pytest.approx([1, -1])
    assert found["0"]["norms"][0] == pytest.approx(2 * found["0"]["norms"][1])


def test_other_methods_have_no_experts(tiny_variant: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match="method linear has no experts"):
        specialisation.usage(SteerMoE.from_config(tiny_variant("linear")), pl.DataFrame())

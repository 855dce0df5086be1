"""The collector of expert use against the model, its statistics against planted data, and the folder it writes."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image

from steermoe.analysis import experts
from steermoe.analysis.experts import PlaceUse, Usage, analyze, collect, collect_all, summarise
from steermoe.audio.io import RATE, encode_flac
from steermoe.data.dataset import UtteranceDataset, collate
from steermoe.models.routers import ROUTERS
from steermoe.models.steermoe import SteerMoE

OPTIONS = {"hierarchical": {"steering.groups": 2}, "progressive": {"steering.stages": 2}}
UTTERANCES, EXPERTS = 40, 4


@pytest.fixture
def model(tiny_variant: Callable[..., Any]) -> SteerMoE:
    decided = {"steering.layers": [0, 2], "steering.scale_init": 0.5, "steering.vector_std": 0.3}
    return SteerMoE.from_config(tiny_variant("steering", decided))


def use_of(model: SteerMoE, rows: pl.DataFrame, max_batch_seconds: float = 5.0) -> dict:
    return summarise(model, collect(model, rows, max_batch_seconds))


def test_gates_are_shares_and_numbers_fit_together(model: SteerMoE, utterances: pl.DataFrame) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = use_of(model, utterances[:20], 1.0)
    assert found["layers"] == ["0", "2"] and found["experts"] == [4, 4] and found["utterances"] == 20
    assert found["frames"] == 20 * 10  # 0.2 s at 50 frames a second
    for layer in range(2):
        assert sum(found["mean_gates"][layer]) == pytest.approx(1)
        assert 1 <= found["effective_experts"][layer] <= found["effective_load"][layer] <= 4 + 1e-6
        assert found["effective_experts"][layer] == pytest.approx(math.exp(found["entropy"][layer]))
    assert found["scales"] == [0.5, 0.5]
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_models_are_collected_over_rows_of_all_corpora(
    model: SteerMoE, utterances: pl.DataFrame, tmp_path: Path
) -> None:
    model.save_pretrained(tmp_path / "steered")
    with_video = utterances[:3].with_columns(pl.lit(b"", pl.Binary).alias("video"))
    found = collect_all({"steered": tmp_path / "steered"}, [utterances[3:8], with_video], 1.0, seed=0)
    assert list(found) == ["steered"] and found["steered"]["utterances"] == 8
    assert collect_all({"steered": tmp_path / "steered"}, [], 1.0, seed=0) == {}


def test_batches_do_not_change_what_is_collected(model: SteerMoE, utterances: pl.DataFrame) -> None:
    """Padded frames would."""
    long = encode_flac(0.1 * np.random.default_rng(1).standard_normal(RATE), RATE)
    rows = utterances[-6:].with_columns(
        pl.Series("audio", [*utterances["audio"][-6:-1], long]),
        pl.Series("seconds", [*utterances["seconds"][-6:-1], 1.0]),
    )
    alone, together = (use_of(model, rows, seconds) for seconds in (0.01, 100.0))
    assert alone["frames"] == together["frames"] == 5 * 10 + 50
    for name in ("steer_to_residual", "entropy"):
        assert alone[name] == pytest.approx(together[name], rel=1e-4)


def test_even_and_single_experts(model: SteerMoE, utterances: pl.DataFrame) -> None:
    assert model.steering is not None
    with torch.no_grad():
        for parameter in model.steering.router.parameters():
            parameter.zero_()
            if parameter.ndim == 1:  # the bias of 2 layers with 4 experts each
                parameter[4 + 1] = 50.0
    found = use_of(model, utterances[:5])
    assert found["effective_experts"] == pytest.approx([4, 1])
    assert found["mean_gates"][1] == pytest.approx([0, 1, 0, 0], abs=1e-6)


def test_ratio_is_that_of_steered_and_unsteered_outputs(model: SteerMoE, utterances: pl.DataFrame) -> None:
    rows = utterances[:1]
    assert model.steering is not None
    batch = collate([UtteranceDataset(rows, model.features, model.tokenizer, model.config.prompts)[0]])
    seen: list[Any] = []
    for context in (torch.no_grad(), model.steering.disabled()):
        handle = model.encoder.layers[0].register_forward_hook(
            lambda layer, args, output: seen.append(output)
        )
        with torch.no_grad(), context:
            model.encoder(batch["features"], batch["feature_lengths"])
        handle.remove()
    steered, plain = (each[0] if isinstance(each, tuple) else each for each in seen)
    expected = (steered - plain).square().mean().sqrt() / plain.square().mean().sqrt()
    assert use_of(model, rows)["steer_to_residual"][0] == pytest.approx(float(expected), rel=1e-3)


def test_sound_and_silence_are_told_apart(tiny_variant: Callable[..., Any], utterances: pl.DataFrame) -> None:
    changed = {"steering.post_encoder": True, "steering.layers": [1]}
    model = SteerMoE.from_config(tiny_variant("steering", changed))
    noise = 0.1 * np.random.default_rng(1).standard_normal(RATE)
    audio = encode_flac(np.concatenate([noise, np.zeros(RATE // 2)]).astype(np.float32), RATE)
    row = utterances[:1].with_columns(pl.lit(audio).alias("audio"), pl.lit(1.5).alias("seconds"))
    found = collect(model, row, by_sound=True)
    assert [place.name for place in found.places] == ["1", "post"]
    for place in found.places:
        assert place.frames.tolist() == [[50, 25]]
        assert place.gates.sum((0, 2)) == pytest.approx([50, 25], rel=1e-5)


def planted(difference: float, silent: float = 0.0) -> Usage:
    """Two places; at the first, split `other` prefers expert 0, and silence expert 1; at the second nothing does."""
    rng = np.random.default_rng(3)
    split = ["clean"] * (UTTERANCES // 2) + ["other"] * (UTTERANCES // 2)
    frames = rng.integers(20, 60, (UTTERANCES, 2))
    places = []
    for name in ("0", "post"):
        logits = rng.normal(0, 0.5, (UTTERANCES, 2, EXPERTS))
        if name == "0":
            logits[UTTERANCES // 2 :, :, 0] += difference
            logits[:, 1, 1] += silent
        shares = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        places.append(PlaceUse(name, shares * frames[..., None], frames))
    rows = pl.DataFrame({"split": split, "speaker": ["s"] * UTTERANCES, "task": ["transcribe"] * UTTERANCES})
    return Usage(rows, places)


def test_mean_gates_are_shares_and_groups_make_up_the_whole() -> None:
    table = experts.table(planted(1.0))
    sums = table.group_by("condition", "group", "place").agg(
        pl.col("mean_gate").sum(), pl.col("frames").first()
    )
    assert sums["mean_gate"].to_numpy() == pytest.approx(1)
    assert set(table["condition"]) == {"all", "split", "sound"}  # one speaker and one task do not compare
    totals = sums.filter(place="0").group_by("condition").agg(pl.col("frames").sum())
    assert len(set(totals["frames"])) == 1


def test_a_planted_difference_is_found_and_no_other() -> None:
    found = experts.divergences(planted(1.5, silent=2.0))
    p = {(row["condition"], row["place"]): row["p"] for row in found.iter_rows(named=True)}
    assert p["split", "0"] < 0.01 and p["sound", "0"] < 0.01
    assert p["split", "post"] > 0.05 and p["sound", "post"] > 0.05
    there = found.filter(pl.col("place") == "0")
    assert (there["divergence"] > 3 * there["by_chance"]).all()


def test_without_a_difference_p_is_uniform() -> None:
    rng, p = np.random.default_rng(0), []
    for _ in range(40):
        usage, order = planted(0.0), rng.permutation(UTTERANCES)
        places = [PlaceUse(each.name, each.gates[order], each.frames[order]) for each in usage.places]
        p.append(experts.divergences(Usage(usage.rows, places), ("split",)).filter(condition="split")["p"][0])
    assert 0.3 < np.mean(p) < 0.7 and min(p) < 0.2


def test_geometry_is_that_of_the_scaled_vectors(tiny_variant: Callable[..., Any]) -> None:
    changed = {"steering.layers": [0, 2], "steering.num_experts": [2, 4]}
    model = SteerMoE.from_config(tiny_variant("steering", changed))
    assert model.steering is not None
    with torch.no_grad():
        model.steering.vectors[0] = -2 * model.steering.vectors[1]
    found = experts.geometry(model.steering)
    assert [len(found[place]["norms"]) for place in ("0", "2")] == [2, 4]
    assert found["0"]["similarity"][0] == pytest.approx([1, -1])
    assert found["0"]["norms"][0] == pytest.approx(2 * found["0"]["norms"][1])


@pytest.mark.parametrize("router", ROUTERS)
def test_any_router_is_analyzed(
    router: str, tiny_variant: Callable[..., Any], utterances: pl.DataFrame, tmp_path: Path
) -> None:
    changed = {"steering.router": router, **OPTIONS.get(router, {}), "steering.post_encoder": True}
    changed |= {"steering.layers": "last-2", "steering.num_experts": [4, 6, 4]}
    model = SteerMoE.from_config(tiny_variant("steering", changed))
    files = analyze(model, utterances[::10], tmp_path / "a", ("split", "task"), seed=2)
    assert {file.name for file in files} == {file.name for file in (tmp_path / "a").iterdir()}
    page = files[0].read_text()
    for file in files[1:]:
        if file.suffix == ".png":
            assert f"({file.name})" in page
            with Image.open(file) as picture:
                assert picture.width > 600 and len(picture.convert("RGB").getcolors(2**24) or []) > 10
    if router == "shared":
        again = analyze(model, utterances[::10], tmp_path / "b", ("split", "task"), seed=2)
        assert again[0].read_bytes() == files[0].read_bytes()


def test_what_cannot_be_analyzed_is_refused(
    model: SteerMoE, tiny_variant: Callable[..., Any], utterances: pl.DataFrame, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="no utterances"):
        analyze(model, utterances[:0], tmp_path)
    with pytest.raises(ValueError, match=r"conditions: found 'mood'; legal: source_id, split, speaker"):
        analyze(model, utterances[:3], tmp_path, ("mood",))
    with pytest.raises(ValueError, match="method linear has no experts"):
        analyze(SteerMoE.from_config(tiny_variant("linear")), utterances[:3], tmp_path)
    assert not any(tmp_path.iterdir())

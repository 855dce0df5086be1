import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from steermoe.analysis.steering import collect, collect_all
from steermoe.audio.io import RATE, encode_flac
from steermoe.data.dataset import UtteranceDataset, collate
from steermoe.models.steering import Steering
from steermoe.models.steermoe import SteerMoE


@pytest.fixture
def model(tiny_variant: Callable[..., Any]) -> SteerMoE:
    decided = {"steering.layers": [0, 2], "steering.scale_init": 0.5, "steering.vector_std": 0.3}
    return SteerMoE.from_config(tiny_variant("steering", decided))


def steering_of(model: SteerMoE) -> Steering:
    assert model.steering is not None
    return model.steering


def test_gates_are_shares_and_numbers_fit_together(model: SteerMoE, utterances: pl.DataFrame) -> None:
    found = collect(model, utterances[:20], max_batch_seconds=1.0, seed=0)
    assert found is not None
    assert found["layers"] == ["0", "2"] and found["experts"] == [4, 4] and found["utterances"] == 20
    assert found["frames"] == 20 * 10  # 0.2 s at 50 frames a second
    for layer in range(2):
        assert sum(found["mean_gates"][layer]) == pytest.approx(1)
        assert 1 <= found["effective_experts"][layer] <= found["effective_load"][layer] <= 4 + 1e-6
        assert found["effective_experts"][layer] == pytest.approx(math.exp(found["entropy"][layer]))
    assert found["scales"] == [0.5, 0.5]


def test_all_models_are_looked_at_with_rows_of_all_corpora(
    model: SteerMoE, tiny_variant: Callable[..., Any], utterances: pl.DataFrame, tmp_path: Path
) -> None:
    """One of them has videos; a model without steering has nothing to tell."""
    model.save_pretrained(tmp_path / "steered")
    SteerMoE.from_config(tiny_variant("linear")).save_pretrained(tmp_path / "linear")
    models = {name: tmp_path / name for name in ("steered", "linear")}
    seeing = utterances[:3].with_columns(pl.lit(b"", pl.Binary).alias("video"))
    found = collect_all(models, [utterances[3:8], seeing], max_batch_seconds=1.0, seed=0)
    assert list(found) == ["steered"] and found["steered"]["utterances"] == 8
    assert collect_all(models, [], max_batch_seconds=1.0, seed=0) == {}


def test_batches_do_not_change_what_is_seen(model: SteerMoE, utterances: pl.DataFrame) -> None:
    """Padded frames would."""
    mixed = utterances.with_columns(pl.Series("audio", [*utterances["audio"][:-1], long_audio()]))
    rows = mixed.with_columns(pl.Series("seconds", [*mixed["seconds"][:-1], 1.0]))[-6:]
    alone, together = (collect(model, rows, seconds, seed=0) for seconds in (0.01, 100.0))
    assert alone is not None and together is not None
    assert alone["frames"] == together["frames"] == 5 * 10 + 50
    for name in ("steer_to_residual", "entropy"):
        assert alone[name] == pytest.approx(together[name], rel=1e-4)


def long_audio() -> bytes:
    return encode_flac(0.1 * np.random.default_rng(1).standard_normal(RATE), RATE)


def test_even_and_single_experts(model: SteerMoE, utterances: pl.DataFrame) -> None:
    with torch.no_grad():
        for parameter in steering_of(model).router.parameters():
            parameter.zero_()
            if parameter.ndim == 1:  # the bias of 2 layers with 4 experts each
                parameter[4 + 1] = 50.0
    found = collect(model, utterances[:5], max_batch_seconds=5.0, seed=0)
    assert found is not None
    assert found["effective_experts"] == pytest.approx([4, 1])
    assert found["mean_gates"][1] == pytest.approx([0, 1, 0, 0], abs=1e-6)


def test_ratio_is_that_of_steered_and_unsteered_outputs(model: SteerMoE, utterances: pl.DataFrame) -> None:
    rows = utterances[:1]
    found = collect(model, rows, max_batch_seconds=5.0, seed=0)
    item = UtteranceDataset(rows, model.features, model.tokenizer, model.config.prompts)[0]
    seen: list[Any] = []
    first = model.encoder.layers[0]
    batch = collate([item])
    for context in (torch.no_grad(), steering_of(model).disabled()):
        handle = first.register_forward_hook(lambda layer, args, output: seen.append(output))
        with torch.no_grad(), context:
            model.encoder(batch["features"], batch["feature_lengths"])
        handle.remove()
    steered, plain = (each[0] if isinstance(each, tuple) else each for each in seen)
    assert found is not None
    expected = (steered - plain).square().mean().sqrt() / plain.square().mean().sqrt()
    assert found["steer_to_residual"][0] == pytest.approx(float(expected), rel=1e-3)


def test_looking_leaves_the_model_as_it_was(model: SteerMoE, utterances: pl.DataFrame) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    item = UtteranceDataset(utterances, model.features, model.tokenizer, model.config.prompts)[0]
    batch = collate([item])
    prompt = torch.zeros(1, 1, 32), torch.tensor([1])
    with torch.no_grad():
        first = model.encode(batch["features"], batch["feature_lengths"], *prompt)[0]
        collect(model, utterances[:3], max_batch_seconds=5.0, seed=0)
        second = model.encode(batch["features"], batch["feature_lengths"], *prompt)[0]
    assert torch.equal(first, second)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_model_without_steering_has_nothing_to_show(
    tiny_variant: Callable[..., Any], utterances: pl.DataFrame
) -> None:
    assert collect(SteerMoE.from_config(tiny_variant("linear")), utterances, 5.0, seed=0) is None

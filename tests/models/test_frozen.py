from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from steermoe.models import pretrained as frozen
from steermoe.models.pretrained import digest, frozen_weights, load_frozen

WEIGHTS = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor(1.0)}


def test_the_digest_knows_no_order_and_no_layout() -> None:
    turned = {"b": WEIGHTS["b"], "a": WEIGHTS["a"].T.contiguous().T}
    assert not turned["a"].is_contiguous()
    assert digest(turned) == digest(WEIGHTS)


@pytest.mark.parametrize(
    "other",
    [
        {"a": WEIGHTS["a"].clone().index_fill_(1, torch.tensor(0), 1e-30), "b": WEIGHTS["b"]},
        {"a": WEIGHTS["a"].view(3, 2), "b": WEIGHTS["b"]},
        {"a": WEIGHTS["a"].bfloat16(), "b": WEIGHTS["b"]},
        {"c": WEIGHTS["a"], "b": WEIGHTS["b"]},
        {"a": WEIGHTS["a"]},
    ],
    ids=["value", "shape", "type", "name", "number"],
)
def test_the_digest_knows_the_rest(other: dict[str, torch.Tensor]) -> None:
    assert digest(other) != digest(WEIGHTS)


def test_frozen_weights_are_what_is_not_trained_each_once() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, bias=False), nn.BatchNorm1d(2))
    module.requires_grad_(False)
    module[1].weight = module[0].weight
    module[0].bias.requires_grad_(True)
    statistics = {"2.running_mean", "2.running_var", "2.num_batches_tracked"}
    assert set(frozen_weights(module)) == {"0.weight", "2.weight", "2.bias"} | statistics


@pytest.mark.parametrize("shown", [True, False])
def test_only_large_models_show_their_progress(
    tiny_llm_dir: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, shown: bool
) -> None:
    if shown:
        monkeypatch.setattr(frozen, "QUIET_BYTES", 10)
    assert logging.is_progress_bar_enabled()
    load_frozen(AutoModelForCausalLM, str(tiny_llm_dir), "float32", "llm")
    assert ("Loading weights" in capfd.readouterr().err) == shown
    assert logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        load_frozen(AutoModelForCausalLM, str(tiny_llm_dir), "float32", "llm")
        assert not logging.is_progress_bar_enabled()
    finally:
        logging.enable_progress_bar()

"""What is scored without training: on the GPU where there is one, and the same whatever the reference is."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest

from pipeline import baseline
from steermoe import config
from steermoe import distributed as processes
from steermoe.data import filters, shards
from steermoe.evaluation import baselines, decoders, preservation
from steermoe.models.steermoe import SteerMoE

PARAMS = Path(__file__).parents[2] / "params.yaml"


def test_all_is_where_the_gpu_is_and_asked_as_every_variant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared, found = config.load(PARAMS), dict[str, Any]()

    def build(variant: config.VariantConfig) -> Any:
        model = SimpleNamespace(config=variant, device="cpu")
        model.to = lambda device: found.setdefault("model", SimpleNamespace(config=variant, device=device))
        return model

    def decoder(section: Any, generation: Any, seed: int, device: str = "cpu") -> None:
        found["decoder"] = device

    own = shared.variant(shared.reference)
    changed = own.model_copy(
        update={"prompts": own.prompts.model_copy(update={"transcribe": "of this variant alone"})}
    )
    monkeypatch.setattr(config.Config, "variant", lambda self, name: changed)
    monkeypatch.setattr(processes, "device", lambda: "cuda:0")
    monkeypatch.setattr(SteerMoE, "from_config", build)
    monkeypatch.setattr(decoders, "own_decoder", decoder)
    for module, name in ((preservation, "text_tasks"), (baselines, "constant"), (filters, "skipped_reason")):
        monkeypatch.setattr(module, name, lambda *_: None)
    monkeypatch.setattr(shards, "read_rows", lambda *_: pl.DataFrame(schema={"task": pl.String}))
    monkeypatch.setattr(baselines, "text_only", lambda model, *_: found.update(asked=model))
    baseline.main("synthetic", tmp_path, tmp_path / "out", PARAMS)
    assert found["decoder"] == found["asked"].device == "cuda:0"
    assert found["asked"].config.prompts == shared.prompts

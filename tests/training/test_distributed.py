"""Two processes train as one does, but for rounding, and resume exactly what they began."""

import csv
import json
import os
import signal
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from safetensors.torch import load_file

from steermoe.config import Distillation, Distributed, Evaluation, VariantConfig
from steermoe.data.shards import read_rows
from steermoe.distributed import ONE_PROCESS, PREEMPTED, PreemptedError
from steermoe.evaluation.evaluator import evaluate
from steermoe.models.generation import GREEDY
from steermoe.models.steermoe import SteerMoE
from steermoe.training.loop import Trainer
from steermoe.training.train import FrozenChangedError, train

from .conftest import after_step, outputs

pytestmark = pytest.mark.slow
REFUSED, CHANGED = 9, 7  # exit codes
WAYS = {  # processes, strategy, offload
    "ddp": (2, "ddp", "none"),
    "zero2": (2, "zero2", "none"),
    "zero3": (2, "zero3", "none"),
    "zero2-offload": (2, "zero2", "cpu"),
    "zero3-offload": (2, "zero3", "cpu"),
    "zero3-alone": (1, "zero3", "none"),
}


def section(way: str | None) -> Distributed:
    if way is None:
        return ONE_PROCESS
    count, strategy, offload = WAYS[way]
    return Distributed.model_validate({"processes": count, "strategy": strategy, "offload": offload})


def _engine_of(trainer: Trainer) -> dict:
    """What of the strategy can be read off the running engine."""
    wrapped: Any = trainer.engine.wrapped
    if not trainer.engine.zero_stage:
        return {"model": type(wrapped).__name__}
    frozen: list[Any] = [p for p in trainer.model.parameters() if not p.requires_grad]
    offload = wrapped.zero_offload_optimizer()
    return {
        "stage": wrapped.zero_optimization_stage(),
        "offload": None if offload is None else str(offload.device),
        "offload_param": wrapped.zero_offload_param() is not None,
        "groups": [group["name"] for group in trainer.engine.optimizer.param_groups],
        "frozen": sum((p.ds_tensor if hasattr(p, "ds_tensor") else p).numel() for p in frozen),
        "moments": sum(s["exp_avg"].numel() for s in trainer.engine.optimizer.state.values()),
    }


def _train(
    variant: str, shards: list[Path], out: Path, root: Path, way: str | None, until: int | None, tampers: bool
) -> None:
    """Train; the first process gets SIGTERM after `until` steps, the last changes a weight if it `tampers`."""
    rank, fit = int(os.environ.get("RANK", "0")), Trainer.fit

    def noted(self: Trainer) -> None:
        fit(self)
        (root / f"engine-{rank}.json").write_text(json.dumps(_engine_of(self)))
        (root / f"log-{rank}.json").write_text(json.dumps(self.log))
        if tampers and rank == self.engine.world - 1:
            weights = self.model.frozen_parts()["llm"]
            tensor: Any = weights[sorted(weights)[0]]
            for held in (tensor, getattr(tensor, "ds_tensor", None)):  # ZeRO-3 keeps small tensors whole, too
                if held is not None and held.numel():
                    held.data.view(-1)[0] += 1e-2

    Trainer.fit = noted
    if until is not None and rank == 0:
        after_step(until, lambda: os.kill(os.getpid(), signal.SIGTERM))
    try:
        train(VariantConfig.from_json(variant), shards, out, root, distributed=section(way))
    except PreemptedError:
        raise SystemExit(PREEMPTED) from None
    except FrozenChangedError:
        raise SystemExit(CHANGED) from None
    except ValueError as error:
        assert "to be resumed with" in str(error)
        raise SystemExit(REFUSED) from None


@pytest.fixture
def trained(together, shards, tmp_path):
    """`trained(variant, way, name, until=None, tampers=False)`: the exit code that all processes share."""

    def run(variant: VariantConfig, way: str | None, name="out", until=None, tampers=False) -> int:
        count = 1 if way is None else WAYS[way][0]
        arguments = variant.to_json(), shards, tmp_path / name, tmp_path, way, until, tampers
        [code] = set(together(count, _train, *arguments))
        return code

    return run


def curve(out: Path) -> list[dict[str, float]]:
    rows = csv.DictReader((out / "history.csv").read_text().splitlines())
    return [{name: float(value) for name, value in row.items() if value} for row in rows]


def assert_alike(out: Path, reference: Path) -> None:
    for mine, theirs in zip(curve(out), curve(reference), strict=True):
        assert mine == pytest.approx(theirs, rel=2e-4, abs=1e-6)
    weights, others = (load_file(folder / "adapter.safetensors") for folder in (out, reference))
    assert weights.keys() == others.keys()
    for name, tensor in weights.items():
        torch.testing.assert_close(tensor, others[name], rtol=2e-3, atol=2e-5)


@pytest.fixture(scope="module")
def references() -> dict[str, Path]:
    return {}


@pytest.fixture
def reference(references, shards, quick_variant, tmp_path) -> Path:
    """The folder that one process without a strategy writes."""
    if not references:
        references["steering"] = tmp_path / "alone"
        train(quick_variant("steering"), shards, references["steering"], tmp_path)
    return references["steering"]


ENGINES = {
    "ddp": {"model": "DistributedDataParallel"},
    "zero2": {"stage": 2, "offload": None, "offload_param": False},
    "zero3": {"stage": 3, "offload": None, "offload_param": False},
    "zero2-offload": {"stage": 2, "offload": "cpu", "offload_param": False},
    "zero3-offload": {"stage": 3, "offload": "cpu", "offload_param": True},
    "zero3-alone": {"stage": 3, "offload": None, "offload_param": False},
}


@pytest.mark.parametrize("way", WAYS)
def test_the_curve_is_that_of_one_process_and_resumes_exactly(
    way, trained, reference, quick_variant, tmp_path
):
    variant, count = quick_variant("steering"), WAYS[way][0]
    assert trained(variant, way) == 0
    assert_alike(tmp_path / "out", reference)
    configs = [json.loads((out / "config.json").read_text()) for out in (tmp_path / "out", reference)]
    assert configs[0]["frozen"] == configs[1]["frozen"]
    engines = [json.loads((tmp_path / f"engine-{rank}.json").read_text()) for rank in range(count)]
    assert all(engine.items() >= ENGINES[way].items() for engine in engines)
    if way != "ddp":
        model = SteerMoE.from_config(variant)
        whole = sum(p.numel() for p in model.parameters() if not p.requires_grad)
        moments = sum(p.numel() for p in model.parameters() if p.requires_grad)
        copies = count if way.startswith("zero2") else 1  # of the frozen weights, over all processes
        frozen = sum(engine["frozen"] for engine in engines)
        assert whole * copies <= frozen <= whole * copies * 1.001  # cut evenly: a few numbers of padding
        assert moments <= sum(engine["moments"] for engine in engines) <= moments + 4 * count * 5
        groups = ["projection", "projection", "vectors", "router", "router"]
        assert all(engine["groups"] == groups for engine in engines)
    # SIGTERM to one of the processes after step 3: a checkpoint between two logs and evaluations, all end with 75.
    assert trained(variant, way, "again", until=3) == PREEMPTED
    assert not (tmp_path / "again").exists()
    [checkpoint] = tmp_path.glob(".runs/*/scratch/checkpoint-*")
    assert checkpoint.name in ("checkpoint-3", "checkpoint-4")
    assert trained(variant, way, "again") == 0
    assert outputs(tmp_path / "again") == outputs(tmp_path / "out")


def test_ddp_goes_on_in_one_process_and_zero_does_not(trained, reference, quick_variant, tmp_path):
    variant = quick_variant("steering")
    assert trained(variant, "ddp", until=3) == PREEMPTED
    assert trained(variant, None) == 0
    assert_alike(tmp_path / "out", reference)
    assert trained(variant, "zero2", "other", until=3) == PREEMPTED
    assert trained(variant, "ddp", "other") == REFUSED
    assert trained(variant, "zero2", "other") == 0


@pytest.mark.parametrize("way", ["ddp", "zero3"])
def test_a_frozen_weight_changed_in_any_process_is_found_by_all(way, trained, quick_variant, tmp_path):
    assert trained(quick_variant("steering", max_steps=2, warmup_steps=1), way, tampers=True) == CHANGED
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("way", ["ddp", "zero3"])
def test_a_student_of_several_processes_learns_as_one_does(way, trained, quick_variant, tmp_path):
    model = SteerMoE.from_config(quick_variant("lora"))
    with torch.no_grad():
        for parameter in model.trainable_state_dict().values():
            parameter.add_(torch.randn(parameter.shape), alpha=0.2)
    model.save_pretrained(tmp_path / "teacher")
    taught = Distillation(teacher=str(tmp_path / "teacher"), logits=1.0, temperature=2.0, hidden=0.5)
    variant, learned = quick_variant("steering", distillation=taught), []
    for name, chosen in (("alone", None), ("out", way)):
        assert trained(variant, chosen, name) == 0
        log = json.loads((tmp_path / "log-0.json").read_text())
        learned.append([e["distillation_loss"] for e in log if "distillation_loss" in e])
    assert_alike(tmp_path / "out", tmp_path / "alone")
    assert len(learned[0]) > 1 and learned[1] == pytest.approx(learned[0], rel=2e-4)


def _answer(variant: str, shards: list[Path], out: Path) -> None:
    """Evaluate untrained weights on `train`, whose rows have several lengths."""
    settings = Evaluation(
        normalizer="none",
        max_batch_seconds=1.0,
        bootstrap_samples=100,
        confidence=0.9,
        normalizers={},
        bootstrap_unit="auto",
    )
    model = SteerMoE.from_config(VariantConfig.from_json(variant))
    generation = GREEDY.model_copy(update={"max_new_tokens": 4})
    predictions = evaluate(model, read_rows(shards[0], ["train"]), settings, generation, 3)
    predictions.frame.write_parquet(out / f"predictions-{os.environ.get('RANK', 'alone')}.parquet")


def test_evaluation_is_shared_without_loss_or_double_counting(together, shards, quick_variant, tmp_path):
    variant = quick_variant("steering").to_json()
    _answer(variant, shards, tmp_path)
    assert together(3, _answer, variant, shards, tmp_path) == [0] * 3
    alone = pl.read_parquet(tmp_path / "predictions-alone.parquet")
    assert len(alone) == 2 * 24
    for rank in range(3):
        assert pl.read_parquet(tmp_path / f"predictions-{rank}.parquet").equals(alone)

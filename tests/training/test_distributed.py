"""Two processes train as one does: the same losses, the same weights but for rounding, the same checkpoints."""

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
from steermoe.training import callbacks
from steermoe.training.train import FrozenChangedError, train
from steermoe.training.trainer import AdapterTrainer

pytestmark = pytest.mark.slow
WAYS = {
    "ddp": (2, "ddp", "none"),
    "zero2": (2, "zero2", "none"),
    "zero3": (2, "zero3", "none"),
    "zero2-offload": (2, "zero2", "cpu"),
    "zero3-offload": (2, "zero3", "cpu"),
    "zero3-alone": (1, "zero3", "none"),
}


def section(way: str) -> Distributed:
    count, strategy, offload = WAYS[way]
    return Distributed.model_validate({"processes": count, "strategy": strategy, "offload": offload})


def _engine_of(trainer: AdapterTrainer) -> dict:
    """What is selected, read off the engine."""
    if trainer.zero is None:
        return {"model": type(trainer.model_wrapped).__name__}
    engine = trainer.zero.engine
    offload = engine.zero_offload_optimizer()
    frozen: list[Any] = [p for p in trainer.adapted.parameters() if not p.requires_grad]
    optimized = {id(p) for group in trainer.zero._groups for p in group}
    return {
        "stage": engine.zero_optimization_stage(),
        "optimizer": type(engine.optimizer).__name__,
        "offload": None if offload is None else str(offload.device),
        "offload_param": engine.zero_offload_param() is not None,
        "client": type(engine.basic_optimizer).__name__,
        "groups": [group["name"] for group in engine.basic_optimizer.param_groups],
        "frozen_in_pieces": sum(p.ds_tensor.numel() for p in frozen if hasattr(p, "ds_tensor")),
        "frozen_whole": sum(p.numel() for p in frozen if not hasattr(p, "ds_tensor")),
        "frozen_optimized": sum(id(p) in optimized for p in frozen),
        "states": sum(s["exp_avg"].numel() for s in engine.basic_optimizer.state.values()),
    }


def _tampered(variant: str, shards: list[Path], out: Path, root: Path, way: str) -> None:
    """A training in which another process than the first changes a frozen weight, or its piece of one."""
    real = AdapterTrainer.train

    def tampering(self, *args, **kwargs):
        real(self, *args, **kwargs)
        if self.args.process_index == self.args.world_size - 1:
            weights = self.adapted.frozen_parts()["llm"]
            tensor: Any = weights[sorted(weights)[0]]
            for held in (tensor, getattr(tensor, "ds_tensor", None)):  # ZeRO-3 keeps small tensors whole, too
                if held is not None and held.numel():
                    held.data.view(-1)[0] += 1e-2

    AdapterTrainer.train = tampering  # pyright: ignore[reportAttributeAccessIssue]
    try:
        train(VariantConfig.from_json(variant), shards, out, root, distributed=section(way))
    except FrozenChangedError:
        raise SystemExit(7) from None


@pytest.mark.parametrize("way", ["ddp", "zero2", "zero3"])
def test_a_frozen_weight_changed_in_any_process_is_found_by_all(
    way, together, shards, quick_variant, tmp_path
):
    arguments = quick_variant("steering").to_json(), shards, tmp_path / "out", tmp_path, way
    assert together(2, _tampered, *arguments) == [7, 7]
    assert not (tmp_path / "out").exists()


def _train(
    variant: str, shards: list[Path], out: Path, root: Path, way: str | None, until: int | None
) -> None:
    distributed = ONE_PROCESS if way is None else section(way)
    rank = int(os.environ.get("RANK", "0"))
    ended = callbacks.StepTimer.on_step_end
    finished = AdapterTrainer.train

    def end(self, args, state, *rest, **kwargs):
        ended(self, args, state, *rest, **kwargs)
        if state.global_step == until and rank == 0:
            os.kill(os.getpid(), signal.SIGTERM)

    def told(self, *args, **kwargs):
        result = finished(self, *args, **kwargs)
        (root / f"engine-{rank}.json").write_text(json.dumps(_engine_of(self)))
        (root / f"log-{rank}.json").write_text(json.dumps(self.state.log_history))
        return result

    callbacks.StepTimer.on_step_end, AdapterTrainer.train = end, told
    try:
        train(VariantConfig.from_json(variant), shards, out, root, distributed=distributed)
    except PreemptedError:
        raise SystemExit(PREEMPTED) from None


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
def alone(tmp_path_factory):
    return {}


@pytest.fixture
def reference(alone, shards, quick_variant, tmp_path):
    """The folder that one process without a strategy writes."""

    def folder(method: str) -> Path:
        if method not in alone:
            alone[method] = tmp_path / "alone"
            train(quick_variant(method), shards, alone[method], tmp_path)
        return alone[method]

    return folder


IN_FORCE = {
    "ddp": {"model": "DistributedDataParallel"},
    "zero2": {"stage": 2, "optimizer": "DeepSpeedZeroOptimizer", "offload": None, "offload_param": False},
    "zero3": {"stage": 3, "optimizer": "DeepSpeedZeroOptimizer_Stage3", "offload": None, "offload_param": False},
    "zero2-offload": {"stage": 2, "optimizer": "DeepSpeedZeroOptimizer", "offload": "cpu", "offload_param": False},
    "zero3-offload": {
        "stage": 3, "optimizer": "DeepSpeedZeroOptimizer_Stage3", "offload": "cpu", "offload_param": True,
    },
    "zero3-alone": {"stage": 3, "optimizer": "DeepSpeedZeroOptimizer_Stage3"},
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_the_curve_is_that_of_one_process(way, together, reference, shards, quick_variant, tmp_path):
    variant = quick_variant("steering")
    count = WAYS[way][0]
    assert (
        together(count, _train, variant.to_json(), shards, tmp_path / "out", tmp_path, way, None)
        == [0] * count
    )
    assert_alike(tmp_path / "out", reference("steering"))
    configs = [
        json.loads((folder / "config.json").read_text())
        for folder in (tmp_path / "out", reference("steering"))
    ]
    assert configs[0]["frozen"] == configs[1]["frozen"]
    engines = [json.loads((tmp_path / f"engine-{rank}.json").read_text()) for rank in range(count)]
    for engine in engines:
        assert engine.items() >= IN_FORCE[way].items()
    if way == "ddp":
        return
    frozen = sum(engine["frozen_in_pieces"] + engine["frozen_whole"] for engine in engines)
    model = SteerMoE.from_config(variant)
    whole = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    copies = count if way.startswith("zero2") else 1  # of the frozen weights, over all processes
    assert whole * copies <= frozen <= whole * copies * 1.001  # cut evenly: a few numbers of padding
    assert trained <= sum(engine["states"] for engine in engines) <= trained + 4 * count * 5
    for engine in engines:
        assert engine["client"] == "AdamW" and engine["frozen_optimized"] == 0
        assert engine["groups"] == ["projection", "projection", "vectors", "router", "router"]


@pytest.mark.parametrize("way", ["ddp", "zero2", "zero3"])
def test_a_student_of_several_processes_learns_as_one_does(way, together, shards, quick_variant, tmp_path):
    model = SteerMoE.from_config(quick_variant("lora"))
    with torch.no_grad():
        for parameter in model.trainable_state_dict().values():
            parameter.add_(torch.randn(parameter.shape), alpha=0.2)
    model.save_pretrained(tmp_path / "teacher")
    taught = Distillation(teacher=str(tmp_path / "teacher"), logits=1.0, temperature=2.0, hidden=0.5)
    variant = quick_variant("steering", distillation=taught)
    learned = []
    for name, count, strategy in (("alone", 1, None), ("out", 2, way)):
        arguments = variant.to_json(), shards, tmp_path / name, tmp_path, strategy, None
        assert together(count, _train, *arguments) == [0] * count
        log = json.loads((tmp_path / "log-0.json").read_text())
        learned.append([e["distillation_loss"] for e in log if "distillation_loss" in e])
    assert_alike(tmp_path / "out", tmp_path / "alone")
    assert len(learned[0]) > 1 and learned[1] == pytest.approx(learned[0], rel=2e-4)


ROADS = [("ddp", None), (None, "zero2"), ("zero2", "zero3"), ("zero3", None), ("zero2-offload", "ddp")]


@pytest.mark.parametrize(("first", "then"), ROADS)
def test_a_checkpoint_of_one_way_goes_on_in_another(
    first, then, together, reference, shards, quick_variant, tmp_path
):
    """SIGTERM to one of the processes after step 3: a checkpoint between two logs and evaluations, all end with 75."""
    arguments = (quick_variant("steering").to_json(), shards, tmp_path / "out", tmp_path)
    counts = [1 if way is None else WAYS[way][0] for way in (first, then)]
    assert together(counts[0], _train, *arguments, first, 3) == [PREEMPTED] * counts[0]
    assert not (tmp_path / "out").exists()
    [checkpoint] = tmp_path.glob(".runs/*/scratch/checkpoint-*")
    assert checkpoint.name == "checkpoint-3" or (checkpoint.name == "checkpoint-4" and counts[0] > 1)
    ranks = [f"random-{rank}.safetensors" for rank in range(counts[0])]
    names = ["optimizer.safetensors", *ranks, "trainer_state.json", "weights.safetensors"]
    assert sorted(path.name for path in checkpoint.iterdir()) == names
    sizes = load_file(checkpoint / "weights.safetensors")
    trained = sum(t.numel() for t in load_file(reference("steering") / "adapter.safetensors").values())
    assert sum(tensor.numel() for tensor in sizes.values()) == 2 * trained  # now, and at their best
    assert together(counts[1], _train, *arguments, then, None) == [0] * counts[1]
    assert_alike(tmp_path / "out", reference("steering"))


def _answer(variant: str, shards: list[Path], out: Path) -> None:
    """Evaluate untrained weights on `train`, whose rows have several lengths."""
    settings = Evaluation(
        normalizer="none", max_batch_seconds=1.0, bootstrap_samples=100, confidence=0.9, normalizers={}
    )
    model = SteerMoE.from_config(VariantConfig.from_json(variant))
    generation = GREEDY.model_copy(update={"max_new_tokens": 4})
    predictions = evaluate(model, read_rows(shards[0], ["train"]), settings, generation, 3)
    predictions.frame.write_parquet(out / f"predictions-{os.environ.get('RANK', 'alone')}.parquet")


@pytest.mark.parametrize("count", [2, 3])
def test_evaluation_is_shared_without_loss_or_double_counting(
    count, together, shards, quick_variant, tmp_path
):
    variant = quick_variant("steering").to_json()
    _answer(variant, shards, tmp_path)
    assert together(count, _answer, variant, shards, tmp_path) == [0] * count
    alone = pl.read_parquet(tmp_path / "predictions-alone.parquet")
    assert len(alone) == 2 * 24
    for rank in range(count):
        assert pl.read_parquet(tmp_path / f"predictions-{rank}.parquet").equals(alone)

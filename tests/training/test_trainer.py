"""The subclassed Trainer: what goes into a step, and what a step does to the gradients and rates."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import TrainerCallback

from steermoe.data.batching import bucketed_batches
from steermoe.data.dataset import UtteranceDataset
from steermoe.models.steermoe import SteerMoE
from steermoe.training.batches import StepBatches
from steermoe.training.checkpoints import last_checkpoint
from steermoe.training.train import read_data
from steermoe.training.trainer import AdapterTrainer

METHODS = ("steering", "linear", "lora")


class Recorder(TrainerCallback):
    """What the optimizer is about to see, at every step."""

    def __init__(self) -> None:
        self.norms: list[dict[str, float]] = []
        self.rates: list[dict[str, float]] = []
        self.trainer: AdapterTrainer | None = None

    def on_pre_optimizer_step(self, *args, **kwargs):
        assert self.trainer is not None
        parts = self.trainer.adapted.parameter_groups()
        gradients = {
            name: [p.grad.flatten() for p in part if p.grad is not None] for name, part in parts.items()
        }
        self.norms.append({name: torch.cat(part).norm().item() for name, part in gradients.items()})
        self.rates.append({group["name"]: group["lr"] for group in self.trainer.optimizer.param_groups})


def trainer_of(variant, shards, run: Path, kind=AdapterTrainer, callbacks=()) -> AdapterTrainer:
    model = SteerMoE.from_config(variant)
    data = read_data(variant, shards)
    train, dev = (
        (UtteranceDataset(rows, model.features, model.tokenizer, variant.prompts), rows["seconds"].to_list())
        for rows in (data.train, data.dev)
    )
    run.mkdir()
    return kind(model, variant, train, dev, run, callbacks=callbacks)


def recorded(variant, shards, run: Path) -> Recorder:
    recorder = Recorder()
    trainer = trainer_of(variant, shards, run, callbacks=[recorder])
    recorder.trainer = trainer
    trainer.train()
    trainer.progress.close()
    return recorder


def test_batches_run_over_epochs_and_processes_share_each():
    seconds = [1.0, 2.0, 0.5, 1.5, 1.0, 3.0, 2.5]
    alone = list(StepBatches(seconds, 4.0, seed=3, steps=9, rank=0, world=1))
    epochs = [batch for epoch in range(9) for batch in bucketed_batches(seconds, 4.0, 3, epoch)]
    assert alone == epochs[:9]
    for world in (2, 3):
        ranks = [
            list(StepBatches(seconds, 4.0, seed=3, steps=9, rank=rank, world=world)) for rank in range(world)
        ]
        for whole, *parts in zip(alone, *ranks, strict=True):
            assert all(parts)  # every process has something to run on
            assert sorted(row for part in parts for row in part if row >= 0) == sorted(whole)
            assert {~row for part in parts for row in part if row < 0} <= {whole[0]}


def test_every_method_sees_the_same_batches_in_the_same_order(shards, quick_variant, tmp_path):
    class Spy(AdapterTrainer):
        def training_step(self, model, inputs, num_items_in_batch=None):
            seen.append(inputs["indices"].tolist())
            return super().training_step(model, inputs, num_items_in_batch)

    orders = {}
    for method in METHODS:
        seen: list[list[int]] = []
        trainer = trainer_of(quick_variant(method), shards, tmp_path / method, Spy)
        trainer.train()
        trainer.progress.close()
        orders[method] = seen
    assert len(orders["steering"]) == 6
    assert orders["steering"] == orders["linear"] == orders["lora"]


def test_each_part_follows_the_schedule_at_its_own_rate(shards, quick_variant, tmp_path):
    rates = {"projection": 1e-3, "vectors": 1e-2, "router": 1e-4}
    variant = quick_variant("steering", max_steps=4, eval_steps=4, schedule="linear", learning_rates=rates)
    recorder = recorded(variant, shards, tmp_path / "run")
    # warm-up over 2 steps from 0, then linear to 0 at step 4
    for part, peak in rates.items():
        assert [step[part] for step in recorder.rates] == pytest.approx([0, peak / 2, peak, peak / 2])


def test_steering_is_clipped_alone_and_then_all_gradients_together(shards, quick_variant, tmp_path):
    def norms(name: str, **limits: float) -> list[dict[str, float]]:
        variant = quick_variant("steering", max_steps=2, eval_steps=2, **limits)
        return recorded(variant, shards, tmp_path / name).norms

    def of(step: dict[str, float], *parts: str) -> float:
        return sum(step[part] ** 2 for part in parts) ** 0.5

    [free, _] = norms("free", max_grad_norm=1e9, steering_max_grad_norm=1e9)
    limit = of(free, "vectors", "router") / 10
    [alone, _] = norms("alone", max_grad_norm=1e9, steering_max_grad_norm=limit)
    assert of(alone, "vectors", "router") == pytest.approx(limit, rel=1e-4)
    assert alone["projection"] == free["projection"]
    total = of(alone, "vectors", "router", "projection") / 4
    [both, _] = norms("both", max_grad_norm=total, steering_max_grad_norm=limit)
    assert of(both, "vectors", "router", "projection") == pytest.approx(total, rel=1e-4)
    assert of(both, "vectors", "router") == pytest.approx(
        limit / 4, rel=1e-4
    )  # steering's own clip came first


@pytest.mark.parametrize("method", METHODS)
def test_a_checkpoint_holds_what_is_trained_and_nothing_pickled(method, shards, quick_variant, tmp_path):
    trainer = trainer_of(quick_variant(method, max_steps=2), shards, tmp_path / "run")
    trainer.train()
    trainer.progress.close()
    checkpoint = last_checkpoint(tmp_path / "run")
    assert checkpoint is not None
    assert sorted(path.name for path in checkpoint.iterdir()) == [
        "optimizer.safetensors",
        "random-0.safetensors",
        "trainer_state.json",
        "weights.safetensors",
    ]
    trained = sum(p.numel() for p in trainer.trained.values())
    assert trained == sum(p.numel() for part in trainer.adapted.parameter_groups().values() for p in part)
    for file, copies in (("weights", 2), ("optimizer", 2)):  # now and best; two moments
        with safe_open(checkpoint / f"{file}.safetensors", "pt") as tensors:
            sizes = [tensors.get_tensor(name).numel() for name in tensors.keys()]  # noqa: SIM118
        assert (
            sum(size for size in sizes) - (sizes.count(1) if file == "optimizer" else 0) <= copies * trained
        )
        assert sum(sizes) >= copies * trained


def test_dev_loss_is_the_mean_over_tokens_whatever_the_batches(shards, quick_variant, tmp_path):
    losses = []
    for budget in (0.1, 100.0):
        variant = quick_variant("steering", max_batch_seconds=budget)
        trainer = trainer_of(variant, shards, tmp_path / str(budget))
        losses.append(trainer.evaluate())
        trainer.progress.close()
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)

"""A training step, evaluation and the order of the data, and what a whole training writes."""

import json
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file

from steermoe import config
from steermoe.atomic_io import Staging
from steermoe.config import Video
from steermoe.data import video
from steermoe.data.batching import bucketed_batches
from steermoe.data.shards import read_rows
from steermoe.models import checkpoint as adapter
from steermoe.models.steermoe import SteerMoE
from steermoe.training.checkpointing import last_checkpoint, read_tree
from steermoe.training.engine import Engine
from steermoe.training.loop import Trainer
from steermoe.training.optim import adamw, current_rates
from steermoe.training.sampler import StepBatches
from steermoe.training.train import FrozenChangedError, fingerprint, train, training_key
from tests.data.conftest import write_shards

PARAMS = Path(__file__).parents[2] / "params.yaml"
METHODS = ("steering", "linear", "lora")


@pytest.fixture
def recorded(make_trainer, monkeypatch):
    """`recorded(variant, name)` trains; norms of gradients and rates of each part, as the optimizer sees them."""

    def run(variant, name="run"):
        found, step = [], Engine.step

        def noted(engine):
            parts = {
                part: torch.cat([p.grad.flatten() for p in group if p.grad is not None]).norm().item()
                for part, group in trainer.model.parameter_groups().items()
            }
            found.append((parts, current_rates(engine.optimizer)))
            return step(engine)

        trainer = make_trainer(variant, name)
        with monkeypatch.context() as patched:
            patched.setattr(Engine, "step", noted)
            trainer.fit()
        return found

    return run


def test_batches_run_over_epochs_and_processes_share_each():
    seconds = [1.0, 2.0, 0.5, 1.5, 1.0, 3.0, 2.5]
    alone = list(StepBatches(seconds, 4.0, seed=3, steps=9))
    epochs = [batch for epoch in range(9) for batch in bucketed_batches(seconds, 4.0, 3, epoch)]
    assert alone == epochs[:9]
    assert list(StepBatches(seconds, 4.0, seed=3, steps=9, start=4)) == alone[4:]
    heard = StepBatches(seconds, 4.0, seed=3, steps=9, rank=1, world=2).audio_seconds()
    assert heard == pytest.approx(np.cumsum([sum(seconds[row] for row in batch) for batch in alone]))
    for world in (2, 3):
        ranks = [
            list(StepBatches(seconds, 4.0, seed=3, steps=9, rank=rank, world=world)) for rank in range(world)
        ]
        for whole, *parts in zip(alone, *ranks, strict=True):
            assert all(parts)  # every process has something to run on
            assert sorted(row for part in parts for row in part if row >= 0) == sorted(whole)
            assert {~row for part in parts for row in part if row < 0} <= {whole[0]}
    with pytest.raises(ValueError, match="no rows"):
        StepBatches([], 4.0, seed=3, steps=9)


def test_every_method_sees_the_same_batches_in_the_same_order(quick_variant, make_trainer, monkeypatch):
    orders, forward = {}, SteerMoE.forward

    def noted(model, *args, **batch):
        if model.training:
            seen.append(batch["indices"].tolist())
        return forward(model, *args, **batch)

    monkeypatch.setattr(SteerMoE, "forward", noted)
    for method in METHODS:
        seen: list[list[int]] = []
        make_trainer(quick_variant(method), method).fit()
        orders[method] = seen
    assert len(orders["steering"]) == 6
    assert orders["steering"] == orders["linear"] == orders["lora"]


def test_each_part_follows_the_schedule_at_its_own_rate(quick_variant, recorded):
    rates = {"projection": 1e-3, "vectors": 1e-2, "router": 1e-4}
    variant = quick_variant("steering", max_steps=4, eval_steps=4, schedule="linear", learning_rates=rates)
    found = [step for _, step in recorded(variant)]
    # warm-up over 2 steps from 0, then linear to 0 at step 4
    for part, peak in rates.items():
        assert [step[part] for step in found] == pytest.approx([0, peak / 2, peak, peak / 2])


def test_steering_is_clipped_alone_and_then_all_gradients_together(quick_variant, recorded):
    def norms(name: str, **limits: float) -> dict[str, float]:
        return recorded(quick_variant("steering", max_steps=2, eval_steps=2, **limits), name)[0][0]

    def of(step: dict[str, float], *parts: str) -> float:
        return sum(step[part] ** 2 for part in parts) ** 0.5

    free = norms("free", max_grad_norm=1e9, steering_max_grad_norm=1e9)
    limit = of(free, "vectors", "router") / 10
    alone = norms("alone", max_grad_norm=1e9, steering_max_grad_norm=limit)
    assert of(alone, "vectors", "router") == pytest.approx(limit, rel=1e-4)
    assert alone["projection"] == free["projection"]
    total = of(alone, "vectors", "router", "projection") / 4
    both = norms("both", max_grad_norm=total, steering_max_grad_norm=limit)
    assert of(both, "vectors", "router", "projection") == pytest.approx(total, rel=1e-4)
    assert of(both, "vectors", "router") == pytest.approx(
        limit / 4, rel=1e-4
    )  # steering's own clip came first


def test_rates_and_decay_are_those_of_each_part():
    def parameter(*shape: int) -> torch.nn.Parameter:
        return torch.nn.Parameter(torch.ones(shape))

    parts = {
        "projection": [parameter(4, 3), parameter(4)],
        "vectors": [parameter(2, 5, 3), parameter(2)],
        "router": [parameter(10, 3), parameter(10)],
    }
    rates = {"projection": 1e-3, "vectors": 1e-2, "router": 1e-4}
    optimizer = adamw(parts, rates, weight_decay=0.5)
    assert current_rates(optimizer) == rates
    optimised = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(optimised) == sorted(id(p) for group in parts.values() for p in group)
    for p in (p for group in parts.values() for p in group):
        p.grad = torch.zeros_like(p)  # without a gradient, AdamW's update is the decay alone
    optimizer.step()
    for part, (matrix, vector) in parts.items():
        shrunk = torch.ones_like(matrix) * (1 if part == "vectors" else 1 - 0.5 * rates[part])
        torch.testing.assert_close(matrix.data, shrunk)
        assert torch.equal(vector.data, torch.ones_like(vector))
    for wrong in ({"projection": 1e-3}, rates | {"lora": 1e-3}):
        with pytest.raises(ValueError, match=r"training\.learning_rates.*'projection', 'router', 'vectors'"):
            adamw(parts, wrong, weight_decay=0.0)


@pytest.mark.parametrize("method", METHODS)
def test_a_checkpoint_holds_what_is_trained_and_nothing_else(method, quick_variant, make_trainer, tmp_path):
    trainer = make_trainer(quick_variant(method, max_steps=2))
    trainer.fit()
    checkpoint = last_checkpoint(tmp_path / "run")
    assert checkpoint is not None
    assert sorted(path.name for path in checkpoint.iterdir()) == ["rank-0.pt", "state.pt"]
    state = read_tree(checkpoint / "state.pt")
    assert state["weights"].keys() == state["best"].keys() == trainer.trained.keys()
    moments = sum(values["exp_avg"].numel() for values in state["optimizer"]["state"].values())
    assert moments == sum(trainer.sizes.values()) == sum(p.numel() for p in trainer.trained.values())


def test_dev_loss_is_the_mean_over_tokens_whatever_the_batches(quick_variant, make_trainer):
    losses = [
        make_trainer(quick_variant("steering", max_batch_seconds=budget), str(budget)).evaluate()
        for budget in (0.1, 100.0)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_precision_is_that_of_autocast(precision, quick_variant, shards, tmp_path):
    variant = quick_variant("steering", precision=precision, max_steps=2)
    if precision == "float16" and not torch.cuda.is_available():
        with pytest.raises(
            ValueError, match=r"training\.precision: found 'float16', whose scaled loss needs a GPU"
        ):
            train(variant, shards, tmp_path / "out", tmp_path)
        return
    train(variant, shards, tmp_path / "out", tmp_path)
    train(quick_variant("steering", max_steps=2), shards, tmp_path / "exact", tmp_path)
    tables = [(tmp_path / name / "history.csv").read_text().splitlines() for name in ("out", "exact")]
    ours, exact = (float(table[1].split(",")[2]) for table in tables)  # dev_loss
    assert ours == pytest.approx(exact, rel=0.01) and ours != exact


def test_recomputed_activations_change_nothing(quick_variant, shards, tmp_path):
    for name, again in (("kept", False), ("again", True)):
        variant = quick_variant("steering", gradient_checkpointing=again, max_steps=2)
        train(variant, shards, tmp_path / name, tmp_path)
    ours, theirs = (load_file(tmp_path / name / "adapter.safetensors") for name in ("again", "kept"))
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name])


def test_outputs_hold_the_best_weights_and_a_row_for_each_evaluation(shards, quick_variant, tmp_path):
    variant = quick_variant("steering")
    results = train(variant, shards, tmp_path / "out", tmp_path, timing=tmp_path / "t" / "timing.json")
    names = ["adapter.safetensors", "config.json", "history.csv"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    header, *rows = (tmp_path / "out" / "history.csv").read_text().splitlines()
    table = [dict(zip(header.split(","), row.split(","), strict=True)) for row in rows]
    assert [int(row["step"]) for row in table] == [2, 4, 6]
    assert min(float(row["dev_loss"]) for row in table) == results["best_dev_loss"]
    assert all(row["lr_lora"] == "" and float(row["layer_scale"]) > 0 for row in table)
    assert json.loads((tmp_path / "t" / "timing.json").read_text()) == results
    assert results["seconds_per_step"] > 0
    assert results["steps"] == 6 and not results["stopped_early"]
    weights = load_file(tmp_path / "out" / "adapter.safetensors")
    assert sum(tensor.numel() for tensor in weights.values()) == sum(results["trainable_parameters"].values())
    saved = adapter.read(tmp_path / "out").frozen
    assert results["frozen"] == {part: {"before": of, "after": of} for part, of in saved.items()}
    assert saved == SteerMoE.from_pretrained(tmp_path / "out").frozen_hashes()


@pytest.mark.parametrize("part", ["encoder", "llm"])
def test_a_frozen_weight_that_training_changed_is_named_and_nothing_is_kept(
    part, shards, quick_variant, tmp_path, monkeypatch
):
    real = Trainer.fit

    def tampering(self: Trainer) -> None:
        real(self)
        weights = self.model.frozen_parts()[part]
        weights[sorted(weights)[3]].view(-1)[0] += 1e-3

    variant = quick_variant("steering", max_steps=2)
    tensor = sorted(SteerMoE.from_config(variant).frozen_parts()[part])[3]
    monkeypatch.setattr(Trainer, "fit", tampering)
    with pytest.raises(FrozenChangedError, match=f"{part}, {tensor}"):
        train(variant, shards, tmp_path / "out", tmp_path)
    assert not (tmp_path / "out").exists() and not list(tmp_path.rglob("checkpoint-*"))


def test_patience_ends_a_training_and_the_best_is_kept(shards, quick_variant, tmp_path, monkeypatch):
    # The words of these dev rows are never trained on: the more a model learns others, the worse they fare.
    unheard = pl.lit("house dog")
    dev = read_rows(shards[0], ["dev"]).with_columns(transcript=unheard, target=unheard)
    folder = tmp_path / "tones"
    write_shards(dev.iter_rows(named=True), folder, "dev", rows_per_shard=16)
    shutil.copy(shards[0] / "train-00000.parquet", folder)
    settings = {"warmup_steps": 0, "patience": 2, "schedule": "constant_with_warmup"}

    def fail(*args: object) -> None:
        raise RuntimeError("no further today")

    variant = quick_variant("linear", max_steps=60, **settings)
    with monkeypatch.context() as patched, pytest.raises(RuntimeError, match="no further"):
        patched.setattr(adapter, "write", fail)
        train(variant, [folder], tmp_path / "out", tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "fit", fail)  # a resumed training does no further step
        results = train(variant, [folder], tmp_path / "out", tmp_path)
    assert results["stopped_early"]
    assert results["steps"] == results["best_step"] + 2 * variant.training.eval_steps < 60
    again = quick_variant("linear", max_steps=results["best_step"], **settings)
    train(again, [folder], tmp_path / "short", tmp_path)
    best, last = (load_file(tmp_path / out / "adapter.safetensors") for out in ("out", "short"))
    for name, tensor in best.items():
        assert torch.equal(tensor, last[name])


def test_epochs_read_every_row_and_end_with_an_evaluation(shards, quick_variant, tmp_path, capsys):
    variant = quick_variant("linear", max_steps=None, epochs=2, eval_steps=5)
    results = train(variant, shards, tmp_path / "out", tmp_path)
    seconds = read_rows(shards[0], ["train"])["seconds"].to_list()
    steps = sum(len(bucketed_batches(seconds, 3.0, variant.seed, epoch)) for epoch in range(2))
    assert results["steps"] == steps and steps % 5
    assert f"2 epochs are {steps} steps" in capsys.readouterr().out
    rows = (tmp_path / "out" / "history.csv").read_text().splitlines()[1:]
    assert [int(row.split(",")[0]) for row in rows] == [5, 10, steps]
    with pytest.raises(ValueError, match=r"eval_steps: found 99.* at most 12, as 2 epochs"):
        long = quick_variant("linear", max_steps=None, epochs=2, eval_steps=99)
        train(long, shards, tmp_path / "other", tmp_path)


def test_a_second_branch_is_trained_too(quick_variant, video_section, shards, tmp_path):
    rows = read_rows(shards[0], ["train", "dev"]).to_dicts()
    for place, row in enumerate(rows):
        drawn = np.random.default_rng(place).integers(0, 256, (1 + place % 3, 8, 8), dtype=np.uint8)
        row["video"] = video.encode(drawn)
    for split in ("train", "dev"):
        write_shards((row for row in rows if row["split"] == split), tmp_path / "tones", split, 16)
    plain = quick_variant("steering", max_steps=2)
    variant = plain.model_copy(update={"video": Video.model_validate(video_section())})
    before = SteerMoE.from_config(variant).trainable_state_dict()
    results = train(variant, [tmp_path / "tones"], tmp_path / "out", tmp_path)
    after = load_file(tmp_path / "out" / "adapter.safetensors")
    assert after.keys() == before.keys() and any(name.startswith("video.steering.") for name in after)
    assert all(not torch.equal(after[name], before[name]) for name in before)
    sizes = {"projection": 0, "vectors": 0, "router": 0}
    for name, tensor in before.items():
        part = next((part for part in ("projection", "router") if part in name), "vectors")
        sizes[part] += tensor.numel()
    assert results["trainable_parameters"] == sizes
    # On the audio of the same rows, a variant without the branch is what it is without any video.
    train(plain, [tmp_path / "tones"], tmp_path / "deaf", tmp_path)
    train(plain, shards, tmp_path / "reference", tmp_path)
    ours, theirs = ((tmp_path / name / "adapter.safetensors").read_bytes() for name in ("deaf", "reference"))
    assert ours == theirs
    with pytest.raises(ValueError, match="rows without column 'video'"):
        train(variant, shards, tmp_path / "blind", tmp_path)


def test_everything_that_decides_the_result_is_in_the_fingerprint(tmp_path):
    loaded, hashes = config.load(PARAMS), {"encoder": "e", "llm": "l"}
    variant = loaded.variant("steermoe")
    same = config.VariantConfig.from_json(variant.to_json())
    key = training_key(variant, "data", hashes)
    assert fingerprint(key) == fingerprint(training_key(same, "data", dict(reversed(hashes.items()))))
    others = [
        training_key(loaded.variant("steermoe-2"), "data", hashes),
        training_key(variant, "other data", hashes),
        training_key(variant, "data", hashes | {"llm": "other"}),
        *(training_key(variant, "data", hashes, {"init_from": {"adapter.safetensors": d}}) for d in "ab"),
    ]
    assert len({fingerprint(key), *map(fingerprint, others)}) == 6
    with Staging(tmp_path / "out", key, tmp_path) as staging:
        assert staging.scratch.parent.name == fingerprint(key)

"""The same trials for every method, done once each."""

import csv
import json

import pytest
import typer
from typer.testing import CliRunner

from pipeline.train import search as command
from steermoe.training import lr_search
from steermoe.training.lr_search import choose, search, short
from steermoe.training.rows import DivergedError


def test_trials_are_alike_for_every_method_and_done_once(shards, quick_variant, tmp_path, monkeypatch):
    variants = [quick_variant("steering"), quick_variant("linear")]
    arguments = (variants, shards, tmp_path / "out", tmp_path, 4, (0.5, 1.0))
    result = search(*arguments)
    assert [(row["method"], row["multiplier"], row["steps"]) for row in result["trials"]] == [
        ("steering", 0.5, 4),
        ("steering", 1.0, 4),
        ("linear", 0.5, 4),
        ("linear", 1.0, 4),
    ]
    for method in ("steering", "linear"):
        losses = [row["best_dev_loss"] for row in result["trials"] if row["method"] == method]
        assert result["chosen"][method]["best_dev_loss"] == min(losses)
    assert json.loads((tmp_path / "out" / "search.json").read_text()) == result
    with (tmp_path / "out" / "search.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["vectors"] for row in rows][2:] == ["", ""]
    assert float(rows[0]["vectors"]) == 0.5 * variants[0].training.learning_rates["vectors"]

    def never(*args, **kwargs):
        raise AssertionError("a trial was repeated")

    monkeypatch.setattr(lr_search, "train", never)
    assert search(*arguments) == result
    with pytest.raises(AssertionError, match="repeated"):
        search(
            [quick_variant("linear", max_grad_norm=0.5)], *arguments[1:]
        )  # another configuration is another trial


def test_a_short_variant_keeps_the_shape_of_its_schedule(quick_variant):
    variant = quick_variant(
        "linear", max_steps=1000, warmup_steps=100, eval_steps=200, learning_rates={"projection": 1e-3}
    )
    shortened = short(variant, steps=100, multiplier=0.3).training
    assert (shortened.max_steps, shortened.warmup_steps, shortened.eval_steps) == (100, 10, 25)
    assert shortened.learning_rates == {"projection": 3e-4}
    assert (one := short(variant, 1, 1.0).training).max_steps == 1 and (one.warmup_steps, one.eval_steps) == (
        0,
        1,
    )
    with pytest.raises(ValueError, match="at least 1"):
        short(variant, 0, 1.0)
    of_epochs = quick_variant("linear", max_steps=None, epochs=3, warmup_steps=100, eval_steps=200)
    shortened = short(of_epochs, 50, 1.0).training
    assert (shortened.max_steps, shortened.epochs, shortened.warmup_steps, shortened.eval_steps) == (
        50,
        None,
        5,
        12,
    )


@pytest.mark.parametrize("steps", ["0", "-3"])
def test_the_command_refuses_no_steps(steps, tmp_path):
    app = typer.Typer()
    app.command()(command)
    found = CliRunner().invoke(app, ["--shards", str(tmp_path), "--out", str(tmp_path), "--steps", steps])
    assert found.exit_code == 2 and "'--steps'" in found.output and "equal to 1" in found.output


def test_a_diverged_trial_loses_and_a_method_without_another_is_an_error(
    quick_variant, tmp_path, monkeypatch
):
    def diverge(variant, *args, **kwargs):
        if variant.training.learning_rates["projection"] > 1e-3:
            raise DivergedError("too high")
        return {"best_dev_loss": 1.0, "best_step": 2, "steps": 4}

    monkeypatch.setattr(lr_search, "train", diverge)
    variant = quick_variant("linear", learning_rates={"projection": 1e-3})
    result = search([variant], [], tmp_path / "out", tmp_path, 4, (1.0, 10.0))
    assert result["trials"][1]["best_dev_loss"] is None
    assert result["chosen"]["linear"]["multiplier"] == 1.0
    with pytest.raises(ValueError, match="every trial of linear diverged"):
        search([variant], [], tmp_path / "other", tmp_path, 4, (10.0,))
    with pytest.raises(ValueError, match="one variant a method"):
        search([variant, variant], [], tmp_path / "out", tmp_path, 4)


def test_the_first_of_equals_is_chosen():
    rows = [{"method": "m", "multiplier": m, "learning_rates": {}, "best_dev_loss": 1.0} for m in (0.3, 1.0)]
    assert choose(rows, "m")["multiplier"] == 0.3

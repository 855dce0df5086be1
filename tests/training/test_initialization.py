"""A training that begins with a trained adapter."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from steermoe.models.steermoe import SteerMoE
from steermoe.training.initialization import load_initial
from steermoe.training.train import train


@pytest.fixture(scope="module")
def saved(tiny_variant: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`saved(method, {"dotted.path": value})`: an adapter whose weights are not the initial ones."""

    def save(method: str, overrides: dict[str, Any] | None = None) -> Path:
        model = SteerMoE.from_config(tiny_variant(method, overrides))
        with torch.no_grad():
            for parameter in model.trainable_state_dict().values():
                parameter.add_(
                    torch.randn(parameter.shape, generator=torch.Generator().manual_seed(9)), alpha=0.2
                )
        folder = tmp_path_factory.mktemp("adapter")
        model.save_pretrained(folder)
        return folder

    return save


def test_the_first_dev_loss_is_the_adapters_own(saved, quick_variant, make_trainer, shards, tmp_path, capsys):
    source = saved("steering")
    variant = quick_variant("steering", max_steps=2, init_from=str(source))
    trainer = make_trainer(quick_variant("steering"))
    trainer.load_trained(load_file(source / "adapter.safetensors"))
    expected = trainer.evaluate()["dev_loss"]
    train(variant, shards, tmp_path / "out", tmp_path)
    first, *_ = (tmp_path / "out/history.csv").read_text().splitlines()[1:]
    step, train_loss, dev_loss = first.split(",")[:3]
    assert (step, train_loss) == ("0", "") and float(dev_loss) == pytest.approx(expected, rel=1e-6)
    assert "untrained: none" in capsys.readouterr().out
    other = saved("linear")
    results = train(
        quick_variant("steering", max_steps=2, init_from=str(other)), shards, tmp_path / "out", tmp_path
    )
    assert "untrained: steering." in capsys.readouterr().out
    assert results["trainable_parameters"].keys() == {"projection", "vectors", "router"}


def test_parts_that_the_adapter_lacks_stay_as_they_were(saved, tiny_variant):
    source = saved("linear")
    model = SteerMoE.from_config(tiny_variant("steering", {"training.init_from": str(source)}))
    before = {name: tensor.clone() for name, tensor in model.trainable_state_dict().items()}
    load_initial(model, model.frozen_hashes())
    weights = load_file(source / "adapter.safetensors")
    for name, tensor in model.trainable_state_dict().items():
        assert torch.equal(tensor, weights.get(name, before[name])), name


@pytest.mark.parametrize(
    ("method", "changes", "variants", "message"),
    [
        ("steering", {"steering.num_experts": 2}, {}, r"steering\.num_experts: it has 2, the variant 4"),
        (
            "steering",
            {},
            {"projector.downsample_factor": 2},
            r"projector\.downsample_factor: it has 4, the variant 2",
        ),
        ("lora", {}, {}, "it has lora, the variant .* none"),
        ("linear", {"encoder.layers": 2}, {}, "over another encoder"),
        ("linear", {"llm.dtype": "bfloat16"}, {}, "over another llm"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused(method, changes, variants, message, saved, tiny_variant):
    own = {**variants, "training.init_from": str(saved(method, changes))}
    model = SteerMoE.from_config(tiny_variant("steering", own))
    with pytest.raises(ValueError, match=rf"^training\.init_from: .*{message}"):
        load_initial(model, model.frozen_hashes())


def test_an_adapter_of_other_training_settings_fits(saved, tiny_variant):
    source = saved(
        "steering", {"steering.vector_std": 0.5, "training.max_steps": 9, "encoder.revision": None}
    )
    model = SteerMoE.from_config(tiny_variant("steering", {"training.init_from": str(source)}))
    load_initial(model, model.frozen_hashes())

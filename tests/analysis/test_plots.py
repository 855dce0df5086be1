from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
from PIL import Image

from steermoe.analysis import plots
from steermoe.analysis.comparison import compare
from steermoe.config import Evaluation, VariantConfig

Draw = Callable[[Path], None]


def history(rate: float, column: str = "dev_token_accuracy") -> pl.DataFrame:
    steps = [0, 100, 150, 200]
    values = [0.1, 0.1 + rate, None, 0.1 + 2 * rate]
    losses = [None if value is None else 3 - 4 * value for value in values]
    return pl.DataFrame({"step": steps, "dev_loss": losses, column: values})


def use(layers: int, experts: int) -> dict:
    gates = [
        [(1 + (expert == layer)) / (experts + 1) for expert in range(experts)] for layer in range(layers)
    ]
    scales = [0.1 * layer - 0.1 for layer in range(layers)]
    ratios = [0.01] * layers
    names = [*map(str, range(layers - 1)), "post"]
    shares = {"experts": [experts] * layers, "mean_gates": gates}
    return {"layers": names, **shares, "scales": scales, "steer_to_residual": ratios}


@pytest.fixture(params=["curves", "one curve", "no curves", "rates", "one rate", "use", "deep use", "scales"])
def draw(
    request: pytest.FixtureRequest,
    configs: dict[str, VariantConfig],
    evaluations: Path,
    timing: Path,
    settings: Evaluation,
) -> Draw:
    def rates(*variants: str) -> Draw:
        chosen = {name: configs[name] for name in variants}
        found = compare(chosen, variants[0], ["synthetic", "digits"], evaluations, timing, settings, seed=1)
        return lambda path: plots.error_rates(found, path)

    many = {f"variant-{number}": history(number / 50) for number in range(9)}
    uses = {"steermoe": use(4, 8), "steermoe-2": use(4, 2), "steermoe-16": use(4, 16)}
    return {
        "curves": lambda path: plots.learning_curves(many, path),
        "one curve": lambda path: plots.learning_curves({"linear": history(0.1, "dev_wer")}, path),
        "no curves": lambda path: plots.learning_curves({}, path),
        "rates": rates(*configs),
        "one rate": rates("lora"),
        "use": lambda path: plots.expert_use(uses, path),
        "deep use": lambda path: plots.expert_use({"paper": use(32, 8)}, path),
        "scales": lambda path: plots.layer_scales(uses, path),
    }[request.param]


def test_pictures_are_readable_and_the_same_each_time(draw: Draw, tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        draw(tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    with Image.open(tmp_path / "a.png") as image:
        assert image.width == 1200 and 200 <= image.height <= 1800


def test_another_value_gives_another_picture(tmp_path: Path) -> None:
    for name, rate in (("a.png", 0.1), ("b.png", 0.2)):
        plots.learning_curves({"linear": history(rate)}, tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() != (tmp_path / "b.png").read_bytes()

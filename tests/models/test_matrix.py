"""Every row of the registries, in combinations: what must hold for any of them, whatever it is combined with."""

import random
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from steermoe.models.downsample import DOWNSAMPLERS
from steermoe.models.projectors import PROJECTIONS
from steermoe.models.routers import ROUTERS
from steermoe.models.steermoe import SteerMoE

LLMS = ("qwen2", "llama")
PLACEMENTS: dict[str, dict[str, Any]] = {
    "all": {},
    "list": {"layers": [2, 0], "num_experts": [4, 8]},
    "every": {"layers": "every-2"},
    "first": {"layers": "first-1"},
    "last and post": {"layers": "last-2", "post_encoder": True},
    "post": {"layers": "none", "post_encoder": True},
    "attention": {"hook_point": "attention"},
}
ROUTER_OPTIONS = {"hierarchical": {"groups": 2}, "progressive": {"stages": 2}}
PROJECTORS = [(name, None) for name in DOWNSAMPLERS] + [(name, 1) for name in ("average", "max", "conv")]
PROJECTION_OPTIONS: dict[str, dict[str, int]] = {
    "mlp": {"width": 48}, "feature_space": {"width": 16, "heads": 2}, "modality_steering": {"experts": 2},
    "adapter_attention": {"width": 16, "heads": 2},
}  # fmt: skip
Combination = tuple[str, str, tuple[str, int | None], str, str]


def combinations(more: int = 1) -> list[Combination]:
    """Each row of each registry at least once, and `more` drawn from the whole product."""
    draw = random.Random(7)
    tables: list[list[Any]] = [[*ROUTERS], [*PLACEMENTS], [*PROJECTORS], [*PROJECTIONS], [*LLMS]]
    longest = max(map(len, tables))
    columns = [(rows * longest)[:longest] for rows in tables]
    for column in columns:
        draw.shuffle(column)
    covering = list(zip(*columns, strict=True))
    rest = [each for each in product(*tables) if each not in covering]
    return covering + draw.sample(rest, more)


@pytest.fixture(params=combinations(), ids=lambda c: "-".join(str(part) for part in c).replace(" ", "_"))
def model(
    request: pytest.FixtureRequest, tiny_variant: Callable[..., Any], tiny_llm_dir: Path, tiny_llama_dir: Path
) -> SteerMoE:
    router, placement, (downsample, after), projection, llm = request.param
    steering = {
        "router": router,
        "vector_std": 0.5,
        **ROUTER_OPTIONS.get(router, {}),
        **PLACEMENTS[placement],
    }
    projector = {
        "downsample": downsample,
        "downsample_after_layer": after,
        "downsample_factor": 1 if downsample == "none" else 3,
        "projection": projection,
        **PROJECTION_OPTIONS.get(projection, {}),
    }
    values = {f"steering.{name}": value for name, value in steering.items()}
    values |= {f"projector.{name}": value for name, value in projector.items()}
    values["llm.path"] = str({"qwen2": tiny_llm_dir, "llama": tiny_llama_dir}[llm])
    return SteerMoE.from_config(tiny_variant("steering", values))


@torch.no_grad()
def all_stirred(model: SteerMoE) -> SteerMoE:
    """The model with every trained parameter away from its initial value, which may be zero."""
    generator = torch.Generator().manual_seed(9)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return model


def test_only_the_declared_parameters_train_and_learn(model: SteerMoE, make_batch: Any) -> None:
    trained = {id(p) for p in model.parameters() if p.requires_grad}
    groups = model.parameter_groups()
    assert trained == {id(p) for group in groups.values() for p in group}
    assert set(groups) == {"projection", "vectors", "router"}
    all_stirred(model).train()
    optimizer = torch.optim.AdamW([p for group in groups.values() for p in group], lr=1e-2)
    losses = []
    for _ in range(10):
        optimizer.zero_grad()
        loss = model(**make_batch()).loss
        loss.backward()
        losses.append(loss.item())
        for name, parameter in model.named_parameters():
            learns = parameter.grad is not None and bool(parameter.grad.any())
            assert learns is parameter.requires_grad, name
        optimizer.step()
    assert losses[-1] < losses[0] - 0.05


@torch.no_grad()
def test_gates_sum_to_one_and_scale_zero_is_the_unsteered_model(model: SteerMoE, make_batch: Any) -> None:
    steering, batch = all_stirred(model).steering, make_batch()
    assert steering is not None
    seen: list[torch.Tensor] = []
    with steering.observed(lambda index, hidden, gates: seen.append(gates)):
        steered = model(**batch).loss
    assert [gates.shape[-1] for gates in seen] == [point.experts for point in steering.hook_points]
    for gates in seen:
        torch.testing.assert_close(gates.sum(-1), torch.ones(gates.shape[:-1]))
    with steering.disabled():
        plain = model(**batch).loss
    with steering.scaled(0.0):
        assert torch.equal(model(**batch).loss, plain)
    assert torch.equal(model(**batch).loss, steered) and not torch.equal(steered, plain)
    steering.scales.zero_()
    assert torch.equal(model(**batch).loss, plain)


@torch.no_grad()
def test_an_utterance_does_not_depend_on_its_batch_and_survives_saving(
    model: SteerMoE, make_batch: Any, greedy: Any, tmp_path: Path
) -> None:
    all_stirred(model)
    together, losses, tokens = model.generate(make_batch(), greedy(3)), [], []
    for row in range(4):
        alone = model(**make_batch(rows=[row]))
        losses.append(alone.loss * alone.num_tokens)
        tokens.append(alone.num_tokens)
        assert model.generate(make_batch(rows=[row]), greedy(3)) == [together[row]]
    expected = torch.stack(losses).sum() / torch.stack(tokens).sum()
    whole = model(**make_batch()).loss
    torch.testing.assert_close(whole, expected, atol=1e-4, rtol=1e-4)
    model.save_pretrained(tmp_path)
    assert torch.equal(SteerMoE.from_pretrained(tmp_path)(**make_batch()).loss, whole)

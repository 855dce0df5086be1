"""Every trained parameter has one rate, its part's; only matrices are decayed."""

import pytest
import torch
from torch import nn

from steermoe.training.parameter_groups import adamw, current_rates


@pytest.fixture
def parts() -> dict[str, list[nn.Parameter]]:
    def parameter(*shape: int) -> nn.Parameter:
        return nn.Parameter(torch.ones(shape))

    return {
        "projection": [parameter(4, 3), parameter(4)],
        "vectors": [parameter(2, 5, 3), parameter(2)],
        "router": [parameter(10, 3), parameter(10)],
    }


RATES = {"projection": 1e-3, "vectors": 1e-2, "router": 1e-4}


def test_each_part_has_its_rate_and_every_parameter_is_there_once(parts):
    optimizer = adamw(parts, RATES, weight_decay=0.01)
    assert current_rates(optimizer) == RATES
    optimised = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(optimised) == sorted(id(p) for group in parts.values() for p in group)


def test_decay_shrinks_matrices_and_nothing_else(parts):
    optimizer = adamw(parts, RATES, weight_decay=0.5)
    for parameter in (p for group in parts.values() for p in group):
        parameter.grad = torch.zeros_like(parameter)  # without a gradient, AdamW's update is the decay alone
    optimizer.step()
    for part, (matrix, vector) in parts.items():
        shrunk = torch.ones_like(matrix) * (1 if part == "vectors" else 1 - 0.5 * RATES[part])
        torch.testing.assert_close(matrix.data, shrunk)
        assert torch.equal(vector.data, torch.ones_like(vector))


@pytest.mark.parametrize("rates", [{"projection": 1e-3}, RATES | {"lora": 1e-3}])
def test_rates_must_name_the_parts_that_the_model_trains(parts, rates):
    with pytest.raises(ValueError, match=r"training\.learning_rates.*'projection', 'router', 'vectors'"):
        adamw(parts, rates, weight_decay=0.0)

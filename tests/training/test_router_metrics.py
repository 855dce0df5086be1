"""What is logged of steering while it trains, against the same computed plainly."""

import math

import torch

from steermoe.models.encoders.encoder import valid_frames
from steermoe.models.steermoe import SteerMoE
from steermoe.training.router_metrics import RoutingWatch
from steermoe.training.sampler import StepBatches


def heard(model: SteerMoE) -> None:
    features = torch.randn(2, 80, 120, generator=torch.Generator().manual_seed(3))
    model.encode_frames(features, torch.tensor([120, 64]))


def test_statistics_are_those_of_the_valid_frames(tiny_variant):
    model = SteerMoE.from_config(tiny_variant("steering"))
    assert model.steering is not None
    with torch.no_grad():  # sharper than at the beginning of training, and other for every layer
        for parameter in model.steering.router.parameters():
            parameter.mul_(4)
        model.steering.scales.copy_(torch.tensor([0.1, 0.2, 0.4]))
    watch = RoutingWatch(model.steering, model.frame_lengths)
    watch.begin()
    heard(model)
    found = watch.end()

    seen = []
    with model.steering.observed(lambda place, hidden, gates: seen.append((hidden, gates))):
        heard(model)
    scales = model.steering.scales.detach().tolist()
    norms = model.steering.vectors.detach().norm(dim=1)
    for place, (hidden, gates) in enumerate(seen):
        valid = valid_frames(model.frame_lengths(hidden.shape[1]), hidden.shape[1])
        assert 0 < int(valid.sum()) < valid.numel()
        hidden, gates = hidden[valid].detach().double(), gates[valid].detach().double()
        added = gates @ model.steering.scaled_vectors(place).detach().double()
        load = gates.mean(0)
        expected = {
            "load_entropy": -float((load * load.log()).sum()) / math.log(4),
            "effective_experts": math.exp(-float((gates * gates.log()).sum(1).mean())),
            "scale": scales[place],
            "vector_norm": float(norms[4 * place : 4 * place + 4].mean()),
            "steer_to_residual": float(added.norm() / hidden.norm()),
        }
        for name, value in expected.items():
            torch.testing.assert_close(found[f"{name}/{place}"], value, rtol=1e-4, atol=1e-6)
    mean = sum(found[f"scale/{place}"] for place in range(3)) / 3
    torch.testing.assert_close(found["scale"], mean)


def test_nothing_was_heard_nothing_is_said_and_the_watch_is_off_again(tiny_variant):
    model = SteerMoE.from_config(tiny_variant("steering"))
    assert model.steering is not None
    watch = RoutingWatch(model.steering, model.frame_lengths)
    assert watch.end() == {}
    watch.begin()
    watch.end()
    heard(model)
    assert watch.end() == {}


def test_audio_seconds_are_those_of_all_processes():
    seconds = [1.0 + 0.1 * row for row in range(40)]
    processes = [StepBatches(seconds, 12.0, 5, 9, rank, 2) for rank in range(2)]
    read = [
        sum(seconds[row] for part in parts for row in part if row >= 0)
        for parts in zip(*processes, strict=True)
    ]
    totals = list(processes[1].audio_seconds())
    assert len(totals) == 9
    assert totals == list(processes[0].audio_seconds())
    torch.testing.assert_close(totals, [sum(read[: step + 1]) for step in range(9)])

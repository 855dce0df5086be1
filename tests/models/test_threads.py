"""Threads that share a model get what each would get alone."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from steermoe.data.dataset import Batch
from steermoe.models.steermoe import SteerMoE

THREADS, CALLS = 5, 12


def recordings() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.standard_normal(n).astype(np.float32) * 0.1 for n in (8_000, 20_000, 12_345)]


def calls(model: SteerMoE, greedy: Any, sampled: Any) -> list[Callable[[], Any]]:
    """Calls of every kind, as many as the threads make together."""
    found: list[Callable[[], Any]] = []
    for samples in recordings():
        turns = [{"role": "user", "content": [{"type": "audio", "audio": samples}]}]
        found += [
            partial(model.transcribe, samples, generation=greedy),
            partial(model.transcribe, [samples, samples[:6_000]], generation=greedy),
            partial(model.transcribe, samples, generation=sampled, seed=5),
            lambda s=samples: model.ask(s, "who", generation=greedy).text,
            lambda s=samples: [gates.tolist() for gates in model.gates(s)],
            lambda t=turns: model.chat(t, generation=greedy).text,
        ]
    return [found[number % len(found)] for number in range(THREADS * CALLS)]


def together(asked: Sequence[Callable[[], Any]]) -> list[Any]:
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(lambda call: call(), asked))


def test_answers_are_those_of_one_by_one(tiny_variant: Callable[..., Any], greedy: Any) -> None:
    model = SteerMoE.from_config(tiny_variant("steering"))
    asked = calls(model, greedy(8), greedy(8, strategy="sample", temperature=1.0))
    assert together(asked) == [call() for call in asked]


def test_two_models_over_one_llm(tiny_variant: Callable[..., Any], greedy: Any) -> None:
    first = SteerMoE.from_config(tiny_variant("steering"))
    second = SteerMoE(tiny_variant("linear"), load=lambda section: (first.llm, first.tokenizer))
    asked = [
        partial(model.transcribe, samples, generation=greedy(8))
        for samples in recordings() for model in (first, second)
    ] * 4  # fmt: skip
    assert together(asked) == [call() for call in asked]


def test_strengths_change_between_answers_only(tiny_variant: Callable[..., Any]) -> None:
    model = SteerMoE.from_config(tiny_variant("steering", {"steering.vector_std": 1.0}))
    assert model.steering is not None
    steering, samples = model.steering, recordings()[1]

    def hear(_: int) -> list[torch.Tensor]:
        return [torch.from_numpy(gates) for gates in model.gates(samples)]

    legal = [hear(0)]
    steering.set_scale(0.0)
    legal.append(hear(0))
    ended = threading.Event()

    def turn() -> None:
        while not ended.is_set():
            for value in (0.0, 1.0):
                steering.set_scale(value)

    turning = threading.Thread(target=turn)
    turning.start()
    try:
        found = [hear(0) for _ in range(40)]
    finally:
        ended.set()
        turning.join()
    for gates in found:
        assert any(all(map(torch.equal, gates, whole)) for whole in legal)


@pytest.mark.parametrize("strategy", ["greedy", "beam"])
def test_an_abandoned_generator_keeps_nobody_waiting(
    strategy: str, tiny_variant: Callable[..., Any], make_batch: Callable[..., Any], greedy: Any
) -> None:
    model = SteerMoE.from_config(tiny_variant("linear"))
    how = greedy(8, strategy=strategy, num_beams=2 if strategy == "beam" else None)
    left = model.generate_all([Batch.of(make_batch())] * 2, how)
    next(left)
    with ThreadPoolExecutor(1) as pool:
        assert isinstance(pool.submit(model.transcribe, recordings()[0], None, how).result(60), str)

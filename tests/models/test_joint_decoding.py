"""CTC prefix scores against the sum over all alignments, and joint decoding at both ends of the weight."""

import itertools
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from steermoe.data.prompts import encode_prompt
from steermoe.models.joint_decoding import CtcPrefix
from steermoe.models.steermoe import SteerMoE

TOKENS = torch.tensor([4, 7, 9])


@pytest.fixture
def log_probs() -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randn(5, 1 + len(TOKENS)).log_softmax(-1)


def said(path: tuple[int, ...]) -> tuple[int, ...]:
    """What an alignment says: repetitions joined, blanks left out."""
    return tuple(key for key, _ in itertools.groupby(path) if key)


def probabilities(log_probs: torch.Tensor) -> dict[tuple[int, ...], float]:
    """The probability of every transcript, over all alignments."""
    found: dict[tuple[int, ...], float] = {}
    for path in itertools.product(range(log_probs.shape[1]), repeat=len(log_probs)):
        score = log_probs[range(len(path)), list(path)].sum().exp().item()
        found[said(path)] = found.get(said(path), 0.0) + score
    return found


@pytest.mark.parametrize("transcript", [(), (1,), (2, 2), (3, 1), (1, 2, 1)])
def test_scores_are_sums_over_all_alignments(log_probs: torch.Tensor, transcript: tuple[int, ...]) -> None:
    every = probabilities(log_probs)

    def begins(prefix: tuple[int, ...]) -> float:
        return sum(p for text, p in every.items() if text[: len(prefix)] == prefix)

    prefix = CtcPrefix(log_probs, TOKENS)
    places = [prefix.ids.tolist().index(int(TOKENS[token - 1])) for token in (1, 2, 3)]
    for token in transcript:
        prefix.append(places[token - 1])
    following, end = prefix.scores()
    whole = begins(transcript)
    expected = [begins((*transcript, token)) / whole for token in (1, 2, 3)]
    np.testing.assert_allclose(np.exp(following)[places], expected, rtol=1e-6, atol=1e-12)
    assert math.exp(end) == pytest.approx(every[transcript] / whole)


def test_the_weight_decides_who_is_followed(log_probs: torch.Tensor) -> None:
    sure = torch.full((4, 4), -9.0)
    sure[[0, 1, 2, 3], [2, 0, 2, 3]] = 0.0  # 7, blank, 7, 9
    llm = torch.full((20,), -9.0)
    llm[[4, 2]] = torch.tensor([-0.5, -3.0])

    def transcript(weight: float) -> list[int]:
        prefix, found = CtcPrefix(sure.log_softmax(-1), TOKENS), []
        while len(found) < 6 and (not found or found[-1] != 2):
            found.append(prefix.choose(llm.log_softmax(-1), weight, {2}))
        return found

    assert transcript(0.99) == [7, 7, 9, 2]
    assert transcript(0.05)[0] == 4


def test_only_transcripts_are_guided(tiny_variant: Any, make_batch: Any) -> None:
    ctc = {"steps": 2, "coef": 0.5, "soft_tokens": True, "spelling": False, "num_sampled": None}
    model = SteerMoE.from_config(tiny_variant("linear", {"training.ctc": ctc}))
    assert model.ctc is not None
    model.ctc.allow(torch.arange(30))
    batch = make_batch()
    assert not any(model.read_prompt(batch, "right", 0.5)[2])  # of another prompt
    asked = encode_prompt(model.config.prompts, model.tokenizer, "transcribe", "").suffix
    ids = torch.tensor([asked] * batch.rows)
    asking = replace(batch, prompt_ids=ids, prompt_lengths=torch.full((batch.rows,), len(asked)))
    assert all(model.read_prompt(asking, "right", 0.5)[2])
    assert not any(model.read_prompt(batch, "right", 0.0)[2])
    plain = SteerMoE.from_config(tiny_variant("linear"))
    with pytest.raises(ValueError, match="the adapter has no CTC head"):
        plain.read_prompt(batch, "right", 0.5)

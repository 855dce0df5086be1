"""The cached prefix: exact in loss, gradients and answers, and left alone where it would not be."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from steermoe.audio.augment import levelled
from steermoe.data.prompts import encode_prompt
from steermoe.models.prefix import prefix_cache
from steermoe.models.steermoe import SteerMoE

PREFIX = (17, 301, 5, 44, 9, 60, 2)
NO_CACHE = "steermoe.models.steermoe.prefix_cache", "steermoe.models.continuous.prefix_cache"


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NO_CACHE:
        monkeypatch.setattr(name, lambda *_: None)


@pytest.fixture
def model(tiny_variant: Callable[..., Any]) -> SteerMoE:
    return SteerMoE.from_config(tiny_variant("steering", {"steering.vector_std": 1.0}))


@pytest.mark.parametrize("autocast", [False, True])
def test_loss_and_gradients_are_those_of_whole_rows(
    model: SteerMoE, make_batch: Any, monkeypatch: pytest.MonkeyPatch, autocast: bool
) -> None:
    batch, found = make_batch(prefix=PREFIX), []
    assert prefix_cache(model.llm, batch["prefix_ids"], batch["prefix_lengths"]) is not None
    for cached in (True, False):
        if not cached:
            forget(monkeypatch)
        model.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            output = model(**batch)
        output.loss.backward()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        found.append((output, gradients))
    (cached, ours), (whole, theirs) = found
    bound: Any = {"atol": 0.02, "rtol": 0.1} if autocast else {"atol": 1e-6, "rtol": 1e-4}
    torch.testing.assert_close(cached.loss, whole.loss, **bound)
    torch.testing.assert_close(ours, theirs, **bound)
    assert "projection.linear.weight" in ours


def test_answers_are_those_of_whole_rows(
    model: SteerMoE, make_batch: Any, heard: Any, greedy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = [
        greedy(12),
        greedy(6, strategy="beam", num_beams=3),
        greedy(6, strategy="sample", temperature=0.7, top_p=0.9),
    ]
    batch = heard(make_batch(prefix=PREFIX))
    cached = [model.generate(batch, each) for each in settings]
    forget(monkeypatch)
    assert [model.generate(batch, each) for each in settings] == cached


@torch.no_grad()
def test_what_stands_before_the_audio_matters(model: SteerMoE, make_batch: Any) -> None:
    losses = {float(model(**make_batch(prefix=prefix)).loss) for prefix in ((), PREFIX, PREFIX[::-1])}
    assert len(losses) == 3


@torch.no_grad()
def test_no_cache_where_the_prefix_differs_or_is_empty(model: SteerMoE, make_batch: Any) -> None:
    batch = make_batch(prefix=PREFIX)
    ids, lengths = batch["prefix_ids"], batch["prefix_lengths"]
    assert prefix_cache(model.llm, ids[:, :0], lengths * 0) is None
    shorter, other = lengths.clone(), ids.clone()
    shorter[1] -= 2
    other[2, 3] += 1
    assert prefix_cache(model.llm, ids, shorter) is None
    assert prefix_cache(model.llm, other, lengths) is None
    # Such rows are packed like all others.
    batch["prefix_lengths"], batch["prefix_ids"] = shorter, other
    together = model(**batch)
    alone = []
    for row, (length, tokens) in enumerate(zip(shorter.tolist(), other.tolist(), strict=True)):
        alone.append(model(**make_batch(rows=[row], prefix=tokens[:length])))
    total = sum(float(output.loss) * int(output.num_tokens) for output in alone)
    assert float(together.loss) == pytest.approx(total / int(together.num_tokens), rel=1e-5)


def test_no_cache_where_the_llm_is_trained(model: SteerMoE, make_batch: Any) -> None:
    """The gradient then reaches the prefix: its tokens' embeddings among what was adapted."""
    table = model.llm.get_input_embeddings().weight
    table.requires_grad_(True)
    batch = make_batch(prefix=PREFIX)
    assert prefix_cache(model.llm, batch["prefix_ids"], batch["prefix_lengths"]) is None
    model(**batch).loss.backward()
    assert table.grad is not None and bool(table.grad[list(PREFIX)].abs().amax(1).all())


def test_a_chat_is_asked_as_its_template_has_it(
    tiny_variant: Callable[..., Any], tiny_chat_dir: Path, greedy: Any
) -> None:
    """From waveform to text, against the whole conversation put together by hand."""
    variant = tiny_variant(
        "linear",
        {"llm.path": str(tiny_chat_dir), "prompts.format": "chat", "prompts.system": "the red cat sings"},
    )
    model = SteerMoE.from_config(variant)
    samples = torch.sin(torch.arange(16000) * 0.1).numpy()
    prompt = encode_prompt(variant.prompts, model.tokenizer, "answer", "who?")
    table = model.llm.get_input_embeddings()
    with torch.no_grad():
        features = model.features(levelled(samples))[None]
        audio, _ = model.encode(features, torch.tensor([features.shape[2]]))
        before, behind = (table(torch.tensor([ids])) for ids in prompt)
        rows = torch.cat([before, audio, behind], dim=1)
        expected = model.llm.generate(inputs_embeds=rows, max_new_tokens=6, do_sample=False)[0]
    answer = model.transcribe(samples, "who?", generation=greedy(6))
    assert answer == model.tokenizer.decode(expected, skip_special_tokens=True).strip()
    assert model.tokenizer.convert_tokens_to_ids("<|im_end|>") in model.llm.generation_config.eos_token_id

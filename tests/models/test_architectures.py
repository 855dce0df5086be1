"""One assembly over LLMs that scale their embeddings, scale or cap their logits, or look back only so far.

Every comparison is with what the model's own class in transformers makes of the same rows.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from steermoe.models import prefix
from steermoe.models.llm import hidden_states, input_embeddings, load_llm, logits, narrows
from steermoe.models.steermoe import SteerMoE

WINDOW = 6  # tokens that a layer with a sliding window sees: fewer than any row has
SIZES: dict[str, dict[str, Any]] = {
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "llama": {},
    "mistral": {"sliding_window": WINDOW, "head_dim": 8},
    # Untied: tied and scaled, random weights do nothing but repeat the last token.
    "gemma": {"head_dim": 8, "tie_word_embeddings": False},
    "gemma2": {
        "head_dim": 8,
        "tie_word_embeddings": False,
        "sliding_window": WINDOW,
        "final_logit_softcapping": 0.5,
    },
    "gemma3_text": {
        "head_dim": 8,
        "tie_word_embeddings": False,
        "sliding_window": WINDOW,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "cohere": {"logit_scale": 0.25},
    "granite": {"logits_scaling": 4.0, "embedding_multiplier": 6.0},
}
ATTENDS_TO_ALL = ("qwen2", "qwen3", "llama", "gemma", "cohere", "granite")
PREFIX = (17, 301, 5, 44, 9)
Batch = dict[str, torch.Tensor]


@pytest.fixture(scope="module", params=SIZES)
def model(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    save_tiny_llm: Callable[..., Path],
    tiny_variant: Callable[..., Any],
) -> SteerMoE:
    folder = save_tiny_llm(tmp_path_factory.mktemp(request.param), request.param, **SIZES[request.param])
    torch.manual_seed(3)
    made = SteerMoE.from_config(tiny_variant("linear", {"llm.path": str(folder)}))
    assert made.llm.config.model_type == request.param
    return made


@torch.no_grad()
def whole_row(model: SteerMoE, batch: Batch) -> torch.Tensor:
    """The only row of a batch, put together by hand."""
    audio, _ = model.encode(batch["features"], batch["feature_lengths"])
    table = model.llm.get_input_embeddings()
    return torch.cat([table(batch["prefix_ids"]), audio, table(batch["prompt_ids"])], dim=1)


@torch.no_grad()
def test_logits_are_the_models_own(model: SteerMoE) -> None:
    ids = torch.arange(24).view(2, 12)
    own = model.llm(input_ids=ids).logits
    hidden = hidden_states(model.llm, model.llm.get_input_embeddings()(ids))
    assert torch.equal(logits(model.llm, hidden), own)
    unchanged = model.llm.get_output_embeddings()(hidden)
    changed = model.llm.config.model_type in ("gemma2", "cohere", "granite")
    assert torch.allclose(unchanged, own, rtol=1e-3) != changed


@torch.no_grad()
@pytest.mark.parametrize("prefix_ids", [(), PREFIX])
def test_the_loss_is_the_models_own(model: SteerMoE, prefix_ids: tuple[int, ...], make_batch: Any) -> None:
    """Of rows of different lengths, against the model's own loss of each alone."""
    total, tokens = 0.0, 0
    for row in range(4):
        batch = make_batch(rows=[row], prefix=prefix_ids)
        targets = batch["target_ids"]
        rows = torch.cat([whole_row(model, batch), model.llm.get_input_embeddings()(targets)], dim=1)
        labels = torch.full(rows.shape[:2], -100)
        labels[:, -targets.shape[1] :] = targets
        total += float(model.llm(inputs_embeds=rows, labels=labels).loss) * targets.shape[1]
        tokens += targets.shape[1]
    assert float(model(**make_batch(prefix=prefix_ids)).loss) == pytest.approx(total / tokens, rel=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("prefix_ids", [(), PREFIX])
def test_answers_of_a_batch_are_those_of_its_rows(
    model: SteerMoE, prefix_ids: tuple[int, ...], make_batch: Any, heard: Any, greedy: Any
) -> None:
    """And those of decoding by hand, without padding, cache or `generate`."""
    free = greedy(9, max_repeats=None)
    together = model.generate(heard(make_batch(prefix=prefix_ids)), generation=free)
    stops = model.llm.generation_config.eos_token_id
    for row in range(4):
        batch = make_batch(rows=[row], prefix=prefix_ids)
        assert model.generate(heard(batch), generation=free) == [together[row]]
        rows, answer = whole_row(model, batch), []
        while len(answer) < 9:
            token = int(model.llm(inputs_embeds=rows).logits[0, -1].argmax())
            if token in stops:
                break
            answer.append(token)
            rows = torch.cat([rows, model.llm.get_input_embeddings()(torch.tensor([[token]]))], dim=1)
        assert together[row] == answer
    assert len({tuple(answer) for answer in together}) > 1


@torch.no_grad()
def test_audio_starts_as_loud_as_tokens(model: SteerMoE) -> None:
    tokens = model.llm.get_input_embeddings()(torch.arange(model.llm.config.vocab_size))
    assert torch.equal(input_embeddings(model.llm), tokens)
    audio = model.projection(torch.randn(1, 500, 32), torch.zeros(1, 1, 32), torch.tensor([1]))
    assert float(audio.square().mean().sqrt()) == pytest.approx(
        float(tokens.square().mean().sqrt()), rel=0.15
    )
    scaled = model.llm.config.model_type.startswith("gemma")
    assert torch.allclose(tokens, model.llm.get_input_embeddings().weight) != scaled


@torch.no_grad()
def test_the_prefix_is_cached_where_that_is_exact(
    model: SteerMoE, make_batch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = make_batch(prefix=PREFIX)
    cache = prefix.prefix_cache(model.llm, batch["prefix_ids"], batch["prefix_lengths"])
    assert (cache is not None) == (model.llm.config.model_type in ATTENDS_TO_ALL)
    cached = model(**batch).loss
    monkeypatch.setattr("steermoe.models.steermoe.prefix_cache", lambda *_: None)
    torch.testing.assert_close(model(**batch).loss, cached, atol=1e-5, rtol=1e-5)


def test_unknown_changes_of_the_logits_are_refused(
    tmp_path: Path, save_tiny_llm: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from steermoe.config import Llm
    from steermoe.models.llm import LOGIT_CHANGES

    folder = save_tiny_llm(tmp_path, "gemma2", head_dim=8, final_logit_softcapping=0.5)
    monkeypatch.delitem(LOGIT_CHANGES, "final_logit_softcapping")
    with pytest.raises(ValueError, match=r"llm\.path: the logits of .* are not its output embeddings"):
        load_llm(Llm(path=str(folder), revision=None, dtype="float32", quantization="none", layers="all"))


def test_the_last_feed_forward_is_spared_where_nothing_reads_it(
    model: SteerMoE, make_batch: Callable[..., Batch], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss and its gradients are those of all positions."""
    assert narrows(model.llm)
    seen: list[int] = []
    inside = model.llm.base_model.layers[-1].mlp.get_submodule("down_proj")
    counting = inside.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[:-1].numel()))
    found = {}
    for spared in (True, False):
        monkeypatch.setattr(model, "narrows", spared)
        model.zero_grad(set_to_none=True)
        loss = model(**make_batch()).loss
        loss.backward()
        found[spared] = [loss.detach(), *(p.grad for p in model.projection.parameters())]
    torch.testing.assert_close(found[True], found[False], atol=1e-6, rtol=1e-4)
    counting.remove()
    assert seen[0] == int(make_batch()["target_lengths"].sum()) < seen[1]

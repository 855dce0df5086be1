from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from steermoe.models import quantization
from steermoe.models.llm import QUANTIZATIONS, load_options
from steermoe.models.steermoe import SteerMoE

ON_GPU = pytest.param(
    "nf4", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="nf4 needs a GPU")
)


@pytest.mark.parametrize("kind", ["int8", ON_GPU])
def test_gradients_go_through_and_the_loss_is_near(
    kind: str,
    tiny_variant: Callable[..., Any],
    make_batch: Any,
    tmp_path: Path,
    save_tiny_llm: Callable[..., Path],
) -> None:
    llm = save_tiny_llm(tmp_path / "llm", "qwen2", hidden_size=128, intermediate_size=256)
    plain = SteerMoE.from_config(tiny_variant("steering", {"llm.path": str(llm)}))
    model = SteerMoE.from_config(tiny_variant("steering", {"llm.path": str(llm), "llm.quantization": kind}))
    linear: Any = model.llm.model.layers[0].mlp.up_proj
    assert linear.weight.dtype in (torch.int8, torch.uint8) and not linear.weight.requires_grad
    loss, expected = model(**make_batch()).loss, plain(**make_batch()).loss
    assert loss != expected
    torch.testing.assert_close(loss, expected, rtol=0.1, atol=0.1)
    loss.backward()
    plain(**make_batch()).loss.backward()
    for (name, p), other in zip(model.named_parameters(), plain.parameters(), strict=True):
        if p.requires_grad:
            assert p.grad is not None and other.grad is not None
            cosine = torch.nn.functional.cosine_similarity(p.grad.flatten(), other.grad.flatten(), 0)
            assert cosine > 0.7, name
        else:
            assert p.grad is None, name
    model.save_pretrained(tmp_path / "adapter")
    again = SteerMoE.from_pretrained(tmp_path / "adapter")
    assert torch.equal(again(**make_batch()).loss, loss)
    assert again.frozen_hashes() == model.frozen_hashes() != plain.frozen_hashes()


def test_nothing_is_asked_of_the_loader_without() -> None:
    assert load_options("none", torch.float32) == {}
    with pytest.raises(ValueError, match=r"llm\.quantization: found 'int4', must be one of: int8, nf4, none"):
        load_options("int4", torch.float32)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_four_bits_need_a_gpu() -> None:
    assert set(QUANTIZATIONS) == {"none", "int8", "nf4"}
    with pytest.raises(ValueError, match=r"llm\.quantization: found 'nf4', which needs a CUDA GPU"):
        load_options("nf4", torch.float32)


def test_a_missing_library_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantization, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'steermoe\[quantization\]'"):
        load_options("nf4", torch.float32)

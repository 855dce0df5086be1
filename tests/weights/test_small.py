"""Profile `small` on its real base models: ten steps of training, and the adapter that comes with the repository.

`password.g722` says TEXT; it is `agent-pass` of Asterisk's English core sounds, spoken by Allison Smith, CC BY-SA 3.0.
"""

from pathlib import Path

import jiwer
import pytest
import torch

from steermoe import SteerMoE, config, weights
from steermoe.audio import io
from steermoe.data.dataset import collate, make_item
from steermoe.data.prompts import encode_prompt
from steermoe.evaluation.normalizers import normalizer
from steermoe.server.engine import Engine
from tests.server.conftest import running, transcribe

ROOT = Path(__file__).parents[2]
RECORDING = Path(__file__).with_name("password.g722")
TEXT = "Please enter your password followed by the pound key."


@pytest.fixture(autouse=True)
def base_models() -> None:
    """Skip where the base models cannot be had."""
    for name in ("whisper-base", "smollm2-135m-instruct"):
        try:
            weights.fetched(name)
        except weights.UnavailableError as error:
            pytest.skip(f"cannot be reached: {str(error).splitlines()[0]}")


def test_ten_steps_lower_the_loss() -> None:
    settings = config.preview(ROOT / "params.yaml", "small", ["steermoe"])
    model = SteerMoE.from_config(settings.variant("steermoe")).train()
    assert model.ctc is not None
    target = model.tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    model.ctc.allow(torch.tensor(target))
    asked = encode_prompt(settings.prompts, model.tokenizer, "transcribe", "")
    batch = collate([make_item(model.features(io.load(RECORDING)), asked, target)])
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, 1e-3)
    losses = []
    for step in range(11):
        loss = model(**batch, ctc_only=step < 10).loss
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[9] < 0.7 * losses[0]
    assert losses[10] == losses[10] and all(p.grad is not None for p in trained)  # through the LLM, too


def test_the_adapter_of_the_repository_understands_a_person() -> None:
    """It gets at least half of the words; an adapter that invents sentences gets none."""
    model = SteerMoE.from_pretrained(ROOT / "pretrained/adapters/small/steermoe")
    samples = io.load(RECORDING)
    text = model.transcribe(samples)
    folded = normalizer("folded")
    assert jiwer.wer(folded(TEXT), folded(text)) <= 0.5, text
    with running(Engine(model)) as server:  # decodes as the model does
        assert transcribe(server, io.encode_flac(samples, io.RATE)).text == text

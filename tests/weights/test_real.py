"""The real base models, where the package index or the hub can be reached: tensors, transcripts, answers.

`password.g722` is `agent-pass` of Asterisk's English core sounds, spoken by Allison Smith, CC BY-SA 3.0.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from transformers import WhisperForConditionalGeneration

from steermoe import config, weights
from steermoe.evaluation.decoders import WhisperDecoder
from steermoe.models.encoders import load_encoder
from steermoe.models.llm import load_llm
from steermoe.models.pretrained import digest, frozen_weights

WHISPER = "a02f02ff183be27b1152b6a5013114691a4c08bccce1053422c3cf495d1600b7"  # in float32, the output tied
SMOLLM = "faf714ce5e44852b956c3b9adba96ebb99ce3341ac494296ed6d8b0939fab337"


def real(name: str) -> Path:
    """The folder of a base model, from the cache of earlier times; skip where it cannot be had."""
    try:
        return weights.fetched(name)
    except weights.UnavailableError as error:
        pytest.skip(f"cannot be reached: {str(error).splitlines()[0]}")


@pytest.fixture(scope="module")
def prompt() -> np.ndarray:
    with av.open(str(Path(__file__).with_name("password.g722")), format="g722") as file:
        return (
            np.concatenate([frame.to_ndarray()[0] for frame in file.decode(audio=0)]).astype(np.float32)
            / 2**15
        )


def test_whisper_base_hears_a_person(prompt: np.ndarray, greedy: Callable[..., Any]) -> None:
    folder = real("whisper-base")
    whole = WhisperForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    assert digest(dict(whole.state_dict())) == WHISPER
    section = config.Encoder(
        name="whisper", path="whisper-base", revision=None, dtype="float32", window="full", layers="all"
    )
    decoder = WhisperDecoder(
        section.model_copy(update={"path": str(folder)}), greedy(48), 0, torch.device("cpu")
    )
    assert decoder.knows("fr") and len(decoder.known) == 99
    assert decoder([prompt], ["en"]) == ["Please enter your password, followed by the pound key."]
    encoder = load_encoder(section)
    features = encoder.features(prompt)
    with torch.inference_mode():
        hidden, lengths = encoder(features[None], torch.tensor([features.shape[1]]))
        window = decoder.extractor(prompt, sampling_rate=16_000, return_tensors="pt").input_features
        own = whole.model.encoder(window).last_hidden_state
    torch.testing.assert_close(hidden[0], own[0, : int(lengths)], atol=2e-3, rtol=2e-3)


def test_smollm_answers() -> None:
    real("smollm2-135m-instruct")
    section = config.Llm(
        path="smollm2-135m-instruct", revision=None, dtype="float32", quantization="none", layers="all"
    )
    llm, tokenizer = load_llm(section)
    assert digest(frozen_weights(llm)) == SMOLLM
    question = [{"role": "user", "content": "What is the capital of France?"}]
    ids = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt")[
        "input_ids"
    ]
    answer = llm.generate(ids, max_new_tokens=12, attention_mask=torch.ones_like(ids))
    assert (
        tokenizer.decode(answer[0, ids.shape[1] :], skip_special_tokens=True)
        == "The capital of France is Paris."
    )

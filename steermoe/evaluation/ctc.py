"""Encoders from the hub that come with a CTC head: Wav2Vec2, its Conformer and BERT kin, Parakeet."""

from collections.abc import Sequence
from inspect import signature
from typing import Any

import numpy as np
import torch
from transformers import AutoFeatureExtractor, AutoModelForCTC, AutoTokenizer, PretrainedConfig

from steermoe.audio import io as waveform
from steermoe.config import Encoder, Generation


class HubCtcDecoder:
    """A whole CTC model as transformers runs it, greedy, a recording at a time.

    Padding reaches the output of models whose feature extractor normalises over time or whose convolutions
    have no mask; without batches there is none.
    """

    window = 0.0  # every utterance is as long as its audio

    def __init__(self, section: Encoder, generation: Generation, seed: int, device: torch.device) -> None:
        model: Any = AutoModelForCTC.from_pretrained(section.path, dtype=getattr(torch, section.dtype))
        self.model = model.eval()
        self.model.to(device)
        self.extractor = AutoFeatureExtractor.from_pretrained(section.path)
        self.tokenizer = AutoTokenizer.from_pretrained(section.path)
        groups = "group_tokens" in signature(type(self.tokenizer)._decode).parameters
        self.ungrouped: dict[str, Any] = {"group_tokens": False} if groups else {}
        self.blank = self.model.config.pad_token_id
        self.decoding = f"CTC head over {self.model.config.vocab_size - 1} units, greedy"

    @staticmethod
    def offered(path: str) -> bool:
        """Whether the checkpoint is a whole CTC model."""
        architectures = PretrainedConfig.get_config_dict(path)[0].get("architectures") or []
        return len(architectures) == 1 and architectures[0].endswith("ForCTC")

    def knows(self, tag: str) -> bool:
        """It is told no language: it writes its units."""
        return True

    def __call__(self, waveforms: Sequence[np.ndarray], languages: Sequence[str]) -> list[str]:
        """The text of each waveform."""
        return [self._text(samples) for samples in waveforms]

    def _text(self, samples: np.ndarray) -> str:
        inputs = self.extractor(samples, sampling_rate=waveform.RATE, return_tensors="pt")
        moved = {
            name: tensor.to(self.model.device, self.model.dtype if tensor.is_floating_point() else None)
            for name, tensor in inputs.items()
        }
        path = self.model(**moved).logits[0].argmax(-1)
        units = [unit for unit in torch.unique_consecutive(path).tolist() if unit != self.blank]
        # Units that follow one another here were divided by a blank: the tokenizer must not make them one.
        return self.tokenizer.decode(units, skip_special_tokens=True, **self.ungrouped).strip()

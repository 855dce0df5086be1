"""Run an exported model in ONNX Runtime: the graphs of `export_onnx` with the interface of SteerMoE.

Decoding is the library's own (`steermoe.models.generation`): to it, the LLM's graph is a causal LM of transformers.

Shapes: B batch, M feature channels, T feature frames, P0 prefix tokens, P prompt tokens, W tokens of a step,
H width of the LLM.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from onnxruntime import SessionOptions  # pyright: ignore[reportAttributeAccessIssue]
from safetensors.torch import load_file
from torch import nn
from transformers import (
    AutoConfig,
    Cache,
    DynamicCache,
    GenerationConfig,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.exporters.base import ExportedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from steermoe.audio.features import LogMel
from steermoe.config import Generation, VariantConfig
from steermoe.data.dataset import Batch
from steermoe.export.onnx_export import AUDIO, DESCRIPTION, EMBEDDINGS, FORMAT, LLM
from steermoe.models.generation import GREEDY, decode
from steermoe.models.inference import Audio, Generated, answer_spoken
from steermoe.models.llm import load_tokenizer
from steermoe.models.packing import pack


class OnnxLlm(PreTrainedModel, GenerationMixin):
    """The LLM's graph as a model for transformers' `generate`.

    Args:
        declared: the LLM's own configuration.
        graph: as the exporter loads it.
        embeddings: of tokens, (V, H).
        heads: number and width of the cached heads, layer by layer.
        tokens: end and padding tokens.
    """

    config_class = PreTrainedConfig

    def __init__(
        self,
        declared: Any,
        graph: ExportedModel,
        embeddings: torch.Tensor,
        heads: Sequence[tuple[int, int]],
        tokens: GenerationConfig,
    ) -> None:
        super().__init__(declared)
        self.graph, self.heads = graph, heads
        self.table = nn.Embedding.from_pretrained(embeddings)
        self.generation_config = tokens

    def get_input_embeddings(self) -> nn.Module:
        """Return the token embeddings."""
        return self.table

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        **_: Any,
    ) -> CausalLMOutputWithPast:
        """Return the logits of the last of W tokens, and the cache with all of them."""
        if inputs_embeds is None:
            inputs_embeds = self.table(input_ids)
        assert inputs_embeds is not None
        if past_key_values is None or not past_key_values.get_seq_length():
            past_key_values = self._empty(inputs_embeds.shape[0])
        if attention_mask is None:  # `generate` leaves it out where there is no padding
            tokens = past_key_values.get_seq_length() + inputs_embeds.shape[1]
            attention_mask = torch.ones(inputs_embeds.shape[0], tokens, dtype=torch.long)
        if position_ids is None:
            position_ids = (attention_mask.cumsum(1) - 1).clamp(min=0)[:, -inputs_embeds.shape[1] :]
        return self.graph(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
        )

    def _empty(self, rows: int) -> Cache:
        cache = DynamicCache(config=self.config)
        for layer, (heads, width) in enumerate(self.heads):
            cache.update(torch.zeros(rows, heads, 0, width), torch.zeros(rows, heads, 0, width), layer)
        return cache


class OnnxModel:
    """An export of `export_onnx`, loaded.

    Attributes:
        config: the resolved configuration of the variant.
        features: waveform to features.
        tokenizer: the LLM's.
        llm: its graph.

    Args:
        folder: output of `export_onnx`.

    Raises:
        ValueError: it is not one, or of another format.
    """

    device = torch.device("cpu")
    video = None  # of a model of audio alone

    def __init__(self, folder: str | Path) -> None:
        folder = Path(folder)
        try:
            description = json.loads((folder / DESCRIPTION).read_text())
            found = description["format"]
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(f"{folder}: not an export of `steermoe export onnx`: {error}") from error
        if found != FORMAT:
            raise ValueError(f"{folder / DESCRIPTION}: found format {found!r}, this version reads {FORMAT}")
        self.config = VariantConfig.from_json(json.dumps(description["variant"]))
        self.features = LogMel(**description["features"])
        self.tokenizer = load_tokenizer(str(folder / LLM))
        self._audio = _graph(folder / AUDIO)
        self._reads_prompt: bool = description["reads_prompt"]
        self.llm = OnnxLlm(
            AutoConfig.from_pretrained(folder / LLM),
            _graph(folder / LLM),
            load_file(folder / EMBEDDINGS)["weight"],
            description["cache"],
            GenerationConfig(eos_token_id=description["stops"], pad_token_id=description["padding"]),
        )

    @torch.no_grad()
    def generate_all(
        self, batches: Iterable[Batch], generation: Generation, seed: int = 0, scored: bool = False
    ) -> Iterator[Generated]:
        """Decode as `SteerMoE.generate_all`, batch by batch, and without likelihoods."""
        before = 0
        for inputs in batches:
            found = decode(self.llm, *self._read(inputs), generation, seed)
            yield from (Generated(row, ids, []) for row, ids in enumerate(found, start=before))
            before += len(found)

    def _read(self, inputs: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the LLM's input, left-padded, and its mask."""
        prompt = self.llm.table(inputs.prompt_ids.clamp(min=0))
        encoded: dict[str, Any] = {"features": inputs.features, "feature_lengths": inputs.feature_lengths}
        if self._reads_prompt:
            encoded |= {"prompt": prompt, "prompt_lengths": inputs.prompt_lengths}
        found = self._audio(**encoded)
        prefix = self.llm.table(inputs.prefix_ids.clamp(min=0))
        lengths = [inputs.prefix_lengths, found["audio_lengths"], inputs.prompt_lengths]
        return pack([prefix, found["audio"], prompt], lengths, "left")

    def transcribe(
        self,
        audio: Audio | Sequence[Audio],
        question: str | None = None,
        generation: Generation = GREEDY,
        seed: int = 0,
    ) -> str | list[str]:
        """Transcribe as `SteerMoE.transcribe`."""
        model: Any = self  # has all that is needed of one
        if isinstance(audio, str | Path | np.ndarray):
            return answer_spoken(model, [audio], question, None, generation, seed)[0].text
        return [answer.text for answer in answer_spoken(model, audio, question, None, generation, seed)]


def _graph(folder: Path) -> ExportedModel:
    """Load a graph in ONNX Runtime, with as many threads as torch has; they do not spin while torch works."""
    options = SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ExportedModel.from_pretrained(folder, device="cpu", session_options=options)

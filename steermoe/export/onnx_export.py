"""Write a trained model as ONNX graphs with transformers' exporter; `OnnxModel` runs them without its weights.

A folder has `audio/` (encoder with steering or adapters, down-sampling, projector), `llm/` (one step of any number of
tokens, with its cache), `embeddings.safetensors` (the LLM's token embeddings), its tokenizer, and `steermoe.json`.

Shapes: B batch, M feature channels, T feature frames, A audio tokens, P prompt tokens, W tokens of a step, C cached
tokens, H width of the LLM, V its vocabulary.
"""

import contextlib
import json
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from torch.export import Dim
from transformers import DynamicCache
from transformers.exporters.configs import OnnxConfig
from transformers.exporters.exporter_onnx import OnnxExporter

from steermoe.atomic_io import new_folder, write_text
from steermoe.audio.features import LogMel
from steermoe.models.llm import CausalLM, input_embeddings
from steermoe.models.steermoe import SteerMoE

FORMAT = 1
AUDIO, LLM, EMBEDDINGS, DESCRIPTION = "audio", "llm", "embeddings.safetensors", "steermoe.json"
ROWS, FRAMES, TOKENS, CACHED = 3, 301, 7, 5  # of the sample that is traced; all but M and H stay free


class AudioGraph(nn.Module):
    """From features to audio tokens: the model without the LLM."""

    config = None  # transformers' exporter asks for one

    def __init__(self, model: SteerMoE) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        features: torch.Tensor,
        feature_lengths: torch.Tensor,
        prompt: torch.Tensor | None = None,
        prompt_lengths: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        """Return tokens (B, A, H) of features (B, M, T), and of the prompt (B, P, H) where the projector reads it."""
        audio, lengths = self.model.encode(features, feature_lengths, prompt, prompt_lengths)
        return {"audio": audio, "audio_lengths": lengths}


def export_onnx(model: SteerMoE, folder: Path, int8: bool = False) -> dict[str, int]:
    """Write the model as ONNX graphs.

    Args:
        model: in float32, with an encoder that takes log-mel features.
        folder: output folder, which must not exist.
        int8: weights of matrices as int8, activations quantised while running (ONNX Runtime's dynamic quantisation).

    Returns:
        Bytes by part: audio, llm, embeddings.

    Raises:
        FileExistsError: the folder exists.
        ValueError: the model cannot be exported: another dtype or other features.
    """
    _check(model)
    with new_folder(folder) as made:
        with _quiet():
            exporter = OnnxExporter()
            audio: Any = AudioGraph(model).eval()  # a module is enough
            exporter.export(audio, *_audio_sample(model, int8)).save_pretrained(made / AUDIO)
            exporter.export(model.llm, *_llm_sample(model.llm, int8)).save_pretrained(made / LLM)
        model.tokenizer.save_pretrained(made / LLM)
        save_file({"weight": input_embeddings(model.llm).contiguous()}, made / EMBEDDINGS)
        write_text(made / DESCRIPTION, json.dumps(_description(model, int8), indent=2) + "\n")
    sizes = {part: sum(file.stat().st_size for file in (folder / part).iterdir()) for part in (AUDIO, LLM)}
    return sizes | {"embeddings": (folder / EMBEDDINGS).stat().st_size}


def _description(model: SteerMoE, int8: bool) -> dict[str, Any]:
    assert isinstance(model.features, LogMel)
    return {
        "format": FORMAT,
        "variant": json.loads(model.config.to_json()),
        "features": {"num_mels": model.features.channels, "tail": model.features.tail},
        "reads_prompt": model.projection.reads_prompt,
        "stops": model.llm.generation_config.eos_token_id,
        "padding": model.llm.generation_config.pad_token_id,
        "cache": [list(layer.keys.shape[1::2]) for layer in _cache(model.llm, 1, 1).layers],  # heads, width
        "int8": int8,
    }


def _check(model: SteerMoE) -> None:
    config, kind = model.config, type(model.features).__name__
    found = None
    if model.video is not None:
        found = "a video branch; only models of audio can be exported"
    elif kind != "LogMel":
        found = f"an encoder of {kind}; only encoders of log-mel features (whisper) can be exported"
    elif wrong := [each for each in ("encoder", "llm") if getattr(config, each).dtype != "float32"]:
        dtype = getattr(config, wrong[0]).dtype
        found = (
            f"{wrong[0]}.dtype {dtype!r}; load the model with float32 (ONNX Runtime has no bfloat16 on CPUs)"
        )
    elif model.ctc is not None:
        found = "training.ctc; soft tokens and joint decoding are not in an export: use the adapter itself"
    elif config.llm.quantization != "none":
        found = "llm.quantization, whose kernels are no ONNX operators; use none, and int8 here"
    if found is not None:
        raise ValueError(f"export: found {found}")


def _audio_sample(model: SteerMoE, int8: bool) -> tuple[dict[str, Any], OnnxConfig]:
    lengths = torch.tensor([FRAMES, FRAMES * 2 // 3, FRAMES // 3])
    inputs = {"features": torch.randn(ROWS, model.features.channels, FRAMES), "feature_lengths": lengths}
    free: dict[str, Any] = {"features": {0: Dim.DYNAMIC, 2: Dim.DYNAMIC}, "feature_lengths": {0: Dim.DYNAMIC}}
    if model.projection.reads_prompt:
        inputs["prompt"] = torch.randn(ROWS, TOKENS, model.llm.config.get_text_config().hidden_size)
        inputs["prompt_lengths"] = torch.tensor([TOKENS, TOKENS - 1, TOKENS - 2])
        free |= {"prompt": {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}, "prompt_lengths": {0: Dim.DYNAMIC}}
    return inputs, OnnxConfig(dynamic_shapes=free, quantizer=_quantizer(int8))


def _llm_sample(llm: CausalLM, int8: bool) -> tuple[dict[str, Any], OnnxConfig]:
    width = llm.config.get_text_config().hidden_size
    mask = torch.ones(ROWS, CACHED + TOKENS, dtype=torch.long)
    mask[0, :2] = 0  # a row with padding, or the mask would not become an input
    inputs = {
        "inputs_embeds": torch.randn(ROWS, TOKENS, width),
        "attention_mask": mask,
        "position_ids": torch.arange(CACHED, CACHED + TOKENS)[None].expand(ROWS, -1).contiguous(),
        "past_key_values": _cache(llm, ROWS, CACHED),
        "use_cache": True,
        "logits_to_keep": 1,
    }
    return inputs, OnnxConfig(dynamic=True, quantizer=_quantizer(int8))


@torch.no_grad()
def _cache(llm: CausalLM, rows: int, tokens: int) -> Any:
    cache = DynamicCache(config=llm.config)
    llm.base_model(
        inputs_embeds=torch.zeros(rows, tokens, llm.config.get_text_config().hidden_size),
        past_key_values=cache,
        use_cache=True,
    )
    return cache


def _quantizer(int8: bool) -> Any:
    if not int8:
        return None
    from transformers.exporters.quantizers.quantizer_onnxruntime import (
        OnnxRuntimeDynamicConfig,
        OnnxRuntimeQuantizer,
    )

    return OnnxRuntimeQuantizer(
        OnnxRuntimeDynamicConfig(op_types_to_quantize=["MatMul", "Gemm"], per_channel=True)
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence what the exporter prints about itself, its versions and torchvision."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(None):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)

"""Tiny checkpoints with random weights of every row of ENCODERS, written as their libraries write them."""

import argparse
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    ParakeetEncoder,
    ParakeetEncoderConfig,
    ParakeetFeatureExtractor,
    SeamlessM4TFeatureExtractor,
    Wav2Vec2BertConfig,
    Wav2Vec2BertModel,
    Wav2Vec2ConformerConfig,
    Wav2Vec2ConformerModel,
    Wav2Vec2FeatureExtractor,
    WhisperConfig,
    WhisperFeatureExtractor,
)
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from steermoe.config import Encoder
from steermoe.models import encoders
from steermoe.models.encoders.firered_convert import convert

SAMPLES = (9_000, 24_001, 3_333, 16_000)  # of the utterances of a batch
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}
FIRERED = {"idim": 80, "d_model": 32, "n_layers_enc": 3, "n_head": 2, "kernel_size": 7, "pe_maxlen": 100}


def batch(encoder: encoders.Encoder, waveforms: list[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    """Features padded with what no encoder may hear, and their lengths."""
    rows = [encoder.features(samples).T for samples in waveforms]
    padded = pad_sequence(rows, batch_first=True, padding_value=3.0).transpose(1, 2)
    return padded, torch.tensor([len(row) for row in rows])


def shaken(model: nn.Module) -> Any:
    """Weights, biases and statistics of norms at values that all matter."""
    generator = torch.Generator().manual_seed(7)
    for name, tensor in model.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 2.0, generator=generator)
        elif tensor.is_floating_point() and "pe" not in name.split(".") and "inv_freq" not in name:
            tensor.add_(torch.randn(tensor.shape, generator=generator), alpha=0.1)
    return model.eval()


def whisper(folder: Path, num_mel_bins: int) -> None:
    sizes = WhisperConfig(
        d_model=32, encoder_layers=3, encoder_attention_heads=2, encoder_ffn_dim=64, init_std=0.2,
        num_mel_bins=num_mel_bins, max_source_positions=200,
    )  # fmt: skip
    shaken(WhisperEncoder(sizes)).save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=num_mel_bins, chunk_length=4).save_pretrained(folder)


def wav2vec2_conformer(folder: Path, do_normalize: bool = True, **options: Any) -> None:
    sizes = Wav2Vec2ConformerConfig(**SIZES, conv_dim=[16] * 7, num_conv_pos_embedding_groups=4, **options)
    shaken(Wav2Vec2ConformerModel(sizes)).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(do_normalize=do_normalize).save_pretrained(folder)


def w2v_bert(folder: Path, **options: Any) -> None:
    shaken(Wav2Vec2BertModel(Wav2Vec2BertConfig(**SIZES, **options))).save_pretrained(folder)
    SeamlessM4TFeatureExtractor().save_pretrained(folder)


def parakeet(folder: Path, num_mel_bins: int, **options: Any) -> None:
    sizes = ParakeetEncoderConfig(**SIZES, num_mel_bins=num_mel_bins, subsampling_conv_channels=8, **options)
    shaken(ParakeetEncoder(sizes)).save_pretrained(folder)
    ParakeetFeatureExtractor(feature_size=num_mel_bins).save_pretrained(folder)


def firered_weights(seed: int = 3) -> dict[str, torch.Tensor]:
    """Random weights under the names of FireRedASR's own state dict, those of a decoder too."""
    generator = torch.Generator().manual_seed(seed)
    width, heads, kernel = FIRERED["d_model"], FIRERED["n_head"], FIRERED["kernel_size"]
    shapes: dict[str, tuple[int, ...]] = {
        "input_preprocessor.conv.0.weight": (32, 1, 3, 3),
        "input_preprocessor.conv.0.bias": (32,),
        "input_preprocessor.conv.2.weight": (32, 32, 3, 3),
        "input_preprocessor.conv.2.bias": (32,),
        "input_preprocessor.out.weight": (width, 32 * 19),
        "input_preprocessor.out.bias": (width,),
        "positional_encoding.pe": (1, 2 * FIRERED["pe_maxlen"] - 1, width),
    }
    for layer in range(FIRERED["n_layers_enc"]):
        block = {
            "mhsa.pos_bias_u": (heads, width // heads),
            "mhsa.pos_bias_v": (heads, width // heads),
            "conv.pointwise_conv1.weight": (4 * width, width, 1),
            "conv.depthwise_conv.weight": (2 * width, 1, kernel),
            "conv.pointwise_conv2.weight": (width, 2 * width, 1),
        }
        for name in ("w_qs", "w_ks", "w_vs", "fc", "linear_pos"):
            block[f"mhsa.{name}.weight"] = (width, width)
        norms = ["mhsa.layer_norm_q", "mhsa.layer_norm_k", "mhsa.layer_norm_v", "conv.pre_layer_norm"]
        for name in [*norms, "layer_norm", "ffn1.net.0", "ffn2.net.0"]:
            block |= {f"{name}.weight": (width,), f"{name}.bias": (width,)}
        block |= {"conv.batch_norm.weight": (2 * width,), "conv.batch_norm.bias": (2 * width,)}
        for name in ("ffn1", "ffn2"):
            block |= {f"{name}.net.1.weight": (4 * width, width), f"{name}.net.1.bias": (4 * width,)}
            block |= {f"{name}.net.4.weight": (width, 4 * width), f"{name}.net.4.bias": (width,)}
        shapes |= {f"layer_stack.{layer}.{name}": shape for name, shape in block.items()}
    weights = {}
    for name, shape in shapes.items():
        scale = 0.3 if len(shape) < 2 else 1 / np.sqrt(np.prod(shape[1:]))
        offset = float(len(shape) == 1 and name.endswith("weight"))  # norms scale by about 1
        weights[f"encoder.{name}"] = torch.randn(shape, generator=generator) * scale + offset
    return weights | {"decoder.tgt_word_emb.weight": torch.zeros(4, width)}


def cmvn_ark(mean: np.ndarray, std: np.ndarray, frames: int = 1000) -> bytes:
    """Kaldi's accumulated statistics of features with this mean and standard deviation."""
    sums = np.zeros((2, len(mean) + 1))
    sums[0, :-1], sums[0, -1] = mean * frames, frames
    sums[1, :-1] = (std**2 + mean**2) * frames
    return b"\0BDM " + struct.pack("<bibi", 4, 2, 4, len(mean) + 1) + sums.astype("<f8").tobytes()


@pytest.fixture(scope="session")
def save_firered() -> Callable[..., Path]:
    """`save_firered(folder, **changes)`: a checkpoint as FireRedASR publishes it, its parts changed."""

    def save(folder: Path, **changes: Any) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        package = {"args": argparse.Namespace(**FIRERED, d_inner=128), "model_state_dict": firered_weights()}
        torch.save(package | changes, folder / "model.pth.tar")
        mean, std = np.linspace(8.0, 14.0, 80), np.linspace(2.0, 4.0, 80)
        (folder / "cmvn.ark").write_bytes(cmvn_ark(mean, std))
        return folder

    return save


CHECKPOINTS: dict[str, Callable[[Path], None]] = {
    "whisper": lambda folder: whisper(folder, num_mel_bins=80),
    "whisper 128": lambda folder: whisper(folder, num_mel_bins=128),
    "wav2vec2-conformer": lambda folder: wav2vec2_conformer(
        folder, feat_extract_norm="layer", conv_bias=True
    ),
    "wav2vec2-conformer rotary": lambda folder: wav2vec2_conformer(
        folder, feat_extract_norm="group", position_embeddings_type="rotary", do_normalize=False
    ),
    "w2v-bert": lambda folder: w2v_bert(folder),
    "w2v-bert relative": lambda folder: w2v_bert(folder, position_embeddings_type="relative"),
    "parakeet": lambda folder: parakeet(folder, num_mel_bins=80),
    "parakeet 128": lambda folder: parakeet(
        folder, num_mel_bins=128, subsampling_factor=4, attention_bias=False, scale_input=False
    ),
    "firered": lambda folder: folder.rmdir(),
}


@pytest.fixture(scope="session")
def section(
    tmp_path_factory: pytest.TempPathFactory, save_firered: Callable[..., Path]
) -> Callable[..., Encoder]:
    """`section(checkpoint, dtype, window, layers)`: the configuration of an encoder over a row of CHECKPOINTS."""
    folders: dict[str, Path] = {}

    def make(
        checkpoint: str, dtype: str = "float32", window: str = "unpadded", layers: str | int = "all"
    ) -> Encoder:
        name = checkpoint.split()[0]
        if checkpoint not in folders:
            folder = tmp_path_factory.mktemp(name)
            torch.manual_seed(11)
            CHECKPOINTS[checkpoint](folder)
            if name == "firered":
                convert(save_firered(folder.with_name(f"{folder.name}-source")), folder)
            folders[checkpoint] = folder
        values = {
            "name": name,
            "path": str(folders[checkpoint]),
            "revision": None,
            "dtype": dtype,
            "window": window,
            "layers": layers,
        }
        return Encoder.model_validate(values)

    return make


@pytest.fixture(scope="session")
def speech() -> Callable[[int, int], np.ndarray]:
    """`speech(samples, seed)`: a chirp that swells, in noise."""

    def make(samples: int, seed: int) -> np.ndarray:
        time = np.arange(samples) / 16_000
        noise = np.random.default_rng(seed).standard_normal(samples)
        chirp = np.sin(2 * np.pi * (200 + 150 * seed + 700 * time) * time) * np.minimum(1, 0.1 + time)
        return (0.2 * chirp + 0.02 * noise).astype(np.float32)

    return make

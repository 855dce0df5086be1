"""Encoders of speech, and of video. A new one is an `Encoder` subclass and a row here."""

import importlib
from typing import Any

from steermoe import config
from steermoe.hub import located
from steermoe.models.encoders.encoder import Encoder
from steermoe.models.pretrained import keep_layers


def load_encoder(section: config.Encoder, local_files_only: bool = False) -> Encoder:
    """Load the frozen encoder that the section names, with its first `layers` layers, in evaluation mode.

    Raises:
        ValueError: its weights cannot be loaded, or a setting does not suit it.
    """
    encoder = _loaded(ENCODERS, section, "encoder", local_files_only)
    keep_layers(encoder.layers, section.layers, "encoder")
    return encoder


def load_video_encoder(section: config.VideoEncoder, local_files_only: bool = False) -> Encoder:
    """Load the frozen video encoder that the section names, in evaluation mode; errors as `load_encoder`."""
    return _loaded(VIDEO_ENCODERS, section, "video.encoder", local_files_only)


def _loaded(rows: dict[str, str], section: Any, setting: str, local_files_only: bool) -> Encoder:
    module, kind = rows[section.name].split(":")
    return getattr(importlib.import_module(module), kind)(located(section, setting, local_files_only)).eval()


# `module:class`, imported when it is selected: each imports its own modelling code of transformers.
ENCODERS = {
    "whisper": "steermoe.models.encoders.whisper:Whisper",
    "wav2vec2-conformer": "steermoe.models.encoders.conformers:Wav2Vec2Conformer",
    "w2v-bert": "steermoe.models.encoders.conformers:W2vBert",
    "parakeet": "steermoe.models.encoders.conformers:Parakeet",
    "firered": "steermoe.models.encoders.firered:FireRed",
}
VIDEO_ENCODERS = {"vit": "steermoe.models.encoders.vit:ViT"}

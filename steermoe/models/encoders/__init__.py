"""Encoders of speech, and of video. A new one is a file with an `Encoder` subclass and a row here."""

import importlib

from steermoe import config
from steermoe.hub import located
from steermoe.models.encoders.encoder import Encoder
from steermoe.models.frozen import keep_layers
from steermoe.registry import choose


def load_encoder(section: config.Encoder) -> Encoder:
    """The frozen encoder that the section names, with so many of its layers, in evaluation mode.

    Raises:
        ValueError: there is no such encoder, its weights cannot be loaded, or a setting does not fit it.
    """
    module, kind = choose(ENCODERS, section.name, "encoder.name").split(":")
    encoder = getattr(importlib.import_module(module), kind)(located(section, "encoder")).eval()
    keep_layers(encoder.layers, section.layers, "encoder")
    return encoder


def load_video_encoder(section: config.VideoEncoder) -> Encoder:
    """The frozen video encoder that the section names, in evaluation mode.

    Raises:
        ValueError: as `load_encoder`.
    """
    module, kind = choose(VIDEO_ENCODERS, section.name, "video.encoder.name").split(":")
    return getattr(importlib.import_module(module), kind)(located(section, "video.encoder")).eval()


# `module:class`, imported when it is chosen: each brings in its own modelling code of transformers.
ENCODERS = {
    "whisper": "steermoe.models.encoders.whisper:Whisper",
    "wav2vec2-conformer": "steermoe.models.encoders.wav2vec2_conformer:Wav2Vec2Conformer",
    "w2v-bert": "steermoe.models.encoders.w2v_bert:W2vBert",
    "parakeet": "steermoe.models.encoders.parakeet:Parakeet",
    "firered": "steermoe.models.encoders.firered:FireRed",
}
VIDEO_ENCODERS = {
    "vit": "steermoe.models.encoders.vit:ViT",
}

"""The sections of the model: frozen encoders and LLM, steering, low-rank adapters, projector, prompts.

The names of the registries stand here as well, so that a configuration is checked without importing torch; a test
compares them with the registries in `steermoe.models`.
"""

import re
import string
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

from pydantic import PlainValidator

from steermoe.config.errors import illegal
from steermoe.config.section import (
    AtLeast2,
    Count,
    Depth,
    Dtype,
    NotNegative,
    Positive,
    Revision,
    Rows,
    Section,
    Share,
    SomeNames,
    Text,
    checked,
    name_in,
    pinned_as,
    whole,
)

ENCODERS = ("whisper", "wav2vec2-conformer", "w2v-bert", "parakeet", "firered")
VIDEO_ENCODERS = ("vit",)
QUANTIZATIONS = ("none", "int8", "nf4")
DOWNSAMPLERS = ("average", "max", "concat", "conv", "none")
ROUTERS: dict[str, tuple[str, ...]] = {  # with the options that only they have
    "shared": (),
    "mixed": (),
    "hierarchical": ("groups",),
    "progressive": ("stages",),
    "static": (),
}
PROJECTIONS: dict[str, tuple[str, ...]] = {
    "linear": (),
    "mlp": ("width",),
    "feature_space": ("width", "heads"),
    "modality_steering": ("experts",),
    "adapter_attention": ("width", "heads"),
}
EXPERTS = "a whole number >= 2 (for one expert: router static), or a list with one for each steered place"
LAYERS = "all, none, every-K (K >= 2), first-K, last-K, or a list of different layer numbers >= 0"


def _are_experts(value: Any) -> bool:
    counts = value if isinstance(value, list) else [value]
    return bool(counts) and all(whole(count, 2) for count in counts)


def _are_layers(value: Any) -> bool:
    if isinstance(value, list):
        return bool(value) and all(whole(number, 0) for number in value) and len(set(value)) == len(value)
    return bool(re.fullmatch(r"all|none|every-([2-9]|[1-9]\d+)|(first|last)-[1-9]\d*", str(value)))


def _options(section: Section, rows: dict[str, tuple[str, ...]], key: str) -> Iterator[tuple[str, str]]:
    """Yield the options that are set although the chosen row does not have them, or not set although it has."""
    chosen = getattr(section, key)
    for option in dict.fromkeys(name for options in rows.values() for name in options):
        users, value = [row for row, options in rows.items() if option in options], getattr(section, option)
        if (value is not None) != (chosen in users):
            allowed = "null" if value is not None else "a number"
            yield option, f"{allowed} with {key} {chosen}; only {', '.join(users)} have it"


class Encoder(Section):
    """The frozen speech encoder: a row of ENCODERS, and where its weights are (docs/base-models.md)."""

    name: Annotated[str, name_in(ENCODERS)]
    path: Text
    revision: Revision | None
    dtype: Dtype
    window: Literal["unpadded", "full"]
    layers: Depth

    def _rules(self) -> Iterator[tuple[str, str]]:
        yield from pinned_as(self.path, self.revision)


class VideoEncoder(Section):
    """The frozen encoder of frames: a row of VIDEO_ENCODERS, and a folder or hub id of its weights."""

    window: ClassVar = "unpadded"  # a video has as many frames as it has
    name: Annotated[str, name_in(VIDEO_ENCODERS)]
    path: Text
    revision: Revision | None
    dtype: Dtype

    def _rules(self) -> Iterator[tuple[str, str]]:
        yield from pinned_as(self.path, self.revision)


class Llm(Section):
    """The frozen LLM: where its weights are (docs/base-models.md), and their form in memory."""

    path: Text
    revision: Revision | None
    dtype: Dtype
    quantization: Annotated[str, name_in(QUANTIZATIONS)]
    layers: Depth

    def _rules(self) -> Iterator[tuple[str, str]]:
        yield from pinned_as(self.path, self.revision)


class Steering(Section):
    """What method `steering` adds to the encoder."""

    num_experts: Annotated[int | list[int], checked(EXPERTS, _are_experts)]
    router: Annotated[str, name_in(ROUTERS)]
    groups: AtLeast2 | None
    stages: AtLeast2 | None
    layers: Annotated[str | list[int], checked(LAYERS, _are_layers)]
    post_encoder: bool
    hook_point: Literal["output", "attention"]
    scale: Literal["learned", "fixed", "none"]
    scale_init: NotNegative | None
    vector_std: NotNegative
    temperature: Positive
    top_k: AtLeast2 | None
    gate_dropout: Share
    router_aux_loss_coef: NotNegative
    router_z_loss_coef: NotNegative

    def _rules(self) -> Iterator[tuple[str, str]]:
        experts = [self.num_experts] if isinstance(self.num_experts, int) else self.num_experts
        yield from _options(self, ROUTERS, "router")
        for key in ("groups", "stages"):
            parts = getattr(self, key)
            if parts and any(count % parts or count == parts for count in experts):
                yield key, f"a number that divides steering.num_experts ({experts}) and is smaller"
        if self.layers == "none" and not self.post_encoder:
            yield "post_encoder", "true where steering.layers is none"
        if self.layers == "none" and self.hook_point != "output":
            yield "hook_point", "output where steering.layers is none"
        if self.scale == "none" and self.scale_init is not None:
            yield "scale_init", "null where steering.scale is none"
        if self.scale == "learned" and self.scale_init is None:
            yield "scale_init", "a number >= 0 where steering.scale is learned"
        if self.scale == "fixed" and not self.scale_init:
            yield "scale_init", "a number > 0 where steering.scale is fixed"
        if self.vector_std == self.scale_init == 0:
            yield "vector_std", "a number > 0 where scale_init is 0, else no gradient reaches either"
        if self.top_k and self.top_k >= min(experts):
            yield "top_k", f"null, or a number below steering.num_experts ({min(experts)})"
        if self.router_z_loss_coef and self.router in ("hierarchical", "progressive"):
            yield "router_z_loss_coef", f"0 with router {self.router}, whose logits are normalised already"


class Lora(Section):
    """Low-rank adapters: `lora` in the encoder, `llm_lora` in the LLM."""

    rank: Count
    alpha: Count
    dropout: Share
    targets: SomeNames


class Projector(Section):
    """From the encoder's output to the LLM's embeddings: down-sampling and projection."""

    downsample: Annotated[str, name_in(DOWNSAMPLERS)]
    downsample_factor: Count
    downsample_after_layer: Rows | None
    projection: Annotated[str, name_in(PROJECTIONS)]
    width: Count | None
    heads: Count | None
    experts: AtLeast2 | None

    def _rules(self) -> Iterator[tuple[str, str]]:
        if self.downsample == "none" and self.downsample_factor != 1:
            yield "downsample_factor", "1 where projector.downsample is none"
        if self.downsample == "none" and self.downsample_after_layer is not None:
            yield "downsample_after_layer", "null where projector.downsample is none"
        yield from _options(self, PROJECTIONS, "projection")


class Video(Section):
    """What the LLM reads before the audio. Without `steering` the video encoder is not steered."""

    encoder: VideoEncoder
    steering: Steering | None
    projector: Projector

    def _rules(self) -> Iterator[tuple[str, str, Any]]:
        layer = self.projector.downsample_after_layer
        if layer is not None:
            found = {"downsample_after_layer": layer}
            yield "projector", "null: the layers of a video encoder need whole frames", found


def _template(fields: int) -> PlainValidator:
    """Return a validator of prompts that contain `{question}` `fields` times."""

    def check(template: Any) -> str:
        try:
            parsed = list(string.Formatter().parse(template)) if template else [("", "", "", "")]
        except (TypeError, ValueError):
            parsed = [("", "", "", "")]
        if [tuple(parts) for _, *parts in parsed if parts[0] is not None] != [
            ("question", "", None)
        ] * fields:
            raise illegal(
                "text with {question} in it, once" if fields else "text that is not empty, without { and }"
            )
        return template

    return PlainValidator(check)


Prompt = Annotated[str, _template(0)]


class Prompts(Section):
    """What the LLM reads around the audio: its format, and for each task the text between audio and answer."""

    format: Literal["plain", "chat"]
    system: Text | None
    transcribe: Prompt
    answer: Annotated[str, _template(1)]
    caption: Prompt
    summarize: Prompt
    emotion: Prompt

    def _rules(self) -> Iterator[tuple[str, str]]:
        if self.system is not None and self.format == "plain":
            yield "system", "null, as prompts.format is plain"

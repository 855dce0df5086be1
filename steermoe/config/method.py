"""The sections about the method: steering, low-rank adapters, and the projector to the LLM."""

import re
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from steermoe.config.problems import illegal
from steermoe.config.sections import Count, Positive, Rows, Section, SomeNames, row_of

Parts = Annotated[int, Field(ge=2)]
EXPERTS = "a whole number >= 2 (fewer choices: router static), or a list with one for each steered place"
LAYERS = "all, none, every-K (K >= 2), first-K, last-K, or a list of different layer numbers >= 0"


def _list(experts: int | list[int]) -> list[int]:
    return [experts] if isinstance(experts, int) else experts


class Steering(Section):
    """What method `steering` adds to the encoder."""

    num_experts: int | list[int] = Field(description=EXPERTS)
    router: Annotated[str, row_of("models/routers.py", "ROUTERS")]
    groups: Parts | None
    stages: Parts | None
    layers: str | list[int] = Field(description=LAYERS)
    post_encoder: bool
    hook_point: Literal["output", "attention"]
    scale: Literal["learned", "fixed", "none"]
    scale_init: Annotated[float, Field(ge=0)] | None
    vector_std: Annotated[float, Field(ge=0)]
    temperature: Positive
    top_k: Parts | None
    gate_dropout: Annotated[float, Field(ge=0, lt=1)]
    router_aux_loss_coef: Annotated[float, Field(ge=0)]
    router_z_loss_coef: Annotated[float, Field(ge=0)]

    @field_validator("num_experts", mode="plain")
    @classmethod
    def _choices(cls, experts: Any) -> Any:
        counts = experts if isinstance(experts, list) else [experts]
        if not counts or not all(type(count) is int and count >= 2 for count in counts):
            raise illegal(EXPERTS)
        return experts

    @field_validator("groups", "stages")
    @classmethod
    def _of_the_router(cls, parts: int | None, info: ValidationInfo) -> int | None:
        router, experts = info.data.get("router"), _list(info.data.get("num_experts", []))
        owner = {"groups": "hierarchical", "stages": "progressive"}[str(info.field_name)]
        if router is not None and (parts is not None) != (router == owner):
            raise illegal(
                "null, as only router " + owner + " has it" if parts else f"a number >= 2 for {owner}"
            )
        if parts and any(count % parts or count == parts for count in experts):
            raise illegal(f"a number that divides steering.num_experts ({experts}) and is smaller")
        return parts

    @field_validator("layers", mode="plain")
    @classmethod
    def _which_layers(cls, layers: Any) -> Any:
        if isinstance(layers, list):
            whole = all(type(number) is int and number >= 0 for number in layers)
            legal = layers and whole and len(set(layers)) == len(layers)
        else:
            legal = re.fullmatch(r"all|none|every-([2-9]|[1-9]\d+)|(first|last)-[1-9]\d*", str(layers))
        if not legal:
            raise illegal(LAYERS)
        return layers

    @field_validator("post_encoder")
    @classmethod
    def _somewhere(cls, post: bool, info: ValidationInfo) -> bool:
        if not post and info.data.get("layers") == "none":
            raise illegal("true where steering.layers is none")
        return post

    @field_validator("hook_point")
    @classmethod
    def _inside_layers(cls, hook_point: str, info: ValidationInfo) -> str:
        if hook_point != "output" and info.data.get("layers") == "none":
            raise illegal("output where steering.layers is none")
        return hook_point

    @field_validator("scale_init")
    @classmethod
    def _of_the_scale(cls, start: float | None, info: ValidationInfo) -> float | None:
        kind = info.data.get("scale")
        if kind == "none" and start is not None:
            raise illegal("null where steering.scale is none")
        if (kind == "learned" and start is None) or (kind == "fixed" and not start):
            raise illegal(f"a number {'>=' if kind == 'learned' else '>'} 0 where steering.scale is {kind}")
        return start

    @field_validator("vector_std")
    @classmethod
    def _can_learn(cls, std: float, info: ValidationInfo) -> float:
        if std == info.data.get("scale_init") == 0:
            raise illegal("a number > 0 where scale_init is 0, else no gradient reaches either")
        return std

    @field_validator("top_k")
    @classmethod
    def _leaves_out(cls, count: int | None, info: ValidationInfo) -> int | None:
        fewest = min(_list(info.data.get("num_experts", [])), default=0)
        if count and fewest and count >= fewest:
            raise illegal(f"null, or a number below steering.num_experts ({fewest})")
        return count

    @field_validator("router_z_loss_coef")
    @classmethod
    def _has_logits(cls, weight: float, info: ValidationInfo) -> float:
        if weight and info.data.get("router") in ("hierarchical", "progressive"):
            raise illegal(f"0 with router {info.data['router']}, whose logits are normalised already")
        return weight


class Lora(Section):
    """Low-rank adapters: `lora` in the encoder, `llm_lora` in the LLM."""

    rank: Count
    alpha: Count
    dropout: Annotated[float, Field(ge=0, lt=1)]
    targets: SomeNames


class Projector(Section):
    """From the encoder's output to the LLM's embeddings."""

    downsample: Annotated[str, row_of("models/downsample.py", "DOWNSAMPLERS")]
    downsample_factor: Count
    downsample_after_layer: Rows | None
    projection: Annotated[str, row_of("models/projectors.py", "PROJECTIONS")]
    width: Count | None
    heads: Count | None
    experts: Parts | None

    @field_validator("downsample_factor")
    @classmethod
    def _has_windows(cls, factor: int, info: ValidationInfo) -> int:
        if factor != 1 and info.data.get("downsample") == "none":
            raise illegal("1 where projector.downsample is none")
        return factor

    @field_validator("downsample_after_layer")
    @classmethod
    def _shortens(cls, layer: int | None, info: ValidationInfo) -> int | None:
        if layer is not None and info.data.get("downsample") == "none":
            raise illegal("null where projector.downsample is none")
        return layer

    @field_validator("width", "heads", "experts")
    @classmethod
    def _of_the_projection(cls, value: int | None, info: ValidationInfo) -> int | None:
        projection, name = info.data.get("projection"), str(info.field_name)
        users = [row for row, options in PROJECTION_OPTIONS.items() if name in options]
        if projection is not None and (value is not None) != (projection in users):
            needed = (
                f"null with projection {projection}" if value else f"a number with projection {projection}"
            )
            raise illegal(f"{needed}; only {', '.join(users)} have it")
        return value


# The options that rows of PROJECTIONS take; rows that are not here take none.
PROJECTION_OPTIONS = {
    "mlp": ("width",),
    "feature_space": ("width", "heads"),
    "modality_steering": ("experts",),
    "adapter_attention": ("width", "heads"),
}

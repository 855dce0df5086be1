"""What a training begins with: the weights of a trained adapter, where `training.init_from` names one."""

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from steermoe.distributed import world
from steermoe.hub import adapter_folder
from steermoe.models import checkpoint as adapter
from steermoe.models.steermoe import SteerMoE

SETTING = "training.init_from"
SECTIONS = ("projector", "steering", "lora", "llm_lora", "video")
# What concerns training alone, or where a model lies: it may differ between an adapter and the variant.
FREE = {
    "vector_std",
    "gate_dropout",
    "router_aux_loss_coef",
    "router_z_loss_coef",
    "dropout",
    "path",
    "revision",
}


def begin_with(model: SteerMoE, frozen: Mapping[str, str]) -> None:
    """Give the parts of `model` the weights that the adapter of `training.init_from` has for them.

    An adapter may have some of the parts only: that of method linear has the projection, for a variant of any method.

    Args:
        model: built from a variant.
        frozen: its `frozen_hashes`.

    Raises:
        ValueError: the adapter cannot be read, was trained over other base models, has a part that the variant lacks, or
            one of another shape or kind.
    """
    source = model.config.training.init_from
    if source is None:
        return
    try:
        saved = adapter.read(adapter_folder(source))
    except ValueError as error:
        raise ValueError(f"{SETTING}: {error}") from error
    if problems := list(_differences(model, saved, frozen)):
        raise ValueError(
            f"{SETTING}: found {source!r}, which does not fit the variant: {'; '.join(problems[:5])}"
        )
    expected = model.trainable_state_dict()
    kept = {name: tensor for name, tensor in expected.items() if name in saved.weights}
    adapter.check_weights(saved.weights, kept, f"{SETTING}: {source}")
    model.load_state_dict(dict(saved.weights), strict=False)  # all names were checked
    if not world().rank:
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        fresh = [
            part
            for part, parameters in model.parameter_groups().items()
            if any(names[id(parameter)] not in kept for parameter in parameters)
        ]
        loaded = [part for part in model.parameter_groups() if part not in fresh]
        print(
            f"{model.config.name}: begins with {source}: {', '.join(loaded)}; untrained: "
            f"{', '.join(fresh) or 'nothing'}"
        )


def _differences(model: SteerMoE, saved: adapter.Adapter, frozen: Mapping[str, str]) -> Iterator[str]:
    """What of an adapter is not as the variant has it."""
    for section in SECTIONS:
        own, wanted = _values(getattr(saved.variant, section)), _values(getattr(model.config, section))
        if own and not wanted:
            yield f"it has {section}, the variant (method {model.config.method}) has none"
        elif own:
            for key in sorted(own.keys() | wanted.keys()):
                if own.get(key) != wanted.get(key):
                    yield f"{section}.{key}: it has {own.get(key)!r}, the variant {wanted.get(key)!r}"
    for part, digest in saved.frozen.items():
        if part in frozen and frozen[part] != digest:
            yield (
                f"it was trained over another {part}: weights of SHA-256 {digest}, the variant's have {frozen[part]} "
                f"({part}.path, {part}.dtype and {part}.layers decide them)"
            )


def _values(section: Any, prefix: str = "") -> dict[str, Any]:
    """The single values of a section that decide what its weights do, by dotted name; {} of none."""
    found: dict[str, Any] = {}
    for name in type(section).model_fields if section is not None else ():
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            found |= _values(value, f"{prefix}{name}.")
        elif name not in FREE:
            found[f"{prefix}{name}"] = value
    return found

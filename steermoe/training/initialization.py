"""Initial weights from a trained adapter, where `training.init_from` names one."""

from collections.abc import Iterator, Mapping
from typing import Any

from steermoe.distributed import world
from steermoe.hub import adapter_folder
from steermoe.models import checkpoint as adapter
from steermoe.models.steermoe import SteerMoE

SETTING = "training.init_from"
SECTIONS = ("projector", "steering", "lora", "llm_lora", "video")
# These concern training alone, or where a model is stored: they may differ between an adapter and the variant.
FREE = "vector_std gate_dropout router_aux_loss_coef router_z_loss_coef dropout path revision".split()


def load_initial(model: SteerMoE, frozen: Mapping[str, str]) -> None:
    """Give the parts of `model` the weights that the adapter of `training.init_from` has for them.

    An adapter may have some of the parts only: that of method linear has the projection, for a variant of any method.

    Args:
        model: built from a variant.
        frozen: its `frozen_hashes`.

    Raises:
        ValueError: the adapter cannot be read, was trained over other base models, or has a part that the variant
            lacks or has in another shape or kind.
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
    loaded = {name: tensor for name, tensor in expected.items() if name in saved.weights}
    adapter.check_weights(saved.weights, loaded, f"{SETTING}: {source}")
    model.load_state_dict(dict(saved.weights), strict=False)  # all names were checked
    if not world().rank:
        left = ", ".join(sorted(expected.keys() - loaded.keys())) or "none"
        print(f"{model.config.name}: begins with {len(loaded)} tensors of {source}; untrained: {left}")


def _differences(model: SteerMoE, saved: adapter.Adapter, frozen: Mapping[str, str]) -> Iterator[str]:
    """Yield what of an adapter differs from the variant."""
    own, wanted = saved.variant.model_dump(), model.config.model_dump()
    for section in SECTIONS:
        if own[section] and not wanted[section]:
            yield f"it has {section}, the variant (method {model.config.method}) has none"
        elif own[section]:
            yield from _changes(section, own[section], wanted[section])
    for part, digest in saved.frozen.items():
        if part in frozen and frozen[part] != digest:
            yield (
                f"it was trained over another {part}: weights of SHA-256 {digest}, the variant's have {frozen[part]} "
                f"({part}.path, {part}.dtype and {part}.layers decide them)"
            )


def _changes(name: str, own: Any, wanted: Any) -> Iterator[str]:
    """Yield the values of a section that differ and decide what its weights do."""
    if isinstance(own, dict) and isinstance(wanted, dict):
        for key in sorted(own.keys() - FREE):
            yield from _changes(f"{name}.{key}", own[key], wanted.get(key))
    elif own != wanted:
        yield f"{name}: it has {own!r}, the variant {wanted!r}"

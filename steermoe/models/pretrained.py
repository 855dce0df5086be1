"""Frozen pretrained models: loading, hashing their weights, and sharing them between threads."""

import functools
import hashlib
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeVar

import torch
from torch import Tensor, nn
from transformers.utils import logging

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
QUIET_BYTES = 2**30  # weights below this size load in a second: no progress bar

Depth = int | Literal["all"]
Whole = Callable[[Tensor], AbstractContextManager[Any]]
Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")
# Steering hooks hang on the frozen modules, which models may share, and sampling seeds torch's global generator.
LOCK = threading.RLock()


def exclusive(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Let one thread of the process at a time run the function. Do not decorate generators."""

    @functools.wraps(function)
    def locked(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        with LOCK:
            return function(*args, **kwargs)

    return locked


def load_frozen(kind: Any, path: str, dtype: str, setting: str, **options: Any) -> Any:
    """Load a pretrained module from safetensors, in evaluation mode and without gradients.

    Args:
        kind: a class of transformers with `from_pretrained`.
        path: folder in Hugging Face format, or a hub id.
        dtype: key of DTYPES.
        setting: name of the configuration's section, for errors.
        **options: further arguments of `from_pretrained`.

    Raises:
        ValueError: there is nothing to load at `path`, or its weights do not fit its configuration.
    """
    try:
        with progress(path):
            model, report = kind.from_pretrained(
                path, dtype=DTYPES[dtype], use_safetensors=True, output_loading_info=True, **options
            )
    except OSError as error:
        raise ValueError(
            f"{setting}.path: found {path!r}, which is neither a folder in Hugging Face format with "
            f"safetensors (seen from the working directory) nor a model on the hub: {error}"
        ) from error
    missing = sorted(report["missing_keys"]) + sorted(key for key, *_ in report["mismatched_keys"])
    if missing:
        raise ValueError(
            f"{setting}.path: {path!r} lacks {len(missing)} weights that its config.json calls for, or has "
            f"them in another shape: {', '.join(missing[:5])}...; is it the right folder?"
        )
    return model.requires_grad_(False).eval()


@contextmanager
def progress(path: str) -> Iterator[None]:
    """Hide transformers' progress bars while weights load from a small local folder."""
    local = sum(file.stat().st_size for file in Path(path).glob("*.safetensors"))
    if not 0 < local < QUIET_BYTES or not logging.is_progress_bar_enabled():
        yield
        return
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.enable_progress_bar()


def keep_layers(layers: nn.ModuleList, depth: Depth, setting: str) -> None:
    """Drop all layers but the first `depth`.

    Raises:
        ValueError: there are fewer layers.
    """
    if depth == "all":
        return
    if depth > len(layers):
        raise ValueError(
            f"{setting}.layers: found {depth}, the model has {len(layers)}; legal: all, or 1 to {len(layers)}"
        )
    del layers[depth:]


def load_extractor(kind: Any, path: str, setting: str) -> Any:
    """Load the feature extractor that belongs to pretrained weights.

    Raises:
        ValueError: there is none, or it is of another class than `kind`.
    """
    try:
        settings, _ = kind.get_feature_extractor_dict(path)
    except OSError as error:
        raise ValueError(
            f"{setting}.path: {path!r} lacks preprocessor_config.json, which describes its features: {error}"
        ) from error
    found = settings.get("feature_extractor_type", kind.__name__)
    if found != kind.__name__:
        raise ValueError(f"{setting}.path: {path!r} has a {found}; this encoder needs a {kind.__name__}")
    return kind.from_dict(settings)


def digest(weights: dict[str, Tensor]) -> str:
    """Return the SHA-256 of names, dtypes, shapes and bytes of tensors, whatever their order and device."""
    return list(digests(weights).values())[-1]


def digests(weights: dict[str, Tensor], whole: Whole = nullcontext) -> dict[str, str]:
    """Return, by name, the SHA-256 of each tensor and all tensors before it; the last one is `digest`.

    Args:
        weights: the tensors by name.
        whole: makes a context in which a tensor that is sharded over processes is whole.
    """
    total, found = hashlib.sha256(), {}
    for name in sorted(weights):
        with whole(weights[name]):
            tensor = weights[name].detach().cpu().contiguous()
            total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            total.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
        found[name] = total.hexdigest()
    return found


def frozen_weights(module: nn.Module) -> dict[str, Tensor]:
    """Return weights and persistent buffers that are not trained, each tensor once, by pretrained name.

    peft moves the weights of adapted layers below `base_layer`, a name left out here.
    """
    weights: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in module.state_dict(keep_vars=True).items():
        if not tensor.requires_grad and id(tensor) not in seen:
            seen.add(id(tensor))
            weights[name.replace(".base_layer.", ".")] = tensor
    return weights

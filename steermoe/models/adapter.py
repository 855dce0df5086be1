"""An adapter on disk: adapter.safetensors holds what was trained, config.json tells how to rebuild the rest.

config.json: {"format", "variant": the resolved configuration, "frozen": SHA-256 of the encoder's and the LLM's
weights, "weights": SHA-256 of adapter.safetensors}. The same weights give the same bytes. A merged adapter has its
frozen models beside it, in `encoder/` and `llm/`, and "merged": what it was made of.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi
from safetensors.torch import load, save

from steermoe.atomic_io import write_bytes, write_text
from steermoe.config import ConfigError, VariantConfig
from steermoe.hub import CONFIG, PARTS, WEIGHTS, adapter_folder

FORMAT = 1
CARD = "README.md"
KEYS = {"format", "variant", "frozen", "weights"}
MERGED = "merged"  # a key that only merged adapters have
BESIDE = "./"  # a path that begins so is looked for in the adapter's own folder first


@dataclass(frozen=True)
class Merged:
    """What a merged adapter was made of: the method that trained it, and its base models as they were named."""

    method: str
    encoder: str
    llm: str


@dataclass(frozen=True)
class Adapter:
    """What was trained, with which configuration, and against which frozen weights; `merged`: see there."""

    variant: VariantConfig
    frozen: Mapping[str, str]
    weights: Mapping[str, torch.Tensor]
    merged: Merged | None = None


def write(folder: Path, adapter: Adapter) -> None:
    """Write the two files, each whole; config.json comes last and vouches for the other one."""
    weights = save({name: tensor.detach().cpu().contiguous() for name, tensor in adapter.weights.items()})
    description = {
        "format": FORMAT,
        "variant": json.loads(adapter.variant.to_json()),
        "frozen": dict(adapter.frozen),
        "weights": hashlib.sha256(weights).hexdigest(),
    }
    if adapter.merged is not None:
        description[MERGED] = asdict(adapter.merged)
    write_bytes(folder / WEIGHTS, weights)
    write_text(folder / CONFIG, json.dumps(description, indent=2) + "\n")


def read(source: str | Path) -> Adapter:
    """Read an adapter from a folder or from the hub.

    Raises:
        ValueError: there is none, it is of another format, its configuration is not of this version, or its two
            files do not belong together.
    """
    folder = adapter_folder(source)
    missing = [name for name in (CONFIG, WEIGHTS) if not (folder / name).is_file()]
    if missing:
        raise ValueError(f"{source}: no adapter: {' and '.join(missing)} missing")
    description = _description(folder / CONFIG)
    content = (folder / WEIGHTS).read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if digest != description["weights"]:
        raise ValueError(
            f"{folder / WEIGHTS}: found SHA-256 {digest}, {CONFIG} says {description['weights']}: the file "
            "is damaged or belongs to another training; copy or train the adapter anew"
        )
    merged = description.get(MERGED)
    return Adapter(
        _variant(folder / CONFIG, description["variant"]),
        description["frozen"],
        load(content),
        None if merged is None else Merged(**merged),
    )


def _variant(path: Path, values: Any) -> VariantConfig:
    try:
        return VariantConfig.from_json(json.dumps(values))
    except ConfigError as error:
        advice = "an adapter of another version? add what is missing as params.yaml has it, or train it anew"
        raise ConfigError([f"{path}: {line}; {advice}" for line in error.lines]) from error


def _description(path: Path) -> dict[str, Any]:
    try:
        description = json.loads(path.read_text())
        if set(description) - {MERGED} != KEYS:
            raise ValueError(f"found keys {sorted(description)}, expected {sorted(KEYS)}")
        if MERGED in description:
            Merged(**description[MERGED])
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: not the description of an adapter: {error}") from error
    if description["format"] != FORMAT:
        raise ValueError(
            f"{path}: found format {description['format']!r}, this version reads format {FORMAT}"
        )
    return description


def push(folder: Path, repo_id: str, private: bool = False) -> str:
    """Upload the adapter in `folder` to the hub, making the repository if need be; returns its address.

    With its frozen models where it is merged, with its card where there is one.
    """
    hub = HfApi()
    address = hub.create_repo(repo_id, private=private, exist_ok=True)
    files = [WEIGHTS, CONFIG, CARD, *(f"{part}/*" for part in PARTS)]
    hub.upload_folder(repo_id=repo_id, folder_path=folder, allow_patterns=files)
    return str(address)


def check_weights(
    found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], source: str
) -> None:
    """Both have the same names and shapes.

    Raises:
        ValueError: they differ; the message names the first differences.
    """
    problems = [f"{name} is missing" for name in expected if name not in found]
    problems += [f"{name} is not part of this model" for name in found if name not in expected]
    problems += [
        f"{name}: found shape {tuple(found[name].shape)}, the model needs {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in found and found[name].shape != tensor.shape
    ]
    if problems:
        listed = "; ".join(problems[:5]) + ("; ..." if len(problems) > 5 else "")
        raise ValueError(
            f"{source}: the weights do not fit the model that its configuration describes: {listed}"
        )


def check_frozen(
    found: Mapping[str, str], expected: Mapping[str, str], paths: Mapping[str, str], source: str
) -> None:
    """The frozen weights are those that the adapter was trained against.

    Raises:
        ValueError: they differ; the message names the folder to replace.
    """
    for part, digest in expected.items():
        if found[part] != digest:
            raise ValueError(
                f"{source}: trained against another {part}: the weights in {paths[part]!r} have SHA-256 "
                f"{found[part]}, the adapter's had {digest}; give the right ones as "
                f"from_pretrained(..., {part}=<folder or hub id>)"
            )


def with_frozen(
    variant: VariantConfig, folder: Path, given: Mapping[str, str | Path | None]
) -> VariantConfig:
    """The configuration with the paths where its frozen models are.

    Args:
        variant: of the adapter.
        folder: where the adapter is.
        given: folder or hub id of `encoder`, `llm` and `video`; None: where `find_frozen` finds it.

    Raises:
        ValueError: a video encoder is given to an adapter that has none.
    """
    paths = {
        part: find_frozen(path, folder) if given[part] is None else str(given[part])
        for part, path in frozen_paths(variant).items()
    }
    if given["video"] is not None and variant.video is None:
        raise ValueError(
            f"{folder}: found video encoder {str(given['video'])!r}; the adapter has no video branch: leave it out"
        )
    changes: dict[str, Any] = {
        part: getattr(variant, part).model_copy(update={"path": paths[part]}) for part in ("encoder", "llm")
    }
    if variant.video is not None:
        encoder = variant.video.encoder.model_copy(update={"path": paths["video"]})
        changes["video"] = variant.video.model_copy(update={"encoder": encoder})
    return variant.model_copy(update=changes)


def frozen_paths(variant: VariantConfig) -> dict[str, str]:
    """Where the frozen models are, by part: encoder, llm, and video where there is such a branch."""
    video = {} if variant.video is None else {"video": variant.video.encoder.path}
    return {"encoder": variant.encoder.path, "llm": variant.llm.path} | video


def find_frozen(path: str, folder: Path) -> str:
    """Where a frozen model is.

    A path that begins with `./` is looked for in the adapter's own folder first: merged adapters have theirs there.
    Any path is looked for as it is, else below the first folder above the adapter that has it. So an adapter inside a
    project is found with the base models beside it, whatever the current folder.
    """
    if path.startswith(BESIDE) and (folder / path).is_dir():
        return str(folder / path)
    if Path(path).is_absolute() or Path(path).exists():
        return path
    found = (above / path for above in folder.resolve().parents if (above / path).is_dir())
    return str(next(found, path))

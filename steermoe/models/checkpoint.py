"""An adapter on disk: adapter.safetensors has the trained weights, config.json how to rebuild the rest.

config.json: {"format", "variant": the resolved configuration, "frozen": SHA-256 of the frozen models' weights,
"weights": SHA-256 of adapter.safetensors, "generation": settings for use, "normalizer": of its transcripts}. The same
weights give the same bytes. A merged adapter has its frozen models next to it, in `encoder/` and `llm/`, and "merged":
what it was made from.
"""

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from safetensors.torch import load, save
from torch import Tensor

from steermoe.atomic_io import write_bytes, write_text
from steermoe.config import ConfigError, Generation, VariantConfig
from steermoe.hub import CONFIG, PARTS, WEIGHTS, adapter_folder
from steermoe.models.generation import validated

FORMAT = 1
CARD = "README.md"
KEYS = {"format", "variant", "frozen", "weights"}
OPTIONAL = {"merged", "generation", "normalizer"}  # older adapters lack the last two
ADDED = {"ctc_weight": 0.0}  # keys of `generation` that older adapters lack, with what held for them
BESIDE = "./"  # a path that begins so is searched for in the adapter's own folder first
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Merged:
    """What a merged adapter was made from: the method that trained it, and its base models."""

    method: str
    encoder: str
    llm: str


@dataclass(frozen=True)
class Adapter:
    """Trained weights, their configuration, the hashes of the frozen weights, and the settings for use."""

    variant: VariantConfig
    frozen: Mapping[str, str]
    weights: Mapping[str, Tensor]
    merged: Merged | None = None
    generation: Generation | None = None
    normalizer: str | None = None


def write(folder: Path, adapter: Adapter) -> None:
    """Write the two files, each whole; config.json comes last, with the hash of the other one."""
    weights = save({name: tensor.detach().cpu().contiguous() for name, tensor in adapter.weights.items()})
    description: dict[str, Any] = {
        "format": FORMAT,
        "variant": json.loads(adapter.variant.to_json()),
        "frozen": dict(adapter.frozen),
        "weights": hashlib.sha256(weights).hexdigest(),
    }
    if adapter.merged is not None:
        description["merged"] = asdict(adapter.merged)
    if adapter.generation is not None:
        description["generation"] = adapter.generation.model_dump()
    if adapter.normalizer is not None:
        description["normalizer"] = adapter.normalizer
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
    merged, generation = description.get("merged"), description.get("generation")
    return Adapter(
        _variant(folder / CONFIG, description["variant"]),
        description["frozen"],
        load(content),
        None if merged is None else Merged(**merged),
        None if generation is None else validated(ADDED | generation),
        description.get("normalizer"),
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
        if set(description) - OPTIONAL != KEYS:
            raise ValueError(
                f"found keys {sorted(description)}, expected {sorted(KEYS)}; version 0.2.0 converts an adapter of "
                "version 0.1: load it there, and save it"
            )
        if "merged" in description:
            Merged(**description["merged"])
        if "generation" in description:
            validated(ADDED | description["generation"])
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: not the description of an adapter: {error}") from error
    if description["format"] != FORMAT:
        raise ValueError(
            f"{path}: found format {description['format']!r}, this version reads format {FORMAT}"
        )
    return description


def push(folder: Path, repo_id: str, private: bool = False) -> str:
    """Upload the adapter in `folder` to the hub, creating the repository if needed; return its address.

    Frozen models of a merged adapter and a model card are uploaded with it.
    """
    hub = HfApi()
    address = hub.create_repo(repo_id, private=private, exist_ok=True)
    files = [WEIGHTS, CONFIG, CARD, *(f"{part}/*" for part in PARTS)]
    hub.upload_folder(repo_id=repo_id, folder_path=folder, allow_patterns=files)
    return str(address)


def check_weights(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], source: str) -> None:
    """Raise ValueError, with the first differences, unless both have the same names and shapes."""
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


def check_frozen(found: Mapping[str, str], saved: Adapter, variant: VariantConfig, source: str) -> None:
    """Check that the frozen weights are those that the adapter was trained with.

    Weights that were loaded with another dtype or quantisation cannot be compared: a warning says so.

    Raises:
        ValueError: they differ.
    """
    loaded, trained = sections(variant), sections(saved.variant)
    for part, digest in found.items():
        own, other = loaded[part], trained[part]
        forms = [(each.dtype, getattr(each, "quantization", "none")) for each in (own, other)]
        if forms[0] != forms[1]:
            log.warning(
                "%s: %s is loaded as %s, the adapter was trained with %s: answers may differ, and the weights were "
                "not compared", source, part, *("/".join(form) for form in forms),
            )  # fmt: skip
        elif digest != saved.frozen[part]:
            raise ValueError(
                f"{source}: trained against another {part}: the weights in {own.path!r} have SHA-256 "
                f"{digest}, the adapter's had {saved.frozen[part]}; give the right ones as "
                f"from_pretrained(..., {part}=<folder or hub id>)"
            )


def sections(variant: VariantConfig) -> dict[str, Any]:
    """Return the sections of the frozen models by part: encoder, llm, and video if there is a video tower."""
    video = {} if variant.video is None else {"video": variant.video.encoder}
    return {"encoder": variant.encoder, "llm": variant.llm} | video


def with_frozen(
    variant: VariantConfig,
    folder: Path,
    given: Mapping[str, str | Path | None],
    dtype: str | None = None,
    quantization: str | None = None,
) -> VariantConfig:
    """Return the configuration with the paths, and if given the dtype, by which its frozen models are loaded.

    Args:
        variant: the adapter's.
        folder: the adapter's.
        given: folder or hub id of `encoder`, `llm` and `video`; None: `find_frozen` searches for it.
        dtype: of all frozen models; None: the adapter's.
        quantization: of the LLM; None: the adapter's.

    Raises:
        ValueError: a video encoder is given for an adapter that has none.
    """
    if given["video"] is not None and variant.video is None:
        raise ValueError(
            f"{folder}: found video encoder {str(given['video'])!r}; the adapter has no video tower: leave it out"
        )
    changes: dict[str, Any] = {}
    for part, section in sections(variant).items():
        where: dict[str, Any] = {"path": find_frozen(section.path, folder)}
        if given[part] is not None:
            where = {"path": str(given[part]), "revision": None}
        changes[part] = section.model_copy(update=where | ({"dtype": dtype} if dtype else {}))
    if quantization is not None:
        changes["llm"] = changes["llm"].model_copy(update={"quantization": quantization})
    if variant.video is not None:
        changes["video"] = variant.video.model_copy(update={"encoder": changes["video"]})
    return variant.model_copy(update=changes)


def find_frozen(path: str, folder: Path) -> str:
    """Return where a frozen model is.

    A path that begins with `./` is searched for in the adapter's folder first: merged adapters have theirs there. Any
    path is used as it is if it exists, else below the nearest folder above the adapter that has it, so that an adapter
    inside a project finds the project's base models from any working directory.
    """
    if path.startswith(BESIDE) and (folder / path).is_dir():
        return str(folder / path)
    if Path(path).is_absolute() or Path(path).exists():
        return path
    found = (above / path for above in folder.resolve().parents if (above / path).is_dir())
    return str(next(found, path))

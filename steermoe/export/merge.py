"""Write a merged model: an adapter with its frozen models in one folder, which needs nothing else.

Low-rank adapters are folded into the weights that they adapt. Steering vectors, router and projector stay as they
are: what they add depends on the audio.
"""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers.utils import CONFIG_NAME

from steermoe.atomic_io import new_folder
from steermoe.config import VariantConfig
from steermoe.config.experiments import parts_of
from steermoe.hub import KINDS, PARTS, WEIGHTS, adapter_folder, located
from steermoe.models import checkpoint as adapter
from steermoe.models.pretrained import progress
from steermoe.models.steermoe import SteerMoE

FOLDED = ("lora", "llm_lora")  # ingredients of a method
SHARD = "5GB"  # the most bytes in a file of weights
FEATURES = "preprocessor_config.json"
LICENCES = ("LICENSE*", "LICENCE*", "NOTICE*", "README.md")  # copied with the weights, as licences ask


def write_merged(source: str | Path, folder: Path) -> dict[str, int]:
    """Write a trained adapter with its frozen models, and load it once before it gets its name.

    Args:
        source: a trained adapter, a folder or a repository on the hub.
        folder: output folder, which must not exist.

    Returns:
        Bytes by part: adapter, encoder, llm.

    Raises:
        FileExistsError: the folder exists.
        ValueError: the adapter cannot be loaded, is merged already, has a video branch, or its LLM is quantized.
    """
    own = adapter_folder(source)
    saved = adapter.read(own)
    _check(saved, source)
    with new_folder(folder) as made:
        _write(SteerMoE.from_pretrained(own), saved, made)
        SteerMoE.from_pretrained(made)
    weights = {"adapter": [folder / WEIGHTS]}
    weights |= {part: [*(folder / part).glob("*.safetensors")] for part in PARTS}
    return {part: sum(file.stat().st_size for file in files) for part, files in weights.items()}


def merged_variant(variant: VariantConfig) -> VariantConfig:
    """Return the configuration of a merged adapter: the method without what is folded, frozen models in its folder."""
    kept = [ingredient for ingredient in variant.method.split("+") if ingredient not in FOLDED]
    values = json.loads(variant.to_json()) | dict.fromkeys(FOLDED)
    values["method"] = "+".join(kept) or "linear"
    rates = values["training"]["learning_rates"]
    values["training"]["learning_rates"] = {part: rates[part] for part in parts_of(values["method"])}
    for part in PARTS:
        values[part] |= {"path": f"{adapter.BESIDE}{part}", "revision": None}
    return VariantConfig.from_json(json.dumps(values))


def _check(saved: adapter.Adapter, source: str | Path) -> None:
    if saved.merged is not None:
        raise ValueError(f"{source}: is merged already, and needs nothing else; copy the folder")
    if saved.variant.video is not None:
        raise ValueError(f"{source}: found a video branch; only models of audio alone can be merged")
    quantization = saved.variant.llm.quantization
    if quantization != "none":
        raise ValueError(
            f"{source}: found llm.quantization {quantization!r}; only an LLM that is not quantized can be merged: "
            "use the adapter with its base models, or train one with llm.quantization none"
        )


def _write(model: SteerMoE, saved: adapter.Adapter, folder: Path) -> None:
    bases = {part: Path(located(getattr(model.config, part), part).path) for part in PARTS}
    if any(ingredient in FOLDED for ingredient in saved.variant.method.split("+")):
        from steermoe.models.lora import merge_lora  # here, for peft takes seconds to import

        merge_lora(model.encoder.model)
        merge_lora(model.llm)
    if (
        not torch.cuda.is_available()
    ):  # or DeepSpeed, which transformers imports here, prints that it found none
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    # An encoder is saved under its library's names, not under those of the checkpoint that it came out of.
    _save(model.encoder.model, bases["encoder"], folder / "encoder", save_original_format=False)
    _save(model.llm, bases["llm"], folder / "llm")
    _copy(bases["encoder"], folder / "encoder", FEATURES)
    _copy(bases["llm"], folder / "llm", *(f"*{kind}" for kind in KINDS if kind != ".safetensors"))
    whole = replace(
        saved,
        variant=merged_variant(saved.variant),
        frozen=model.frozen_hashes(),
        weights=model.trainable_state_dict(),
        merged=adapter.Merged(saved.variant.method, saved.variant.encoder.path, saved.variant.llm.path),
    )
    adapter.write(folder, whole)


def _save(model: Any, base: Path, folder: Path, **options: bool) -> None:
    with progress(str(base)):
        model.save_pretrained(folder, max_shard_size=SHARD, **options)
    for file in folder.glob("*.safetensors"):  # safetensors makes files that others cannot read
        shutil.copymode(folder / CONFIG_NAME, file)


def _copy(base: Path, folder: Path, *patterns: str) -> None:
    """Copy a base model's files that match, but for those that were written anew."""
    for file in sorted({file for pattern in (*patterns, *LICENCES) for file in base.glob(pattern)}):
        if not (folder / file.name).exists() and not file.name.endswith(".index.json"):
            shutil.copyfile(file, folder / file.name)

"""What an exact resume needs, on disk: trees of tensors and plain values, in folders written whole.

Nothing is pickled: a tree (nested dicts, lists, tuples) is one safetensors file, its tensors under numbered
names and its structure as JSON in the file's metadata.
"""

import json
import os
import random
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

NAME = re.compile(r"checkpoint-(\d+)")
PARTIAL = "partial"  # folder in which a checkpoint is written before it gets its name


def write_tree(path: Path, tree: Any) -> None:
    """Write nested dicts, lists and tuples of tensors, numbers, strings and None.

    Raises:
        TypeError: the tree holds something else.
    """
    tensors: dict[str, torch.Tensor] = {}
    structure = _encode(tree, tensors)
    save_file(tensors, path, metadata={"tree": json.dumps(structure)})


def read_tree(path: Path) -> Any:
    """The tree that `write_tree` wrote; its tensors are on the CPU."""
    with safe_open(path, framework="pt", device="cpu") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (safe_open is no mapping)
        return _decode(json.loads(file.metadata()["tree"]), tensors)


def _encode(node: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(node, torch.Tensor):
        name = f"{len(tensors):06d}"
        tensors[name] = node.detach().to("cpu", copy=True).contiguous()
        return {"tensor": name}
    if isinstance(node, dict):
        return {"dict": [[_encode(key, tensors), _encode(value, tensors)] for key, value in node.items()]}
    if isinstance(node, list | tuple):
        return {type(node).__name__: [_encode(item, tensors) for item in node]}
    if node is None or isinstance(node, bool | int | float | str):
        return node
    raise TypeError(f"a checkpoint holds tensors and plain values, not {type(node).__name__}")


def _decode(node: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if not isinstance(node, dict):
        return node
    [(kind, content)] = node.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {_decode(key, tensors): _decode(value, tensors) for key, value in content}
    items = [_decode(item, tensors) for item in content]
    return tuple(items) if kind == "tuple" else items


def random_states() -> dict[str, Any]:
    """States of every generator that training may draw from."""
    name, keys, position, has_gauss, cached = np.random.get_state()
    assert isinstance(keys, np.ndarray)  # the tuple form was asked for, by default
    return {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random_states(states: dict[str, Any]) -> None:
    """Set every generator to what `random_states` found."""
    random.setstate(states["python"])
    name, keys, position, has_gauss, cached = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(states["torch"])
    if states["cuda"]:
        torch.cuda.set_rng_state_all(states["cuda"])


def last_checkpoint(run: Path) -> Path | None:
    """The newest checkpoint in the folder of a run. Only whole ones bear the name."""
    found = [(int(match[1]), path) for path in run.iterdir() if (match := NAME.fullmatch(path.name))]
    return max(found)[1] if found else None


def commit_checkpoint(run: Path, step: int) -> None:
    """Give the checkpoint in the partial folder its name at once, then remove the ones that it replaces.

    An older one that is removed only in part does no harm: the newest is taken, and it is whole.
    """
    partial = run / PARTIAL / f"checkpoint-{step}"
    sync(partial)
    partial.rename(run / partial.name)
    sync(run)
    discard_leftovers(run)


def discard_leftovers(run: Path) -> None:
    """Remove what a killed process left: the partial checkpoint and all but the newest whole one."""
    newest = last_checkpoint(run)
    for path in run.iterdir():
        if path.name == PARTIAL or (NAME.fullmatch(path.name) and path != newest):
            shutil.rmtree(path)


def sync(folder: Path) -> None:
    """Bring a folder's names, and the files in it, to the disk."""
    for path in [*(p for p in folder.iterdir() if p.is_file()), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

"""Convert FireRedASR-AED's published checkpoint to safetensors, once and offline.

    python -m steermoe.models.encoders.firered_convert FOLDER OUT

FOLDER has `model.pth.tar` and `cmvn.ark`, as on the hub. The first is a pickle, which could run any code: it is read
with torch's restricted unpickler, which builds tensors, plain containers and an `argparse.Namespace` only. OUT gets
config.json and model.safetensors.
"""

import argparse
import pickle
import struct
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from steermoe.atomic_io import new_folder
from steermoe.models.checkpoint import check_weights
from steermoe.models.encoders.firered import FireRedConfig, FireRedConformer

CHECKPOINT, CMVN = "model.pth.tar", "cmvn.ark"
SIZES = {  # of the checkpoint's Namespace -> of FireRedConfig
    "idim": "num_mel_bins",
    "d_model": "hidden_size",
    "n_layers_enc": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "kernel_size": "conv_kernel_size",
    "pe_maxlen": "max_frames",
}
PREFIX = "encoder."
RENAMED = {".net.0.": ".norm.", ".net.1.": ".expand.", ".net.4.": ".project."}
COMPUTED = "positional_encoding.pe"  # a table of sines
VARIANCE_FLOOR = 1e-20


def convert(source: Path, out: Path) -> None:
    """Write the folder that `FireRed` reads; it appears whole or not at all.

    Args:
        source: folder with model.pth.tar and cmvn.ark.
        out: folder to write.

    Raises:
        FileExistsError: `out` exists.
        ValueError: a file of `source` is missing, must not be unpickled, or is not of a FireRedASR-AED.
    """
    package = read_checkpoint(source / CHECKPOINT)
    settings = FireRedConfig(**_sizes(package, source / CHECKPOINT))
    weights = _encoder_weights(package, source / CHECKPOINT)
    mean, inverse_std = cmvn(source / CMVN)
    weights |= {"cmvn.mean": mean, "cmvn.inverse_std": inverse_std}
    with torch.device("meta"):
        model = FireRedConformer(settings)
    check_weights(weights, model.state_dict(), str(source))
    model.load_state_dict(weights, assign=True)
    with new_folder(out) as made:
        model.save_pretrained(made, max_shard_size="100GB")


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Return the dictionary in a checkpoint, without running anything in it.

    Raises:
        ValueError: there is no such file, or it has more than tensors, containers and a Namespace.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file; the checkpoint's folder has {CHECKPOINT} and {CMVN}")
    mapped = zipfile.is_zipfile(path)  # torch's format since 1.6: weights are read when they are needed
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            package = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise ValueError(
            f"{path}: refused: it is damaged, or a pickle of more than tensors, containers and "
            f"argparse.Namespace, which could run code when it is read: {error}"
        ) from error
    if not isinstance(package, dict) or not {"args", "model_state_dict"} <= set(package):
        found = sorted(map(str, package)) if isinstance(package, dict) else type(package).__name__
        raise ValueError(f"{path}: found {found}, expected a dictionary with args and model_state_dict")
    return package


def cmvn(path: Path) -> tuple[Tensor, Tensor]:
    """Return mean and inverse standard deviation (M,) of the features.

    The file is a binary matrix of Kaldi (2, M + 1): sums and sums of squares, and in the last column the number of
    frames. It consists of `\\0B`, `FM ` or `DM `, the numbers of rows and columns, and values by row.

    Raises:
        ValueError: there is no such file, or it has another content.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file; the checkpoint's folder has {CHECKPOINT} and {CMVN}")
    content = path.read_bytes()
    kind = {b"\0BFM ": np.dtype("<f4"), b"\0BDM ": np.dtype("<f8")}.get(content[:5])
    if kind is None or len(content) < 15:
        raise ValueError(
            f"{path}: found {content[:5]!r}..., expected a binary matrix of Kaldi (\\0BFM, \\0BDM)"
        )
    _, rows, _, columns = struct.unpack("<bibi", content[5:15])
    expected = 15 + rows * columns * kind.itemsize
    if rows < 0 or columns < 0 or len(content) != expected:
        raise ValueError(
            f"{path}: found {len(content)} bytes, expected {expected} of a matrix {rows} x {columns}"
        )
    sums = np.frombuffer(content, kind, offset=15).reshape(rows, columns).astype(np.float64)
    if rows != 2 or columns < 2 or not np.isfinite(sums).all() or not sums[0, -1] >= 1:
        raise ValueError(
            f"{path}: found a matrix {sums.shape}, expected sums and sums of squares of M bands (2, M + 1), "
            "the number of frames in the last column"
        )
    mean = sums[0, :-1] / sums[0, -1]
    variance = np.maximum(sums[1, :-1] / sums[0, -1] - mean**2, VARIANCE_FLOOR)
    return torch.from_numpy(mean).float(), torch.from_numpy(1 / np.sqrt(variance)).float()


def _sizes(package: dict[str, Any], path: Path) -> dict[str, Any]:
    args = vars(package["args"]) if isinstance(package["args"], argparse.Namespace) else {}
    wrong = {name: args.get(name) for name in SIZES if type(args.get(name)) is not int}
    if wrong:
        raise ValueError(f"{path}: args: found {wrong}, expected a whole number for each of these")
    return {ours: args[theirs] for theirs, ours in SIZES.items()}


def _encoder_weights(package: dict[str, Any], path: Path) -> dict[str, Tensor]:
    weights = {}
    for name, tensor in package["model_state_dict"].items():
        if not name.startswith(PREFIX) or name == PREFIX + COMPUTED:
            continue
        if not isinstance(tensor, Tensor):
            raise ValueError(f"{path}: {name}: found {type(tensor).__name__}, expected a tensor")
        for theirs, ours in RENAMED.items():
            name = name.replace(theirs, ours)
        weights[name.removeprefix(PREFIX)] = tensor.float()
    return weights


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description="convert FireRedASR-AED's encoder to safetensors")
    parser.add_argument("source", type=Path, help=f"folder with {CHECKPOINT} and {CMVN}")
    parser.add_argument("out", type=Path, help="folder to write")
    options = parser.parse_args()
    try:
        convert(options.source, options.out)
    except (ValueError, OSError) as error:
        sys.exit(f"firered_convert: {error}")


if __name__ == "__main__":
    main()

"""The outputs of a frozen encoder, computed once for each utterance where nothing before the projector is trained.

An epoch after the first then runs no encoder. To make the result independent of what is in the cache and of the batch,
every utterance is encoded alone and with one thread: with padding, or other threads, sums of floats are rounded
differently. On a CPU several are encoded at a time, one in each thread.

Shapes: B batch, M feature channels, T feature frames, S encoder frames, D encoder width.
"""

import errno
import hashlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch.nn.utils.rnn import pad_sequence

from steermoe.atomic_io import write_bytes
from steermoe.models.attention import ShortAttention
from steermoe.models.encoders.encoder import Encoder
from steermoe.models.pretrained import digest, frozen_weights
from steermoe.models.steermoe import SteerMoE

FOLDER = Path(".runs", "features")


@contextmanager
def feature_cache(model: SteerMoE, root: Path | None, gigabytes: float, processes: int = 1) -> Iterator[None]:
    """Encode every utterance alone and, with a cache, once; nothing changes where gradients enter the encoder.

    Args:
        model: what is trained.
        root: the project's root; the cache is in `.runs/features` below it, for later trainings over the same encoder.
        gigabytes: how large the cache may be; 0 keeps nothing.
        processes: how many train together, each with its share of the free space.
    """
    if not is_frozen(model):
        yield
        return
    cache = None
    if root is not None and gigabytes > 0:
        cache = _Cache(root / FOLDER, _key(model), gigabytes * 1e9, processes)
    model.encode_override = partial(_encode_batch, model.encoder, cache)
    try:
        yield
    finally:
        model.encode_override = None


def is_frozen(model: SteerMoE) -> bool:
    """Return whether nothing that is trained comes before the encoder's output."""
    steered = model.steering is not None and any(
        place.layer is not None for place in model.steering.hook_points
    )
    trained = any(parameter.requires_grad for parameter in model.encoder.parameters())
    return not steered and not trained and model.config.projector.downsample_after_layer is None


def _key(model: SteerMoE) -> str:
    """Return a hash of what decides an encoder's output, features aside."""
    encoder = model.config.encoder
    parts = [digest(frozen_weights(model.encoder.model)), encoder.name, encoder.dtype, encoder.window]
    text = " ".join([*parts, str(model.device.type), torch.__version__])
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@torch.no_grad()
def _encode_batch(
    encoder: Encoder, cache: "_Cache | None", features_BMT: torch.Tensor, lengths_B: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Do what `Encoder.forward` does, row by row."""
    rows = [features_BMT[row : row + 1, :, :n].contiguous() for row, n in enumerate(lengths_B.tolist())]
    names = [_name(row) for row in rows]
    known = {} if cache is None else cache.read(names)
    missing = {name: row for name, row in zip(names, rows, strict=True) if name not in known}
    computed = dict(zip(missing, _encode_rows(encoder, list(missing.values())), strict=True))
    if cache is not None:
        cache.write(computed)
    known |= computed
    hidden = [known[name].to(features_BMT.device) for name in names]
    return pad_sequence(hidden, batch_first=True), encoder.output_lengths(lengths_B)


def _encode_rows(encoder: Encoder, rows: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Return the outputs (S, D) of batches of one, (1, M, T)."""
    if not rows or rows[0].device.type != "cpu":
        return [_encode_row(encoder, row) for row in rows]
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None

    def encode(row: torch.Tensor) -> torch.Tensor:  # modes of the calling thread do not hold in others
        with torch.no_grad(), torch.autocast("cpu", dtype, enabled=dtype is not None), ShortAttention():
            return _encode_row(encoder, row)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # of MKL; that of OpenMP is each thread's own
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(encode, rows))
    finally:
        torch.set_num_threads(threads)


def _encode_row(encoder: Encoder, features_BMT: torch.Tensor) -> torch.Tensor:
    lengths = torch.tensor([features_BMT.shape[2]], device=features_BMT.device)
    return encoder(features_BMT, lengths)[0][0]


def _name(features_BMT: torch.Tensor) -> str:
    """Return the name of an utterance's output: a hash of its features, so that an augmented one is another."""
    kind = features_BMT.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
    return digest({str(dtype): features_BMT})


class _Cache:
    """Tensors by name, in files that are written whole; what cannot be read counts as missing.

    Outputs of other encoders are deleted; a training that is using them computes them again.
    """

    def __init__(self, parent: Path, key: str, limit: float, processes: int) -> None:
        self.path = parent / key
        for other in parent.iterdir() if parent.exists() else ():
            if other != self.path:
                shutil.rmtree(other, ignore_errors=True)
        used = sum(file.stat().st_size for file in self.path.glob("*"))
        self.free = (limit - used) / processes

    def read(self, names: Sequence[str]) -> dict[str, torch.Tensor]:
        found = {}
        for name in names:
            with suppress(FileNotFoundError, SafetensorError):
                found[name] = load((self.path / name).read_bytes())["hidden"]
        return found

    def write(self, outputs: Mapping[str, torch.Tensor]) -> None:
        for name, hidden_SD in outputs.items():
            data = save({"hidden": hidden_SD.cpu().contiguous()})
            if len(data) > self.free:
                continue
            try:
                write_bytes(self.path / name, data)
                self.free -= len(data)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                self.free = 0.0
                print(f"{self.path}: no space left; features that are not cached yet are computed each time")

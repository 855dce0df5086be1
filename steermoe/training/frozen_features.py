"""What a frozen encoder makes of each utterance, computed once where nothing before the projector is trained.

Then an epoch after the first runs no encoder. To make the result independent of whether an utterance was found or
computed, and of what it is batched with, every utterance is encoded alone: with padding beside it, sums of floats
come out in another order. On a CPU some are encoded side by side, a thread each: the matrices of one utterance are
too small to share, and the number of threads changes no sum then. A folder under `.runs` holds the outputs for later
trainings over the same encoder, too.

Shapes: B batch, M feature channels, T feature frames, S encoder frames, D encoder width.
"""

import errno
import fcntl
import hashlib
import os
import shutil
import zlib
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch.nn.utils.rnn import pad_sequence

from steermoe.atomic_io import TEMPORARY
from steermoe.models.attention import ShortAttention
from steermoe.models.encoders.encoder import Encoder
from steermoe.models.pretrained import digest, frozen_weights
from steermoe.models.steermoe import SteerMoE

GIGABYTE = 10**9
FOLDER = Path(".runs", "features")


@contextmanager
def frozen_features(
    model: SteerMoE, root: Path | None, gigabytes: float, processes: int = 1
) -> Iterator[None]:
    """Within the context, `model` encodes every utterance alone and once, if that is exact; else nothing changes.

    It is exact where no gradient enters the encoder: without steering inside it, low-rank adapters in it, and
    down-sampling between its layers.

    Args:
        model: what is trained.
        root: the project's root, below which features are kept; None keeps none.
        gigabytes: how much they may take there, all in all; 0 keeps none.
        processes: how many train together, each with its share of what is free.
    """
    if not is_frozen(model):
        yield
        return
    held = None
    if root is not None and gigabytes > 0:
        held = _Folder(root / FOLDER, _key(model), gigabytes * GIGABYTE, processes)
    model.encode_override = _OneByOne(model, held)
    try:
        yield
    finally:
        model.encode_override = None
        if held is not None:
            held.close()


def is_frozen(model: SteerMoE) -> bool:
    """Whether nothing that is trained comes before the encoder's output."""
    steered = model.steering is not None and any(
        place.layer is not None for place in model.steering.hook_points
    )
    trained = any(parameter.requires_grad for parameter in model.encoder.parameters())
    return not steered and not trained and model.config.projector.downsample_after_layer is None


def _key(model: SteerMoE) -> str:
    """What decides an encoder's output but the features."""
    encoder = model.config.encoder
    what = [digest(frozen_weights(model.encoder.model)), encoder.name, encoder.dtype, encoder.window]
    return hashlib.sha256(" ".join([*what, str(model.device.type), torch.__version__]).encode()).hexdigest()[
        :32
    ]


class _OneByOne:
    """Stands in for the encoder's forward pass."""

    def __init__(self, model: SteerMoE, folder: "_Folder | None") -> None:
        self.encoder, self.folder = model.encoder, folder

    @torch.no_grad()
    def __call__(
        self, features_BMT: torch.Tensor, lengths_B: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As of `Encoder.forward`."""
        rows = [
            features_BMT[row : row + 1, :, :length].contiguous()
            for row, length in enumerate(lengths_B.tolist())
        ]
        found = self._encoded(rows) if self.folder is None else self._kept(self.folder, rows)
        hidden = [hidden_SD.to(features_BMT.device) for hidden_SD in found]
        return pad_sequence(hidden, batch_first=True), self.encoder.output_lengths(lengths_B)

    def _kept(self, folder: "_Folder", rows: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Of batches of one, (1, M, T), their outputs (S, D): read, or computed and written."""
        names = [_called(row) for row in rows]
        found = {name: hidden for name in names if (hidden := folder.read(name)) is not None}
        missing = {name: row for name, row in zip(names, rows, strict=True) if name not in found}
        with closing(self._encoded(list(missing.values()))) as encoded:
            for name, hidden_SD in zip(missing, encoded, strict=True):
                folder.write(name, hidden_SD)  # while threads are at the next ones
                found[name] = hidden_SD
        return [found[name] for name in names]

    def _encoded(self, rows: Sequence[torch.Tensor]) -> Generator[torch.Tensor]:
        """Of batches of one, (1, M, T), their outputs (S, D), in order."""
        threads = torch.get_num_threads()
        if not rows or rows[0].device.type != "cpu":
            yield from map(partial(_alone, self.encoder), rows)
            return
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None
        # Threads have a number of their own, for OpenMP, and one in common, for MKL.
        torch.set_num_threads(1)
        try:
            with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
                yield from pool.map(partial(_alone_on_thread, self.encoder, dtype), rows)
        finally:
            torch.set_num_threads(threads)


def _alone(encoder: Encoder, features_BMT: torch.Tensor) -> torch.Tensor:
    """(S, D) of a batch of one."""
    lengths = torch.tensor([features_BMT.shape[2]], device=features_BMT.device)
    return encoder(features_BMT, lengths)[0][0]


def _alone_on_thread(encoder: Encoder, dtype: torch.dtype | None, features_BMT: torch.Tensor) -> torch.Tensor:
    """The same, on a thread that knows nothing of the modes of others; `dtype`: of autocast, None without."""
    with torch.no_grad(), torch.autocast("cpu", dtype, enabled=dtype is not None), ShortAttention():
        return _alone(encoder, features_BMT)


def _called(features_BMT: torch.Tensor) -> str:
    """The name of an utterance's output, of the features themselves: what was augmented is another utterance."""
    kind = features_BMT.device.type
    type_now = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
    total = hashlib.sha256(f"{tuple(features_BMT.shape)} {features_BMT.dtype} {type_now}\n".encode())
    total.update(_bytes(features_BMT))
    return total.hexdigest()


class _Folder:
    """Tensors by name, on disk, up to so many bytes of all that is in `parent`.

    It is shared by all who train over the same encoder now. Features of other encoders that nobody holds are
    deleted: there is one set of them as a rule. Files get their names when they are whole; they are not
    forced to disk, hence the checksum, and what is damaged counts as missing.
    """

    def __init__(self, parent: Path, key: str, limit: float, processes: int) -> None:
        self.path = parent / key
        self._lock = _share(self.path)
        for other in parent.iterdir():
            if other != self.path:
                _delete_if_free(other)
        used = sum(file.stat().st_size for file in parent.rglob("*") if file.is_file())
        self.free = (limit - used) / processes

    def read(self, name: str) -> torch.Tensor | None:
        try:
            found = load((self.path / name).read_bytes())
        except (FileNotFoundError, SafetensorError):
            return None
        whole = zlib.crc32(_bytes(found["hidden"])) == int(found["crc32"])
        return found["hidden"] if whole else None

    def write(self, name: str, hidden_SD: torch.Tensor) -> None:
        hidden_SD = hidden_SD.cpu().contiguous()
        data = save({"hidden": hidden_SD, "crc32": torch.tensor(zlib.crc32(_bytes(hidden_SD)))})
        if len(data) > self.free:
            return
        temporary = self.path / f".{name}.{os.getpid()}.tmp"
        try:
            temporary.write_bytes(data)
            temporary.replace(self.path / name)
            self.free -= len(data)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            temporary.unlink(missing_ok=True)
            self.free = 0.0  # the disk is full: the others are computed each time
            print(f"{self.path}: no space left; what is not kept there yet is computed each time")

    def close(self) -> None:
        os.close(self._lock)


def _share(folder: Path) -> int:
    """Hold a folder together with others; whoever finds it free removes what killed writers left in it."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for leftover in folder.glob(TEMPORARY):
                leftover.unlink(missing_ok=True)
        except BlockingIOError:
            pass
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        # Someone may have deleted the folder between our opening and our locking it.
        if folder.exists() and folder.stat().st_ino == os.fstat(descriptor).st_ino:
            return descriptor
        os.close(descriptor)


def _delete_if_free(folder: Path) -> None:
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:  # someone else was faster
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    except BlockingIOError:  # in use
        pass
    finally:
        os.close(descriptor)


def _bytes(tensor: torch.Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data

"""What is published of an adapter: it, its frozen models where it is merged, and its model card."""

import os
import shutil
import tempfile
from pathlib import Path

from steermoe.atomic_io import write_text
from steermoe.export.merge import write_merged
from steermoe.hub import adapter_folder
from steermoe.model_card import model_card
from steermoe.models import checkpoint as adapter
from steermoe.models.steermoe import SteerMoE


def write_publication(
    source: str, repository: str, folder: Path, evaluations: Path | None = None, merge: bool = False
) -> None:
    """Write into a folder what `publish` uploads.

    Args:
        source: a trained adapter, merged or not: a folder or a repository on the hub.
        repository: for the card.
        folder: where to; of a merged adapter it must not exist.
        evaluations: as `model_card` takes it.
        merge: merge the adapter first.

    Raises:
        FileExistsError: there is such a folder, and the adapter is merged.
        ValueError: the adapter cannot be loaded or merged, or there are no evaluations.
    """
    _write(source, repository, folder, evaluations, merge, links=False)


def publish(
    source: str, repository: str, private: bool, evaluations: Path | None = None, merge: bool = False
) -> str:
    """Upload an adapter, its frozen models where it is or gets merged, and its card; returns the address.

    Raises:
        ValueError: as `write_publication`.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "adapter"
        _write(source, repository, folder, evaluations, merge, links=True)
        return adapter.push(folder, repository, private)


def _write(
    source: str, repository: str, folder: Path, evaluations: Path | None, merge: bool, links: bool
) -> None:
    own = adapter_folder(source).resolve()
    saved = adapter.read(own)
    if merge:
        write_merged(own, folder)
        own, saved = folder, adapter.read(folder)
    elif saved.merged is not None:
        shutil.copytree(own, folder, copy_function=os.symlink if links else shutil.copyfile)
    model = SteerMoE.from_pretrained(own)
    if saved.merged is None:  # as it was read: base models named as they were, not where they were found here
        adapter.write(folder, saved)
    card = model_card(model, repository, evaluations, saved.merged)
    write_text(folder / adapter.CARD, str(card))

"""Publish an adapter: its files, its frozen models where it is merged, and its model card."""

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from steermoe.atomic_io import write_text
from steermoe.evaluation.predictions import METRICS, read_result
from steermoe.export.merge import write_merged
from steermoe.hub import adapter_folder
from steermoe.model_card import adapter_card
from steermoe.models import checkpoint as adapter
from steermoe.models.steermoe import SteerMoE


def publish(
    source: str, repository: str, private: bool, evaluations: Path | None = None, merge: bool = False
) -> str:
    """Upload what `write_publication` writes, and return the address.

    Raises:
        ValueError: as `write_publication`.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "adapter"
        write_publication(source, repository, folder, evaluations, merge, os.symlink)
        return adapter.push(folder, repository, private)


def write_publication(
    source: str,
    repository: str,
    folder: Path,
    evaluations: Path | None = None,
    merge: bool = False,
    copy: Callable[[Any, Any], Any] = shutil.copyfile,
) -> None:
    """Write an adapter, its frozen models where it is or gets merged, and its card into a folder.

    Args:
        source: a trained adapter, merged or not: a folder or a repository on the hub.
        repository: for the card.
        folder: output folder; for a merged adapter it must not exist.
        evaluations: output of stage `eval` for this variant, a folder a corpus; None: no figures.
        merge: merge the adapter first.
        copy: copies or links the files of a merged adapter.

    Raises:
        FileExistsError: the folder exists, and the adapter is merged.
        ValueError: the adapter cannot be loaded or merged, or there are no evaluations.
    """
    found = None if evaluations is None else sorted(evaluations.glob(f"*/{METRICS}"))
    if found == []:
        raise ValueError(
            f"{evaluations}: found no evaluation; expected <corpus>/{METRICS} as stage eval writes it"
        )
    own = adapter_folder(source).resolve()
    saved = adapter.read(own)
    if merge:
        write_merged(own, folder)
        own, saved = folder, adapter.read(folder)
    elif saved.merged is not None:
        shutil.copytree(own, folder, copy_function=copy)
    model = SteerMoE.from_pretrained(own)
    if (
        saved.merged is None
    ):  # as it was read: base models by their original names, not where they were found here
        adapter.write(folder, saved)
    results = None if found is None else {file.parent.name: read_result(file.parent) for file in found}
    write_text(folder / adapter.CARD, str(adapter_card(model, repository, results, saved.merged)))

"""Corpora: a row of CORPORA each, whose readers are described in `steermoe.corpora.reader`."""

import importlib
import sys
from pathlib import Path
from typing import cast

from steermoe.atomic_io import Staging
from steermoe.config.corpora import Corpus, Remote
from steermoe.corpora import archives, download
from steermoe.corpora.download import UnavailableError
from steermoe.corpora.reader import Reader
from steermoe.data.filters import write_skipped


def reader(name: str) -> Reader:
    """Import and return the reader of a corpus.

    Raises:
        ValueError: no such corpus.
    """
    if name not in CORPORA:
        raise ValueError(f"unknown corpus {name!r}; one of: {', '.join(CORPORA)}")
    module, _, variable = CORPORA[name].partition(":")
    found = importlib.import_module(module)
    return cast(Reader, getattr(found, variable) if variable else found)


def fetch(name: str, settings: Corpus, out: Path) -> None:
    """Fetch a corpus into the folder `out`, which appears complete or not at all; an interrupted try is continued.

    Raises:
        UnavailableError: a file cannot be downloaded, and the corpus is required.
        ArchiveError, SpaceError: the source is not as expected; the disk is too small.
    """
    corpus = reader(name)
    print(corpus.CARD.text(), flush=True)
    key = {"fetch": CORPORA[name], "settings": settings.model_dump(mode="json", exclude={"limit"})}
    with Staging(out, key) as staging:
        try:
            corpus.fetch(settings, staging.files)
        except UnavailableError as error:
            if not isinstance(settings, Remote) or settings.required:
                raise
            reason = (
                f"{error}; the corpus is not required (corpora.{name}.required). Name an archive or a folder "
                f"by corpora.{name}.mirror, or repeat the download stage by force when online"
            )
            for path in staging.files.iterdir():
                archives.remove(path)
            write_skipped(staging.files, reason)
            print(f"SKIPPED {name}: {reason}", file=sys.stderr)
        archives.remove(staging.files / download.WORK)
        staging.commit()


CORPORA = {  # a module, or an object in it
    "synthetic": "steermoe.corpora.synthetic",
    "digits": "steermoe.corpora.digits",
    "librispeech": "steermoe.corpora.librispeech:LIBRISPEECH",
    "minilibrispeech": "steermoe.corpora.librispeech:MINI",
    "aishell1": "steermoe.corpora.aishell:AISHELL1",
    "aishell2": "steermoe.corpora.aishell:AISHELL2",
    "fleurs": "steermoe.corpora.multilingual:FLEURS",
    "mls": "steermoe.corpora.multilingual:MLS",
    "folder": "steermoe.corpora.folder",
    "clothoaqa": "steermoe.corpora.clotho:CLOTHO_AQA",
    "clotho": "steermoe.corpora.clotho:CLOTHO",
    "mmau": "steermoe.corpora.mmau:MMAU",
    "mmaupro": "steermoe.corpora.mmau:MMAU_PRO",
    "openaudiobench": "steermoe.corpora.openaudiobench:OPEN_AUDIO_BENCH",
    "shapes": "steermoe.corpora.shapes",
    "neural": "steermoe.corpora.neural",
    "prompts": "steermoe.corpora.prompts",
    "spokenquestions": "steermoe.corpora.spoken_questions",
}

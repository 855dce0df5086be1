"""Mini LibriSpeech (OpenSLR 31): 5 hours for training and 2 for development, laid out as LibriSpeech.

The MD5 sums are those that public recipes for it carry; its sizes are published in MB only.
"""

from dataclasses import replace
from pathlib import Path

from steermoe.config import MiniLibriSpeech
from steermoe.corpora import index, librispeech, sources

SPLITS = MiniLibriSpeech.SPLITS
BASE = "https://www.openslr.org/resources/31"
MD5 = {
    "train-clean-5": "5df7d4e78065366204ca6845bb08f490",
    "dev-clean-2": "6d7ab67ac6a1d2c993d050e16d61080d",
}
CARD = replace(
    librispeech.CARD,
    name="Mini LibriSpeech",
    hours=7,
    bytes=458_000_000,
    source="https://www.openslr.org/31",
)
parts, rows = index.parts, index.rows


def fetch(settings: MiniLibriSpeech, dest: Path) -> None:
    """Put the splits in use into `dest`; raises as `librispeech.fetch`."""
    files = [librispeech.archive(BASE, split, None, MD5[split]) for split in settings.used]
    sources.fetch("minilibrispeech", files, settings, dest)
    for split in settings.used:
        index.write_index(dest, split, librispeech.entries(dest, split))

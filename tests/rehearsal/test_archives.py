"""The archives of a rehearsal are what the readers of the real ones read."""

from pathlib import Path
from typing import Any

import pytest

from steermoe import config, corpora
from steermoe.audio import io as waveform
from steermoe.rehearsal.archives import LAYOUTS, make_archives
from steermoe.rehearsal.texts import QUESTIONS, every_word

ROOT = Path(__file__).parents[2]
AMOUNT = config.Rehearsal(seed=5, train=3, others=2)


@pytest.fixture(scope="module")
def sections() -> dict[str, config.Corpus]:
    """The corpora of the shipped rehearsal."""
    loaded = config.preview(ROOT / "params.yaml", "paper-dry", corpora=list(LAYOUTS))
    assert loaded.corpora.keys() == LAYOUTS.keys()
    return loaded.corpora


@pytest.fixture(scope="module")
def made(sections: dict[str, config.Corpus], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("rehearsal")
    make_archives(sections, AMOUNT, out)
    return out


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_reader_reads_every_split(
    name: str, sections: dict[str, config.Corpus], made: Path, tmp_path: Path
) -> None:
    settings: Any = sections[name].model_copy(update={"mirror": str(made / name)})
    corpora.fetch(name, settings, tmp_path / "raw")
    reader, counts = corpora.reader(name), dict.fromkeys(settings.used, 0)
    said, spoken = set(), "".join(every_word()).lower()
    for part in reader.parts(settings, tmp_path / "raw"):
        for row in reader.rows(settings, tmp_path / "raw", part):
            counts[row["split"]] += 1
            said.add(row["target"])
            samples = waveform.load(row["audio"])
            assert 0.5 < len(samples) / waveform.RATE < 15 and abs(samples).max() > 0.05
            words = row["target"] if name == "aishell2" else row["target"].split()
            assert all(word.strip(".").lower() in spoken for word in words)
    for split, count in counts.items():
        assert count == (AMOUNT.train if split in settings.train else AMOUNT.others), split
    if name == "clothoaqa":
        assert said <= {answer for _, people in QUESTIONS for answer in people}
    else:
        assert len(said) > 1


def test_a_corpus_without_a_layout_is_told(tmp_path: Path) -> None:
    other: Any = {"digits": config.load(ROOT / "params.yaml").corpora["digits"]}
    with pytest.raises(
        ValueError, match=r"corpora\.digits: a rehearsal makes no archives of it; legal: librispeech"
    ):
        make_archives(other, AMOUNT, tmp_path)

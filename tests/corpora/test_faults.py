"""What goes wrong with a corpus, met by the commands that users run: real processes, a real server, a real full disk.

Every test sees the message, that nothing half-made is taken for whole, and that the next try loses nothing.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from ruamel.yaml import YAML

from steermoe import corpora
from steermoe.corpora import librispeech
from steermoe.data.filters import Limits, RejectedError
from steermoe.data.preprocess import preprocess
from steermoe.data.shards import read_rows
from tests.corpora import official
from tests.corpora.official import tone

REPOSITORY = Path(__file__).parents[2]
ARCHIVE = "/test-mini-audios.tar.gz"
NOISE = np.random.default_rng(0).bytes(600_000)  # beside the sound, so that the archive takes a while


@pytest.fixture
def served(server: Any) -> Any:
    """MMAU at a mirror: the questions, and an archive of 0.6 MB."""
    sounds = {"test-mini-audios/3fe64f3d.wav": tone(500), "test-mini-audios/noise.bin": NOISE}
    server.files["/mmau-test-mini.json"] = official.mmau()
    server.files[ARCHIVE] = official.tarred(sounds)
    return server


def lay_out(root: Path, url: str, lock: str | None = None) -> Path:
    """A profile with MMAU from `url`, beside the corpus that a profile trains on."""
    (root / "configs").mkdir(exist_ok=True)
    yaml = YAML()
    profile = yaml.load(REPOSITORY / "configs" / "mini.yaml")
    del profile["corpora"]["digits"]
    profile["corpora"]["mmau"] = {
        "train": [], "dev": [], "test": ["test-mini"], "seed": 1, "mirror": url, "required": True, "limit": None,
        "lock": lock, "answer": "text",
    }  # fmt: skip
    yaml.dump(profile, root / "configs" / "faults.yaml")
    params = yaml.load(REPOSITORY / "params.yaml")
    params |= {"profile": "faults", "corpora": ["synthetic", "mmau"]}
    yaml.dump(params, root / "params.yaml")
    return root


def begin(root: Path) -> "subprocess.Popen[str]":
    """`python -m pipeline download mmau` in `root`."""
    inherited = {name: value for name, value in os.environ.items() if name != "DVC_ROOT"}
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline", "download", "mmau", "--out", "raw"],
        cwd=root,
        env=inherited | {"PYTHONPATH": str(REPOSITORY), "NO_PROXY": "127.0.0.1", "COLUMNS": "300"},
        text=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def download(root: Path) -> tuple[int, str]:
    """Exit status, and what it complained of."""
    with begin(root) as process:
        complaint = process.communicate(timeout=300)[1]
        return process.returncode, complaint


def partial(root: Path) -> int:
    """Bytes of the archive that have arrived."""
    return sum(path.stat().st_size for path in root.glob(".runs/**/*.tar.gz.partial"))


def whole(root: Path) -> bool:
    return (root / "raw/data/test-mini-audios/noise.bin").read_bytes() == NOISE


def test_a_wrong_checksum(served: Any, tmp_path: Path):
    """The file of a lock was replaced: refused, named, and got anew by the next try; the other file is kept."""
    root, good = lay_out(tmp_path, served.url), served.files[ARCHIVE]
    assert download(root) == (0, "")
    (root / "raw/mmau.lock").rename(root / "kept.lock")
    shutil.rmtree(root / "raw")
    lay_out(root, served.url, lock="kept.lock")
    served.files[ARCHIVE] = good[:-9] + bytes([good[-9] ^ 1]) + good[-8:]
    status, complaint = download(root)
    assert status == 1 and "not the file of the lock" in complaint and "test-mini-audios.tar.gz" in complaint
    assert not (root / "raw").exists()
    served.files[ARCHIVE], served.paths = good, []
    assert download(root)[0] == 0 and whole(root)
    assert served.paths == [ARCHIVE]


def test_a_truncated_download(served: Any, tmp_path: Path):
    """The server breaks off for good: what has come is kept, and the next try asks for the rest alone."""
    root = lay_out(tmp_path, served.url)
    served.only_breaks, served.breaks = ARCHIVE, [200_000, 0, 0, 0]
    status, complaint = download(root)
    assert status == 1 and f"{served.url}{ARCHIVE} cannot be reached" in complaint
    assert not (root / "raw").exists()
    have = partial(root)
    assert 0 < have <= 200_000
    served.asked = []
    assert download(root)[0] == 0 and whole(root)
    assert served.asked == [f"bytes={have}-"]


def test_killed_and_gone_on_with(served: Any, tmp_path: Path):
    root, served.pause = lay_out(tmp_path, served.url), 0.1
    with begin(root) as process:
        deadline = time.monotonic() + 300
        while partial(root) < 100_000:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    have, served.pause, served.asked = partial(root), 0, []
    assert not (root / "raw").exists()
    assert 100_000 <= have < len(served.files[ARCHIVE])
    assert download(root)[0] == 0 and whole(root)
    assert f"bytes={have}-" in served.asked


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 512 kB of its own."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=512k", "none", str(place)]
    try:
        mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("no program `mount`")
    if mounted.returncode:
        pytest.skip(f"no small disk without root: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_disk_too_small_is_told_before_anything_is_fetched(served: Any, small_disk: Path):
    """No size is published: the server's is taken."""
    root = lay_out(small_disk, served.url)
    status, complaint = download(root)
    assert status == 1 and re.search(r"GB are free, about .* are needed for .*; free some space", complaint)
    assert not served.asked and not (root / "raw").exists()


def test_a_full_disk(served: Any, small_disk: Path):
    """The disk is full in the middle of the archive; on a larger one the same command goes on from there.

    The server does not tell how large the archive is, or it would be refused before.
    """
    served.told = {ARCHIVE: None}
    root, served.pause = (
        lay_out(small_disk, served.url),
        0.1,
    )  # the small file is done when the archive fills it
    status, complaint = download(root)
    assert status == 1 and "the disk is full (No space left on device)" in complaint
    assert f"{served.url}{ARCHIVE}; free some space and repeat the command" in complaint
    assert not (root / "raw").exists()
    have = partial(root)
    assert 300_000 < have < len(served.files[ARCHIVE])
    subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk)], check=True)
    served.asked = []
    assert download(root)[0] == 0 and whole(root)
    assert f"bytes={have}-" in served.asked


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda files: files.update({"/mmau-test-mini.json": official.mmau(audio_id="none.wav")}),
            "no recording",
        ),
        (
            lambda files: files.update({ARCHIVE: official.tarred({"../../../escaped.wav": tone(500)})}),
            "member '../../../escaped.wav' is outside of the archive's folder; not unpacked",
        ),
    ],
)
def test_a_source_that_is_wrong(served: Any, tmp_path: Path, spoil: Any, message: str):
    """Nothing appears, nothing escapes; mended, the same command does it."""
    root, good = lay_out(tmp_path, served.url), dict(served.files)
    spoil(served.files)
    status, complaint = download(root)
    assert status == 1 and message in complaint
    assert not (root / "raw").exists() and not list(tmp_path.parent.rglob("escaped*"))
    served.files = good
    assert download(root)[0] == 0 and whole(root)


@pytest.fixture
def hundred(fill: Any) -> list[str]:
    """LibriSpeech of 100 recordings to train on and 10 to test on, as it lies in the mirror; ids in order."""
    for split, count in (("train-clean-100", 100), ("test-clean", 10)):
        said = {
            f"84-121123-{i:04d}": (f"PITCH {500 + i}", tone(500 + i, format="FLAC")) for i in range(count)
        }
        fill({**official.librispeech(split, said)})
    return [f"librispeech-train-clean-100-84-121123-{i:04d}" for i in range(100)]


def test_one_corrupt_file_in_a_hundred(hundred: list[str], section: Any, root: Path):
    """It is cut off in the middle: preprocessing finishes, says which, and keeps the other 99."""
    settings = section("LibriSpeech", train=["train-clean-100"], test=["test-clean"])
    lost = next((root / "mirror").rglob("train-clean-100/**/84-121123-0042.flac"))
    lost.write_bytes(lost.read_bytes()[:1500])
    corpora.fetch("librispeech", settings, root / "raw")
    limits = Limits(max_rejected=0.01, whole=settings.test)
    summary = preprocess(librispeech, settings, root / "raw", root / "shards", limits)
    assert list(summary["splits"]) == ["train-clean-100", "test-clean"]
    assert summary["splits"]["train-clean-100"]["rejected"] == 1
    (line,) = (root / "shards/left_out.jsonl").read_text().splitlines()
    told = json.loads(line)
    assert (told["source_id"], told["kind"]) == (hundred.pop(42), "rejected")
    assert str(lost) in told["reason"]
    kept = read_rows(root / "shards", ["train-clean-100"])
    assert kept["source_id"].to_list() == hundred
    assert kept["language"].unique().to_list() == ["en"]


def test_a_corrupt_file_of_a_test_split(hundred: list[str], section: Any, root: Path):
    """Refused, with what to do; named in preprocessing.unreadable, it is left out, and the shards made are kept."""
    settings = section("LibriSpeech", train=["train-clean-100"], test=["test-clean"])
    lost = next((root / "mirror").rglob("test-clean/**/84-121123-0007.flac"))
    lost.write_bytes(b"")
    corpora.fetch("librispeech", settings, root / "raw")
    name = "librispeech-test-clean-84-121123-0007"
    with pytest.raises(RejectedError, match=rf"preprocessing\.unreadable\n  {name} \(test-clean\): .*empty"):
        preprocess(
            librispeech,
            settings,
            root / "raw",
            root / "shards",
            Limits(max_rejected=0.5, whole=settings.test),
        )
    assert not (root / "shards").exists()
    (made,) = root.glob(".runs/*/files/test-clean-00000.parquet")
    inode = made.stat().st_ino
    limits = Limits(max_rejected=0.5, whole=settings.test, unreadable=[name])
    preprocess(librispeech, settings, root / "raw", root / "shards", limits)
    shard = root / "shards/test-clean-00000.parquet"
    assert shard.stat().st_ino == inode and len(pl.read_parquet(shard)) == 9

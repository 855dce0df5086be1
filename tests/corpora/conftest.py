"""Small archives laid out as the official ones, each recording a tone that tells which it is; and a server that
serves them well or badly."""

import io
import pickle
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from steermoe import config, corpora
from steermoe.audio import waveform
from steermoe.corpora import downloads
from steermoe.data.schema import validate_shard
from steermoe.data.shards import shard_name, write_shard
from tests.corpora.official import tarred, tone

SPEAKERS = ("anna", "ben", "nicolas")
INDICES = 8  # recordings of each digit by each speaker
FOLDER = "free-spoken-digit-dataset-1.0.9"


def hertz(speaker: str, digit: int, index: int) -> int:
    """The tone of a recording, which tells it from all others."""
    return 400 + 12 * ((SPEAKERS.index(speaker) * 10 + digit) * INDICES + index)


def recording(speaker: str, digit: int, index: int) -> bytes:
    """0.25 s at 8 kHz; loudness differs from recording to recording."""
    time = np.arange(2000) / 8000
    level = 0.05 + 0.1 * index
    file = io.BytesIO()
    sound = level * np.sin(2 * np.pi * hertz(speaker, digit, index) * time)
    soundfile.write(file, sound, 8000, format="WAV", subtype="PCM_16")
    return file.getvalue()


def recordings() -> dict[str, bytes]:
    """Names in the archive and contents."""
    return {
        f"{FOLDER}/recordings/{digit}_{speaker}_{index}.wav": recording(speaker, digit, index)
        for speaker in SPEAKERS
        for digit in range(10)
        for index in range(INDICES)
    }


def pack(path: Path, files: dict[str, bytes]) -> Path:
    path.write_bytes(tarred(files))
    return path


@pytest.fixture(scope="session")
def tone_recordings() -> dict[str, bytes]:
    return recordings()


@pytest.fixture(scope="session")
def tone_archive(tmp_path_factory: pytest.TempPathFactory, tone_recordings: dict[str, bytes]) -> Path:
    extra = {f"{FOLDER}/README.md": b"# tones", f"{FOLDER}/metadata.py": b"metadata = {}"}
    return pack(tmp_path_factory.mktemp("mirror") / f"{FOLDER}.tar.gz", extra | tone_recordings)


@pytest.fixture(scope="session")
def by_tone() -> dict[int, tuple[str, int, int]]:
    """Hz of a recording's tone to its speaker, digit and index."""
    return {
        hertz(speaker, digit, index): (speaker, digit, index)
        for speaker in SPEAKERS
        for digit in range(10)
        for index in range(INDICES)
    }


@pytest.fixture(scope="session")
def pack_archive() -> Callable[[Path, dict[str, bytes]], Path]:
    return pack


@dataclass
class Server:
    """What a server has, how it misbehaves, and what it was asked."""

    files: dict[str, bytes] = field(default_factory=dict)  # by path
    headers: dict[str, dict[str, str]] = field(default_factory=dict)  # more of them, by path
    etag: str | None = '"one"'
    modified: str | None = None  # Last-Modified
    ranges: bool = True
    breaks: list[int] = field(default_factory=list)  # bytes after which the next answers break off
    told: dict[str, int | None] = field(default_factory=dict)  # another Content-Length, or none, by path
    heads: bool = True  # whether it answers HEAD
    only_breaks: str = ""  # the path whose answers break off; "": any
    pause: float = 0  # seconds before every 50 kB
    status: int = 200
    busy: int = 0  # of the next answers, how many ask for patience
    asked: list[str] = field(default_factory=list)  # ranges
    paths: list[str] = field(default_factory=list)
    url: str = ""


class Handler(BaseHTTPRequestHandler):
    server_: Server

    def do_HEAD(self) -> None:
        about = self.server_
        if not about.heads or self.path not in about.files:
            self.send_error(405 if self.path in about.files else 404)
            return
        self.send_response(200)
        self.tell_length(0)
        self.end_headers()

    def tell_length(self, start: int) -> None:
        """Say how much there is behind the first `start` bytes."""
        length = self.server_.told.get(self.path, len(self.server_.files[self.path]))
        if length is not None:
            self.send_header("Content-Length", str(length - start))

    def do_GET(self) -> None:
        about, start = self.server_, 0
        asked = self.headers.get("Range", "")
        about.asked.append(asked)
        about.paths.append(self.path)
        data = about.files.get(self.path)
        if about.busy:
            about.busy -= 1
            self.send_response(429)
            self.send_header("Retry-After", "1")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if about.status != 200 or data is None:
            self.send_error(about.status if about.status != 200 else 404)
            return
        if asked and about.ranges and self.headers.get("If-Range") == (about.etag or about.modified):
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
        if start >= len(data) > 0:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(data)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        if about.etag:
            self.send_header("ETag", about.etag)
        if about.modified:
            self.send_header("Last-Modified", about.modified)
        for name, value in about.headers.get(self.path, {}).items():
            self.send_header(name, value)
        self.tell_length(start)
        self.end_headers()
        breaks = about.breaks and about.only_breaks in ("", self.path)
        end = start + about.breaks.pop(0) if breaks else len(data)
        try:
            for at in range(start, min(end, len(data)), 50_000):
                time.sleep(about.pause)
                self.wfile.write(data[at : min(at + 50_000, end)])
        except OSError:  # the client was killed
            pass
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(downloads, "PAUSES", (0, 0))
    found = Server()
    handler = type("OneHandler", (Handler,), {"server_": found})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        found.url = f"http://127.0.0.1:{http.server_port}"
        yield found
        http.shutdown()
        thread.join()


@pytest.fixture(scope="session", name="tone")
def _tone() -> Callable[..., bytes]:
    return tone


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The project's root, from which relative mirrors start."""
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    return tmp_path


@pytest.fixture
def fill(root: Path) -> Callable[[dict[str, bytes | str]], Path]:
    """Writes files into the folder `mirror`."""

    def write(files: dict[str, bytes | str]) -> Path:
        for name, data in files.items():
            path = root / "mirror" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data if isinstance(data, bytes) else data.encode())
        return root / "mirror"

    return write


@pytest.fixture
def section() -> Callable[..., Any]:
    """Makes a section of a corpus from what differs from null and true; `test` is its first split."""

    def make(kind: str, **changed: Any) -> Any:
        model = getattr(config, kind)
        values = {"train": [], "dev": [], "test": [model.SPLITS[0]], "seed": 3, "limit": None}
        values |= {"mirror": "mirror", "required": True, "lock": None} | changed
        return model.model_validate({key: values[key] for key in values if key in model.model_fields})

    return make


def decoded(row: dict) -> dict:
    """A row as preprocessing puts it into a shard: readers give the recording itself."""
    assert isinstance(row["audio"], Path) and not row.keys() & {"sample_rate", "seconds"}
    audio, seconds = waveform.as_flac(row["audio"])
    return row | {"audio": audio, "sample_rate": waveform.RATE, "seconds": seconds}


@pytest.fixture
def fetched(root: Path) -> Callable[[str, Any], list[dict]]:
    """Fetches a corpus into raw/, and gives its rows, checked as those of a shard."""

    def rows_of(name: str, settings: Any) -> list[dict]:
        out, reader = root / "raw" / name, corpora.reader(name)
        corpora.fetch(name, settings, out)
        rows: list[dict] = []
        for part in reader.parts(settings, out):
            found = [decoded(row) for row in reader.rows(settings, out, pickle.loads(pickle.dumps(part)))]
            path = root / "shards" / name / shard_name(part.split, part.number)
            write_shard(found, path)
            validate_shard(path, audio="decode")
            rows += found
        return rows

    return rows_of


@pytest.fixture(scope="session")
def pitch() -> Callable[[dict], int]:
    """Hz of the tone in a row's audio, to 10 Hz."""

    def hear(row: dict) -> int:
        sound = waveform.load(row["audio"])
        spectrum = np.abs(np.fft.rfft(sound * np.hanning(len(sound)), 2**15))
        return round(float(np.argmax(spectrum)) * waveform.RATE / 2**15 / 10) * 10

    return hear

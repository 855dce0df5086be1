"""A server that serves files well or badly, and fixtures that fetch a corpus and listen to its rows."""

import json
import pickle
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from steermoe import corpora
from steermoe.audio import io as waveform
from steermoe.config import corpora as sections
from steermoe.data.schema import validate_shard
from steermoe.data.shards import shard_name, write_shard


@dataclass
class Server:
    """What a server has, how it fails, and what it was asked for."""

    files: dict[str, bytes] = field(default_factory=dict)  # by path
    breaks: list[int] = field(default_factory=list)  # bytes after which the next answers break off
    ranges: bool = True
    silent: bool = False  # about the length of its files
    pause: float = 0  # seconds before every 50 kB
    busy: int = 0  # of the next answers, how many ask for patience
    status: int = 200
    asked: list[tuple[str, str]] = field(default_factory=list)  # paths and ranges of GET requests
    url: str = ""


class Handler(BaseHTTPRequestHandler):
    server_: Server

    def do_HEAD(self) -> None:
        self.answer(0, 0)

    def do_GET(self) -> None:
        about, asked = self.server_, self.headers.get("Range", "")
        about.asked.append((self.path, asked))
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and about.ranges else 0
        end = start + about.breaks.pop(0) if about.breaks else 2**40
        self.answer(start, end)

    def answer(self, start: int, end: int) -> None:
        """Send the file's bytes from `start` on, and break off at `end`."""
        about, data = self.server_, self.server_.files.get(self.path)
        status = 429 if about.busy and end else 404 if data is None else about.status
        if data is None or status != 200 or start > len(data):
            about.busy -= status == 429
            self.send_response(status if status != 200 else 416)
            self.send_header("Retry-After", "0")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        if not about.silent:
            self.send_header("Content-Length", str(len(data) - start))
        if self.path.startswith("/api/"):
            self.send_header("Content-Type", "application/json")
        self.send_header("ETag", f'"{hash(data)}"')
        self.send_header("X-Repo-Commit", "70bb2e84b976b7e960aa89f1c648e09c59f894dd")
        self.end_headers()
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
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(
        "huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 2**14
    )  # bytes, that are lost at most
    hasty = SimpleNamespace(**vars(time) | {"sleep": lambda seconds: None})  # between tries
    monkeypatch.setattr("huggingface_hub.file_download.time", hasty)
    found = Server()
    handler = type("OneHandler", (Handler,), {"server_": found})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        found.url = f"http://127.0.0.1:{http.server_port}"
        yield found
        http.shutdown()
        thread.join()


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The project's root, from which relative mirrors start."""
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    return tmp_path


@pytest.fixture
def fill(root: Path) -> Callable[..., Path]:
    """Writes files into the folder `mirror`, which is empty at first; a file that is None is not written."""

    def write(files: dict[str, Any], folder: str = "mirror") -> Path:
        for name, data in files.items():
            path = root / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if data is not None:
                path.write_bytes(data if isinstance(data, bytes) else data.encode())
        return root / folder

    return write


@pytest.fixture
def section() -> Callable[..., Any]:
    """Makes a section of a corpus from what differs from null and true; `test` is its first split."""

    def make(kind: str, **changed: Any) -> Any:
        model = getattr(sections, kind)
        values = {"train": [], "dev": [], "test": [model.SPLITS[0]], "seed": 3, "limit": None}
        values |= {"mirror": "mirror", "required": True} | changed
        return model.model_validate({key: values[key] for key in values if key in model.model_fields})

    return make


@pytest.fixture
def fetched(root: Path) -> Callable[[str, Any], list[dict]]:
    """Fetches a corpus into raw/, and returns its rows, checked as those of a shard."""

    def rows_of(name: str, settings: Any) -> list[dict]:
        out, reader = root / "raw" / name, corpora.reader(name)
        corpora.fetch(name, settings, out)
        rows: list[dict] = []
        for part in reader.parts(settings, out):
            found = []
            for row in reader.rows(settings, out, pickle.loads(pickle.dumps(part))):
                assert not row.keys() & {"sample_rate", "seconds"}
                audio, seconds = waveform.as_flac(row["audio"])
                found.append(row | {"audio": audio, "sample_rate": waveform.RATE, "seconds": seconds})
            path = root / "shards" / name / shard_name(part.split, part.number)
            write_shard(found, path)
            validate_shard(path, audio="decode")
            rows += found
        return rows

    return rows_of


@pytest.fixture
def left_out(root: Path) -> Callable[[str], list[str]]:
    """Returns what a fetched corpus lists as left out."""
    return lambda name: json.loads((root / "raw" / name / "left_out.json").read_text())


@pytest.fixture(scope="session")
def pitch() -> Callable[[dict], int]:
    """Hz of the tone in a row's audio, to 10 Hz."""

    def measure(row: dict) -> int:
        sound = waveform.load(row["audio"])
        spectrum = np.abs(np.fft.rfft(sound * np.hanning(len(sound)), 2**15))
        return round(float(np.argmax(spectrum)) * waveform.RATE / 2**15 / 10) * 10

    return measure

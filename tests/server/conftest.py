"""Servers on free ports of this machine, in a thread each, with the trained mini adapter; and recordings for them."""

import io
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import soundfile

from steermoe.audio import io as waveform
from steermoe.audio import synthesis
from steermoe.models.steermoe import SteerMoE
from steermoe.server.access import bind, local_names
from steermoe.server.app import create_app, create_server
from steermoe.server.engine import Engine, Limits

ROOT = Path(__file__).parents[2]
TEXTS = (
    "kate found nine pink hammers on wednesday",
    "noah had eleven chairs and sold ten",
    "the lion is at the station",
    "one zero seven six eight",
    "frank has the white pencil and the yellow wallet",
    "simon bought seven silver clocks on tuesday",
)
NAME = "steermoe"


class Running:
    """A server that listens, and the official client to it."""

    def __init__(self, address: str, engine: Engine, key: str | None) -> None:
        self.address, self.engine, self.key = address, engine, key
        self._clients: list[openai.OpenAI] = []
        self.client = self.connect(key)

    def connect(self, key: str | None) -> openai.OpenAI:
        client = openai.OpenAI(
            base_url=f"{self.address}/v1", api_key=key or "none", max_retries=0, timeout=300,
            http_client=openai.DefaultHttpxClient(trust_env=False),
        )  # fmt: skip
        self._clients.append(client)
        return client

    def close(self) -> None:
        for client in self._clients:
            client.close()

    def get(self, path: str) -> httpx.Response:
        headers = {} if self.key is None else {"authorization": f"Bearer {self.key}"}
        return httpx.get(self.address + path, headers=headers, trust_env=False)

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels."""
        lines = self.get("/metrics").text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.split("{")[0].split(" ")[0] == name)


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def transcribe(server: Running, data: bytes, **fields: Any) -> Any:
    return server.client.audio.transcriptions.create(model=NAME, file=("some.wav", data), **fields)


@contextmanager
def running(engine: Engine, key: str | None = None, language: str | None = None) -> Iterator[Running]:
    app = create_app(engine, NAME, language, key, local_names("127.0.0.1") if key is None else None)
    with bind("127.0.0.1", 0) as listening:
        server = create_server(app)
        thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
        thread.start()
        found = Running(f"http://127.0.0.1:{listening.getsockname()[1]}", engine, key)
        try:
            yield found
        finally:
            found.close()
            server.should_exit = True
            thread.join(40)
    assert not thread.is_alive() and not engine.alive


@pytest.fixture(scope="session")
def adapter() -> Path:
    return ROOT / "pretrained/adapters/mini/steermoe"


@pytest.fixture(scope="session")
def model(adapter: Path) -> SteerMoE:
    return SteerMoE.from_pretrained(adapter)


@pytest.fixture(scope="session")
def serve(model: SteerMoE) -> Callable[..., Any]:
    """`with serve(queue_length=2) as running`: a server with the mini adapter and these limits."""

    def started(key: str | None = None, language: str | None = None, **limits: Any) -> Any:
        return running(Engine(model, Limits(**limits)), key, language)

    return started


@pytest.fixture(scope="session")
def server(serve: Callable[..., Any]) -> Iterator[Running]:
    with serve(language="en", max_seconds=60.0, max_tokens=60) as found:
        yield found


@pytest.fixture(scope="session")
def calling(caller: SteerMoE) -> Iterator[Running]:
    """A server whose model calls tools; of no known language."""
    with running(Engine(caller)) as found:
        yield found


@pytest.fixture(scope="session")
def waveforms() -> list[np.ndarray]:
    """The sentences of TEXTS, spoken; 16 kHz."""
    engine, voice = synthesis.Synthesizer(), synthesis.Voice("en-us", "m1", 160, 50, 50)
    spoken = [engine.speak(text, voice)[0] for text in TEXTS]
    return [waveform.load(wav(samples, synthesis.RATE)) for samples in spoken]


@pytest.fixture(scope="session")
def recordings(waveforms: list[np.ndarray]) -> list[bytes]:
    """The same as WAV files, in which nothing of them is lost."""
    return [wav(samples, waveform.RATE) for samples in waveforms]


def wav(samples: np.ndarray, rate: int, kind: str = "WAV", subtype: str = "FLOAT") -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=kind, subtype=subtype)
    return file.getvalue()


@pytest.fixture(scope="session")
def encode() -> Callable[..., bytes]:
    """`encode(samples, rate, "MP3", "MPEG_LAYER_III")`: a file's bytes; default: WAV of floats."""
    return wav

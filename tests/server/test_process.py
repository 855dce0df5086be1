"""`steermoe serve` as a process: what it prints, the examples of its page, and how it ends."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest

from .conftest import NAME, ROOT, Running, wav

PAGE = ROOT / "docs" / "server.md"


class Process:
    """A server in a process of its own."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process, self.lines = process, []
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()
        self.address = self.said(r"serving steermoe at (\S+)/v1")

    def _read(self) -> None:
        assert self.process.stderr is not None
        self.lines.extend(self.process.stderr)

    def said(self, pattern: str) -> str:
        until = time.monotonic() + 300
        while time.monotonic() < until:
            if found := re.search(pattern, "".join(self.lines)):
                return found[1]
            assert self.process.poll() is None, "".join(self.lines)
            time.sleep(0.02)
        raise AssertionError("".join(self.lines))

    def transcribe(self, data: bytes, key: str = "none") -> str:
        with openai.OpenAI(base_url=f"{self.address}/v1", api_key=key, max_retries=0, timeout=300) as client:
            return client.audio.transcriptions.create(model=NAME, file=("a.wav", data)).text


@contextmanager
def started(*arguments: str, **environment: str) -> Iterator[Process]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("STEERMOE_")}
    command = [
        sys.executable,
        "-m",
        "steermoe.cli.main",
        "serve",
        "--model",
        "mini",
        "--port",
        "0",
        *arguments,
    ]
    pipes: Any = {"stderr": subprocess.PIPE, "stdout": subprocess.DEVNULL, "text": True}
    process = subprocess.Popen(command, cwd=ROOT, env=kept | environment, **pipes)
    try:
        yield Process(process)
    finally:
        process.kill()
        process.wait()
        assert process.stderr is not None
        process.stderr.close()


def test_other_machines_need_a_key_and_accepted_requests_are_finished_after_sigterm(
    recordings: list[bytes], waveforms: list[np.ndarray]
) -> None:
    pause = np.zeros(16000, np.float32)
    long = wav(np.concatenate([part for wave in waveforms * 4 for part in (wave, pause)]), 16000)
    with (
        started("--host", "0.0.0.0", "--batch-rows", "1") as server,
        ThreadPoolExecutor(4) as pool,
    ):
        key = server.said(r"API key, generated for this run: (\S+)")
        server.address = server.address.replace("0.0.0.0", "127.0.0.1")
        with pytest.raises(openai.AuthenticationError):
            server.transcribe(recordings[0])
        alone = server.transcribe(recordings[0], key)
        first = pool.submit(server.transcribe, long, key)
        others = [pool.submit(server.transcribe, recordings[0], key) for _ in range(3)]
        metrics, headers = f"{server.address}/metrics", {"authorization": f"Bearer {key}"}
        while "steermoe_queue_length 0.0" in httpx.get(metrics, headers=headers).text:
            assert not first.done()
        server.process.send_signal(signal.SIGTERM)
        assert len(first.result(300).split()) > 4 * 20
        assert [other.result(300) for other in others] == [alone] * 3
        assert server.process.wait(30) == 0
        with pytest.raises(openai.APIConnectionError):
            server.transcribe(recordings[0], key)
        assert "Traceback" not in "".join(server.lines)


def test_wrong_use_is_one_line(call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for arguments, said in (
            (["--llm-model", "x"], "steermoe: --llm-model: has no effect without --llm-url"),
            (["--api-key-file", "nowhere"], "nowhere: No such file"),
            (["--port", port], f"--host 127.0.0.1, --port {port}: Address already in use"),
            (["--host", "203.0.113.9"], "--host 203.0.113.9, --port 8000: Cannot assign requested address"),
            (["--host", "no.such.host"], "--host no.such.host, --port 8000: "),
        ):
            run = call("serve", *arguments)
            assert run.code in (1, 2) and said in run.err and run.err.count("\n") == 1


def blocks(language: str) -> list[str]:
    return re.findall(
        rf"^```{language}\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )


def test_the_examples_of_the_page(
    server: Running, recordings: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("speech.wav").write_bytes(recordings[0])
    for code in blocks("python"):
        exec(code.replace("http://127.0.0.1:8000", server.address), {})
        assert "hammers" in capsys.readouterr().out
    for command in blocks("bash"):
        if "curl" in command:
            command = command.replace("http://127.0.0.1:8000", server.address)
            run = subprocess.run(["bash", "-ec", command], capture_output=True, text=True, check=False)
            assert run.returncode == 0 and '"error"' not in run.stdout, run.stderr

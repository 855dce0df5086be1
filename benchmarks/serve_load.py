"""A server under load: clients that ask without pause, on this machine only.

Counts what was lost, and shows latencies, throughput, batches and the server's memory. Recordings are spoken by the
synthesiser; clients that are told to come later (429) do.

    python benchmarks/serve_load.py --clients 64 --seconds 30
"""

import argparse
import os
import platform
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from steermoe.audio import synthesis
from steermoe.audio.io import encode_flac

ROOT = Path(__file__).parents[1]
TEXTS = (
    "kate found nine pink hammers on wednesday",
    "one zero seven six eight",
    "frank has the white pencil and the yellow wallet",
    "the lion is at the station",
)


def recordings() -> list[tuple[bytes, float]]:
    """FLAC files and their seconds, short and long."""
    engine, voice = synthesis.Synthesizer(), synthesis.Voice("en-us", "m1", 160, 50, 50)
    spoken = [engine.speak(text, voice)[0] for text in TEXTS]
    pause = np.zeros(synthesis.RATE, np.float32)
    spoken.append(np.concatenate([part for samples in spoken for part in (samples, pause)]))
    return [(encode_flac(samples, synthesis.RATE), len(samples) / synthesis.RATE) for samples in spoken]


def resident(pid: int) -> float:
    """MiB of memory of a process."""
    text = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    found = re.search(r"VmRSS:\s+(\d+) kB", text)
    return int(found[1]) / 1024 if found else 0.0


class Clients:
    """So many clients, each of which asks again as soon as it was answered."""

    def __init__(self, address: str, count: int, seconds: float) -> None:
        self.address, self.until = address, time.monotonic() + seconds
        self.files = recordings()
        self.latencies: list[float] = []
        self.answers: Counter[str] = Counter()
        self.asked = self.audio = 0.0
        self.texts: dict[int, set[str]] = {}
        self._lock = threading.Lock()
        self.threads = [threading.Thread(target=self._ask, args=(number,)) for number in range(count)]

    def run(self) -> None:
        """Until the time is up and everything was answered."""
        for thread in self.threads:
            thread.start()
        for thread in self.threads:
            thread.join()

    def _ask(self, number: int) -> None:
        with httpx.Client(base_url=self.address, timeout=120, trust_env=False) as client:
            while time.monotonic() < self.until:
                place = number % len(self.files)
                self._one(client, place)
                number += 1

    def _one(self, client: httpx.Client, place: int) -> None:
        data, seconds = self.files[place]
        began = time.perf_counter()
        with self._lock:
            self.asked += 1
        try:
            content: dict[str, Any] = {
                "data": {"model": "steermoe"},
                "files": {"file": ("a.flac", data)},
            }
            reply = client.post("/v1/audio/transcriptions", **content)
            kind = str(reply.status_code)
        except httpx.HTTPError as error:
            kind = type(error).__name__
        with self._lock:
            self.answers[kind] += 1
            if kind == "200":
                self.latencies.append(time.perf_counter() - began)
                self.audio += seconds
                self.texts.setdefault(place, set()).add(reply.json()["text"])
        if kind == "429":
            time.sleep(min(5, int(reply.headers["retry-after"])))


def main() -> int:
    """Print the table; 1 if anything was lost, or a recording did not always get the same text."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--model", default="pretrained/adapters/mini/steermoe")
    chosen = parser.parse_args()
    load = os.getloadavg()[0]
    command = [sys.executable, "-m", "steermoe.cli.main", "serve", "--port", "0", "--model", chosen.model]
    process = subprocess.Popen([*command, "--name", "steermoe"], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        address = process.stderr.readline().split(" at ")[1].strip().removesuffix("/v1")
        clients = Clients(address, chosen.clients, chosen.seconds)
        memory = [resident(process.pid)]
        watching = threading.Thread(target=clients.run)
        began = time.monotonic()
        watching.start()
        while watching.is_alive():
            watching.join(0.5)
            memory.append(resident(process.pid))
        took = time.monotonic() - began
        metrics = httpx.get(f"{address}/metrics", trust_env=False).text
    finally:
        process.terminate()
        process.wait(60)
    return report(clients, memory, metrics, took, load)


def report(clients: Clients, memory: list[float], metrics: str, took: float, load: float) -> int:
    """The table in Markdown."""
    numbers = dict(re.findall(r"^(steermoe_\w+) (\S+)$", metrics, re.MULTILINE))
    rows, batches = (float(numbers[f"steermoe_batch_rows_{part}"]) for part in ("sum", "count"))
    audio, compute = (float(numbers[f"steermoe_{name}_seconds_total"]) for name in ("audio", "compute"))
    lost = clients.asked - sum(clients.answers[kind] for kind in ("200", "429"))
    half = len(memory) // 2
    p50, p90, p99 = np.percentile(clients.latencies, [50, 90, 99])
    table = {
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, load {load:.1f} before",
        "clients": f"{len(clients.threads)} for {took:.0f} s",
        "requests": f"{clients.asked:.0f}: " + ", ".join(f"{n} x {k}" for k, n in clients.answers.items()),
        "lost": f"{lost:.0f}",
        "latency, s": f"{p50:.2f} (50 %), {p90:.2f} (90 %), {p99:.2f} (99 %), {max(clients.latencies):.2f} (most)",
        "throughput": f"{len(clients.latencies) / took:.1f} requests/s, {clients.audio / took:.1f} s of audio/s",
        "recordings in a batch": f"{rows / batches:.1f} on average",
        "real-time factor of the model": f"{compute / audio:.3f}",
        "memory of the server, MiB": f"{memory[0]:.0f} before, {max(memory[:half]):.0f} at most in the first half, "
        f"{max(memory[half:]):.0f} in the second",
        "texts a recording": ", ".join(str(len(texts)) for texts in clients.texts.values()),
    }
    print("| | |\n|---|---|")
    for name, value in table.items():
        print(f"| {name} | {value} |")
    return int(lost > 0 or any(len(texts) > 1 for texts in clients.texts.values()))


if __name__ == "__main__":
    sys.exit(main())

"""Decode uploads in short-lived processes with limits, so that a broken file cannot harm the server.

Each recording gets a process, forked by multiprocessing's fork server, which has loaded the decoders and nothing else.
What comes back are bytes, never pickles. The processes run under the server's account: this is no sandbox.
"""

import multiprocessing
import resource
import signal
import time
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from steermoe.audio.io import AudioError, blocks

MAX_MESSAGE = 2**28
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload([__name__])


class DecodingError(AudioError):
    """Decoding exceeded a limit or crashed."""


def decode(
    data: bytes, max_seconds: float, timeout: float = 60.0, memory_bytes: int = 512 * 2**20
) -> np.ndarray:
    """Return the waveform (N,) at 16 kHz of a file's bytes.

    Args:
        data: the file.
        max_seconds: longer recordings are refused.
        timeout: seconds that decoding may take.
        memory_bytes: memory that the process may take in addition to what it has loaded.

    Raises:
        AudioError: as `waveform.load`; as a DecodingError, a limit was exceeded, or the decoder crashed.
    """
    ours, theirs = _CONTEXT.Pipe(duplex=False)
    process = _CONTEXT.Process(target=_work, args=(theirs, data, max_seconds, memory_bytes), daemon=True)
    try:
        process.start()
    except BrokenPipeError as error:
        raise DecodingError("the decoder crashed at its start") from error
    theirs.close()
    samples: list[np.ndarray] = []
    until = time.monotonic() + timeout
    try:
        while ours.poll(max(0.0, until - time.monotonic())):
            message = ours.recv_bytes(MAX_MESSAGE)
            if message[:1] == b"E":
                raise AudioError(message[1:].decode())
            if message[:1] == b"D":
                return np.concatenate(samples)
            samples.append(np.frombuffer(message[1:], np.float32))
        raise DecodingError(f"decoding took more than {timeout:g} s; cut the recording")
    except (EOFError, OSError) as error:  # the process ended without a last message
        process.join()
        raise DecodingError(f"the decoder crashed (exit code {process.exitcode})") from error
    finally:
        ours.close()
        process.kill()
        process.join()


def _work(connection: Connection, data: bytes, max_seconds: float, memory_bytes: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # after Ctrl-C the server finishes what it accepted
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    limit = pages * resource.getpagesize() + memory_bytes
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(BrokenPipeError):
        try:
            for block in blocks(data, max_seconds):
                connection.send_bytes(b"S" + block.astype(np.float32, copy=False).tobytes())
            connection.send_bytes(b"D")
        except AudioError as error:
            connection.send_bytes(b"E" + str(error).encode())
        except MemoryError:
            connection.send_bytes(
                b"E" + f"decoding took more than {memory_bytes >> 20} MiB of memory".encode()
            )

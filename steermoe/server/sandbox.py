"""Untrusted audio is decoded in a process of its own, which has limits and dies with the recording.

libsndfile parses what anybody sends. So a small server process, started once, that has loaded the decoders and
nothing else, forks for every recording; the child limits its memory, processor time, files and size of files
(setrlimit), decodes one recording, sends the samples, and ends. What goes over the sockets is lengths and bytes,
never pickles. It runs in the same user account and on the same network: whoever needs more than that runs the
server in a container.

Frames: 8 bytes of length, then so many bytes. A request is {"max_seconds": ...} in JSON, and the file; a reply is
frames of samples (b"s" and float32, little-endian), as they are decoded, and in the end b"e", or b"n" and a message.
Between the process that forks and the child a third one waits for the child's end, and sends its wait status over a
socket of its own: so the message names the limit that was exceeded, and no other.
"""

import json
import os
import resource
import signal
import socket
import struct
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import numpy as np

import steermoe
from steermoe.audio import io as blocks
from steermoe.audio import io as waveform
from steermoe.server.limits import Limits

LENGTH = struct.Struct("<Q")
OPEN_FILES = 16
LONGEST_MESSAGE = 2**12
SLACK = 2**14  # samples by which resampling may make a recording longer
START_SECONDS = 300  # for loading the decoders; a guard against a hang, not a measure
NO_MEMORY, BROKEN = 3, 4  # exit statuses of a child


class DecodingError(RuntimeError):
    """A recording took too much time or memory, or ended its process."""


class Decoder:
    """Decodes recordings in processes of their own; safe to be called by several threads.

    Args:
        limits: seconds of a recording, processor time and memory for one.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    def load(self, data: bytes) -> np.ndarray:
        """The waveform (N,) at 16 kHz of a file's bytes.

        Raises:
            AudioError: as `waveform.load`.
            DecodingError: it takes more than the limits, or the decoder broke down.
        """
        (ours, theirs), (end, their_end) = socket.socketpair(), socket.socketpair()
        with ours, end:
            with theirs, their_end:
                self._send(theirs, their_end)
            for connection in (ours, end):  # longer than the child's own alarm, which tells more
                connection.settimeout(3.0 * self._limits.decode_seconds + 10)
            try:
                with suppress(
                    BrokenPipeError, ConnectionResetError
                ):  # it has ended: what it said is still there
                    _write(ours, json.dumps({"max_seconds": self._limits.max_seconds}).encode())
                    _write(ours, data)
                samples = self._samples(ours)
            except (OSError, EOFError) as error:
                raise DecodingError(f"audio of {len(data)} bytes: {self._cause(error, end)}") from error
        if not len(samples) or not np.isfinite(samples).all():
            raise DecodingError(f"audio of {len(data)} bytes: the decoder returned no waveform")
        return samples

    def _cause(self, error: Exception, end: socket.socket) -> str:
        """Why a child gave no answer, by how it ended."""
        seconds = self._limits.decode_seconds
        if isinstance(error, TimeoutError):
            return f"the decoder did not answer within {3 * seconds + 10} s"
        try:
            code = os.waitstatus_to_exitcode(int.from_bytes(_exactly(end, 4), "little"))
        except (OSError, EOFError):
            return "the decoder was ended from outside; try again"
        known = {
            -signal.SIGXCPU: f"decoding took more than {seconds} s of processor time",
            -signal.SIGALRM: f"decoding took more than {3 * seconds} s by the clock",
            NO_MEMORY: f"decoding took more than {self._limits.decode_bytes >> 20} MiB of memory",
        }
        ended = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"broke down ({error})"
        return known.get(code, f"the decoder {ended}")

    def _samples(self, connection: socket.socket) -> np.ndarray:
        """What a child sends; no more than the limits allow, whatever it wants to."""
        left, found = int(self._limits.max_seconds * waveform.RATE) + SLACK, []
        while True:
            frame = _read(connection, 4 * left + 1)
            kind, content = bytes(frame[:1]), memoryview(frame)[1:]
            if kind == b"n":
                raise waveform.AudioError(bytes(content).decode(errors="replace"))
            if kind == b"e":
                return np.concatenate(found) if found else np.zeros(0, np.float32)
            if kind != b"s" or len(content) % 4:
                raise EOFError("no frame of samples")
            found.append(np.frombuffer(content, "<f4"))
            left -= len(found[-1])

    def close(self) -> None:
        """End the process that forks; recordings that are being decoded are finished by their own."""
        with self._lock:
            self._stop()

    def _send(self, *theirs: socket.socket) -> None:
        """Hand sockets to a child of its own; the process that forks is started if it is not there."""
        with self._lock:
            for again in (True, False):
                if self._control is None or self._process is None or self._process.poll() is not None:
                    self._start()
                assert self._control is not None
                try:
                    socket.send_fds(self._control, [b"."], [each.fileno() for each in theirs])
                    return
                except OSError:
                    self._stop()
                    if not again:
                        raise

    def _start(self) -> None:
        self._stop()
        self._control, theirs = socket.socketpair()
        limits = self._limits
        with theirs:
            command = [
                *(sys.executable, "-P", "-m", "steermoe.server.sandbox"),
                *(str(theirs.fileno()), str(limits.decode_seconds), str(limits.decode_bytes)),
            ]
            # Without the environment's secrets; one thread, for forking.
            kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
            ours = {"PYTHONPATH": str(Path(steermoe.__file__).parents[1])}
            threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
            self._process = subprocess.Popen(
                command, pass_fds=[theirs.fileno()], env=kept | ours | threads, stdin=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for the server, which ends this one
            )  # fmt: skip
        self._control.settimeout(START_SECONDS)
        try:
            _exactly(self._control, 1)  # it has started: loading is no part of a recording's time
        except (OSError, EOFError) as error:
            self._process.kill()
            found = self._process.wait()
            self._stop()
            raise RuntimeError(
                f"the process that decodes audio did not start (exit status {found})"
            ) from error

    def _stop(self) -> None:
        if self._control is not None:
            self._control.close()  # at which the other side ends
        if self._process is not None:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(5)
            self._process.kill()
            self._process.wait()
        self._control = self._process = None


def _write(connection: socket.socket, *parts: bytes) -> None:
    connection.sendall(LENGTH.pack(sum(map(len, parts))))
    for part in filter(None, parts):  # sending nothing fails, too, where the other side has ended
        connection.sendall(part)


def _read(connection: socket.socket, most: int) -> bytearray:
    """A frame of at most so many bytes; EOFError if it ends too soon or is longer."""
    (length,) = LENGTH.unpack(_exactly(connection, LENGTH.size))
    if length > most:
        raise EOFError(f"a frame of {length} bytes, expected at most {most}")
    return _exactly(connection, length)


def _exactly(connection: socket.socket, length: int) -> bytearray:
    content, filled = bytearray(length), 0
    while filled < length:
        part = connection.recv_into(memoryview(content)[filled:])
        if not part:
            raise EOFError(f"{filled} of {length} bytes")
        filled += part
    return content


def main(arguments: list[str]) -> None:
    """Fork for the sockets that come over the control socket, until that is closed."""
    descriptor, seconds, most = (int(argument) for argument in arguments)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel forgets children that have ended
    control = socket.socket(fileno=descriptor)
    control.send(b".")
    while True:
        _, descriptors, _, _ = socket.recv_fds(control, 1, 2)
        if not descriptors:
            return
        if os.fork() == 0:
            control.close()
            with suppress(BaseException):
                _watch(descriptors[0], descriptors[1], seconds, most)
            os._exit(0)
        for each in descriptors:
            os.close(each)


def _watch(descriptor: int, end: int, seconds: int, most: int) -> None:
    """Decode in a child, and send its wait status to `end`."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    child = os.fork()
    if child:
        os.close(descriptor)
        os.write(end, os.waitpid(child, 0)[1].to_bytes(4, "little"))
        return
    os.close(end)
    code = BROKEN
    with suppress(BaseException):  # nobody reads tracebacks of broken recordings
        try:
            _limit(seconds, most)
            with socket.socket(fileno=descriptor) as connection:
                _decode(connection)
            code = 0
        except MemoryError:
            code = NO_MEMORY
    os._exit(code)


def _limit(seconds: int, most: int) -> None:
    """Limits of this process: each is for what comes from now on."""
    signal.alarm(3 * seconds)
    with open("/proc/self/statm", "rb") as file:  # noqa: PTH123 - nothing more is to be imported here
        mapped = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(
        resource.RLIMIT_CPU, (seconds, seconds + 1)
    )  # SIGXCPU, which names the cause, then SIGKILL
    for kind, value in (
        (resource.RLIMIT_AS, mapped + most),
        (resource.RLIMIT_NOFILE, OPEN_FILES),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (value, value))


def _decode(connection: socket.socket) -> None:
    request = json.loads(_read(connection, 2**10))
    try:
        for block in blocks.blocks(bytes(_read(connection, 2**32)), request["max_seconds"]):
            _write(connection, b"s", block.astype("<f4", copy=False).tobytes())
        _write(connection, b"e")
    except waveform.AudioError as error:
        _write(connection, b"n", str(error).encode()[:LONGEST_MESSAGE])


if __name__ == "__main__":
    main(sys.argv[1:])

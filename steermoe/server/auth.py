"""Who may ask: anybody on this machine, or whoever brings the key."""

import ipaddress
import os
import secrets
import socket
from pathlib import Path

VARIABLE = "STEERMOE_API_KEY"
SHORTEST = 16  # characters


def is_loopback(host: str) -> bool:
    """Whether nobody but this machine reaches a server there."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_address(host: str, port: int) -> None:
    """Raises OSError where nobody can listen at an address and a port; port 0 is any that is free."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server will
            trial.bind(address)
    except OSError as error:
        raise OSError(f"--host {host}, --port {port}: {error.strerror}; give another") from error


def own_names(host: str) -> list[str]:
    """What requests call a server that listens at `host`, an address of this machine alone."""
    return ["127.0.0.1", "localhost", "[::1]", f"[{host}]" if ":" in host else host]


def api_key(host: str, file: Path | None) -> tuple[str | None, bool]:
    """The key that requests must bring, and whether it was made up now.

    It is read from a file, or from the environment's STEERMOE_API_KEY, never from the command line, which other
    users of the machine see. Without either, a server that others reach gets a new one; one that nobody else
    reaches needs none.

    Raises:
        ValueError: file or variable hold no key, or one that is too short.
        OSError: the file cannot be read.
    """
    if file is not None:
        source, key = str(file), file.read_text(encoding="utf-8").strip()
    elif VARIABLE in os.environ:
        source, key = VARIABLE, os.environ[VARIABLE].strip()
    elif is_loopback(host):
        return None, False
    else:
        return secrets.token_urlsafe(32), True
    if len(key) < SHORTEST or not key.isascii() or not key.isprintable() or " " in key:
        raise ValueError(
            f"{source}: found {len(key)} characters; expected a key of at least {SHORTEST} printable ASCII "
            "characters without spaces, for instance from `openssl rand -base64 32`"
        )
    return key, False

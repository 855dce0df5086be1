"""Who may reach a server: its address, its own host names, and the key or password that requests must have."""

import ipaddress
import os
import secrets
import socket
from pathlib import Path

KEY_VARIABLE = "STEERMOE_API_KEY"
MIN_KEY_LENGTH = 16


def is_loopback(host: str) -> bool:
    """Return whether an address can be reached from this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def local_names(host: str) -> list[str]:
    """Return the host names of requests to a server that listens at a loopback address."""
    return ["127.0.0.1", "localhost", "[::1]", f"[{host}]" if ":" in host else host]


def bind(host: str, port: int) -> socket.socket:
    """Return a listening socket; port 0 means any free port. Clients wait until it is served.

    Raises:
        OSError: the address cannot be used.
    """
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise OSError(f"--host {host}, --port {port}: {error.strerror}; use another") from error


def api_key(host: str, file: Path | None) -> tuple[str | None, bool]:
    """Return the key that requests must have, and whether it was generated now.

    It comes from a file or from STEERMOE_API_KEY, never from the command line, which other users of the machine
    can see. Without either, a loopback address needs no key, and any other gets a generated one.

    Raises:
        ValueError: the key is too short or has illegal characters.
        OSError: the file cannot be read.
    """
    if file is not None:
        source, key = str(file), file.read_text(encoding="utf-8").strip()
    elif KEY_VARIABLE in os.environ:
        source, key = KEY_VARIABLE, os.environ[KEY_VARIABLE].strip()
    elif is_loopback(host):
        return None, False
    else:
        return secrets.token_urlsafe(32), True
    if len(key) < MIN_KEY_LENGTH or not key.isascii() or not key.isprintable() or " " in key:
        raise ValueError(
            f"{source}: found {len(key)} characters; expected a key of at least {MIN_KEY_LENGTH} printable ASCII "
            "characters without spaces, for instance from `openssl rand -base64 32`"
        )
    return key, False

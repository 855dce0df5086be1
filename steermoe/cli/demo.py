"""`steermoe demo`."""

import os
import signal
import sys
import tempfile
import threading
from pathlib import Path
from typing import Annotated, Any

import typer

from steermoe.cli.options import Device, Model

BESIDE = ("linear", "lora")  # folders beside the adapter's, of other methods


def main(
    model: Model = None,
    compare: Annotated[
        list[str] | None,
        typer.Option(
            help="an adapter to compare with, again for another; default: linear and lora beside it"
        ),
    ] = None,
    no_compare: Annotated[
        bool, typer.Option("--no-compare", help="compare with none: each is a model in memory")
    ] = False,
    device: Device = None,
    host: Annotated[
        str, typer.Option(help="the address to listen at; another than this machine's needs a password")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free")] = 7860,
    password_file: Annotated[
        Path | None,
        typer.Option(help="holds the password of user steermoe; or STEERMOE_API_KEY does, or one is made up"),
    ] = None,
    max_mb: Annotated[float, typer.Option(min=0.001, help="a recording, MiB")] = 25.0,
    max_seconds: Annotated[float, typer.Option(min=0.1, help="a recording")] = 60.0,
) -> None:
    """Show a model on a web page: transcript, questions, pictures of its experts, and sliders for their strength.

    It works offline, and tells nothing to anybody. It listens on this machine only, unless told otherwise, and
    then asks for a password. Recordings are deleted when it ends, and an hour or two after they came.

    Examples:

        steermoe demo
        steermoe demo --model models/mini/steermoe --compare models/mini/linear --port 8080
        steermoe demo --host 0.0.0.0 --password-file password.txt
    """
    from steermoe.server.auth import api_key

    if compare and no_compare:
        raise ValueError("--no-compare: --compare has no effect with it; leave one out")
    others = _others(model, compare, no_compare)
    password, made_up = api_key(host, password_file)
    signal.signal(signal.SIGTERM, _stop)
    with tempfile.TemporaryDirectory(prefix="steermoe-demo-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder  # read when gradio is imported
        try:
            _serve(model, others, device, (host, port), password, made_up,
                   (int(max_mb * 2**20), max_seconds), folder)  # fmt: skip
        except KeyboardInterrupt:
            print("steermoe: stopped", file=sys.stderr)


def _serve(
    model: str | None, others: list[str], device: str | None, where: tuple[str, int], password: str | None,
    made_up: bool, most: tuple[int, float], folder: str,
) -> None:  # fmt: skip
    from steermoe.cli.options import model_name, open_model
    from steermoe.demo import app as demo
    from steermoe.demo.examples import speak_examples
    from steermoe.demo.inference import Listener
    from steermoe.server.limits import Limits

    limits = Limits(max_bytes=most[0], max_seconds=most[1], max_text=1000)
    name = model_name(model)
    opened = open_model(model, device)
    listener = Listener(opened, {Path(other).name: open_model(other, device) for other in others}, limits)
    given = Path(folder) / "examples"
    given.mkdir()
    try:
        page = demo.page(listener, name, speak_examples(given))
        with demo.running(page, *where, password, str(given), limits.max_bytes) as address:
            said = [f"steermoe: showing {name} at {address}"]
            if password is not None:
                said.append(f"steermoe: user {demo.USER}")
            if made_up:
                said.append(f"steermoe: password, made up for this run: {password}")
            print(*said, sep="\n", file=sys.stderr, flush=True)
            threading.Event().wait()
    finally:
        listener.close()


def _others(model: str | None, compare: list[str] | None, no_compare: bool) -> list[str]:
    """The adapters to compare with; their last names must tell them apart."""
    from steermoe.cli.options import DEFAULT_MODEL

    own = Path(model or DEFAULT_MODEL).absolute()
    if no_compare:
        return []
    if not compare:
        return [
            str(own.parent / name) for name in BESIDE if name != own.name and (own.parent / name).is_dir()
        ]
    names = [own.name, *(Path(other).name for other in compare)]
    double = next((name for name in names if names.count(name) > 1), None)
    if double is not None:
        raise ValueError(f"--compare: found two adapters called {double!r}; rename the folder of one")
    return compare


def _stop(*_: Any) -> None:
    raise KeyboardInterrupt

"""`steermoe demo`."""

import os
import signal
import sys
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from steermoe.cli.options import Device, Host, KeyFile, MaxMb, MaxSeconds, Model, Port, Yes

COMPARED = ("linear", "lora")  # folders next to the adapter's


Compare = Annotated[
    list[str] | None,
    typer.Option(help="adapter to compare with, may be repeated; default: linear and lora next to the model"),
]
NoCompare = Annotated[
    bool, typer.Option("--no-compare", help="no comparison: each adapter is one more model in memory")
]


def main(
    model: Model = None,
    compare: Compare = None,
    no_compare: NoCompare = False,
    device: Device = None,
    yes: Yes = False,
    host: Host = "127.0.0.1",
    port: Port = 7860,
    password_file: KeyFile = None,
    max_mb: MaxMb = 25.0,
    max_seconds: MaxSeconds = 60.0,
) -> None:
    """Show a model on a web page: transcripts, answers, pictures of its experts, and sliders to scale them.

    It works offline. By default it listens on this machine only; with another host, it asks for a password.
    Recordings are deleted at the end, or one to two hours after their upload.

    Examples:

        steermoe demo
        steermoe demo --model models/mini/steermoe --compare models/mini/linear --port 8080
        steermoe demo --host 0.0.0.0 --password-file password.txt
    """
    from steermoe.server.access import api_key

    if compare and no_compare:
        raise ValueError("--no-compare: --compare has no effect with it; leave one out")
    others = [] if no_compare else compared_models(model, compare)
    password, generated = api_key(host, password_file)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with suppress(KeyboardInterrupt), tempfile.TemporaryDirectory(prefix="steermoe-demo-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder  # read when gradio is imported
        from steermoe.cli.options import model_name, open_model
        from steermoe.demo.app import USER, create_page, serving
        from steermoe.demo.inference import Models, speak_examples

        name, size = model_name(model), int(max_mb * 2**20)
        loaded = {Path(other).name: open_model(other, device, yes) for other in others}
        models = Models(open_model(model, device, yes), loaded, max_seconds)
        examples = Path(folder) / "examples"
        examples.mkdir()
        page = create_page(models, name, speak_examples(examples))
        with serving(page, host, port, password, str(examples), size) as address:
            lines = [f"steermoe: showing {name} at {address}"]
            if password is not None:
                lines.append(f"steermoe: user {USER}")
            if generated:
                lines.append(f"steermoe: password, generated for this run: {password}")
            print(*lines, sep="\n", file=sys.stderr, flush=True)
            threading.Event().wait()
    print("steermoe: stopped", file=sys.stderr)


def compared_models(model: str | None, compare: list[str] | None) -> list[str]:
    """Return the adapters to compare with.

    Raises:
        ValueError: two have the same name.
    """
    from steermoe.cli.options import model_path

    own = Path(model_path(model)).absolute()
    if not compare:
        return [
            str(own.parent / name) for name in COMPARED if name != own.name and (own.parent / name).is_dir()
        ]
    names = [own.name, *(Path(other).name for other in compare)]
    if double := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"--compare: found two adapters called {double!r}; rename the folder of one")
    return compare

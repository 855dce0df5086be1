"""Options that commands share, and what they name: the model, and the recordings."""

import glob
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO

import typer

if TYPE_CHECKING:
    from steermoe.models.speech_llm import LoadLlm
    from steermoe.models.steermoe import SteerMoE

PRESETS = "a preset (whisper-large-v3, qwen2.5-7b-instruct, ...), a folder, or a hub id"
Params = Annotated[Path, typer.Option(help="configuration file")]
EncoderName = Annotated[str | None, typer.Option(help=f"encoder, instead of the configuration's: {PRESETS}")]
LlmName = Annotated[str | None, typer.Option(help=f"LLM, instead of the configuration's: {PRESETS}")]
Json = Annotated[bool, typer.Option("--json", help="print JSON")]
Model = Annotated[
    str | None,
    typer.Option(
        help="trained adapter: a folder, a hub id, small (real speech; the default) or mini (158 synthetic words)"
    ),
]
Yes = Annotated[bool, typer.Option("--yes", help="download missing base models without asking")]
Device = Annotated[
    str | None, typer.Option(help="device of the model (cpu, cuda, cuda:1); default: cuda if available")
]
Track = Annotated[
    int | None,
    typer.Option(min=1, help="audio track of a container; default: its own, unless that is silent"),
]
Silence = Annotated[
    float, typer.Option(min=0.1, max=10, help="duration of silence that ends a segment, in seconds")
]
Host = Annotated[str, typer.Option(help="address to listen at; all but this machine's own need a key")]
Port = Annotated[int, typer.Option(min=0, max=65535, help="port to listen at; 0: any free port")]
KeyFile = Annotated[
    Path | None,
    typer.Option(help="file with the API key, or password; default: STEERMOE_API_KEY, or a generated one"),
]
MaxMb = Annotated[float, typer.Option(min=0.001, help="maximum size of a request (MiB)")]
MaxSeconds = Annotated[float, typer.Option(min=0.1, help="maximum audio duration (s)")]
# The adapters of the repository that have a name.
SHIPPED = {"small": "pretrained/adapters/small/steermoe", "mini": "pretrained/adapters/mini/steermoe"}
DEFAULT_MODEL = "small"
STANDARD_INPUT = "-"
SHOWN = 5  # skipped files that are named


def model_path(source: str | None) -> str:
    """Return the folder or hub id of a model, given by that or by a name of SHIPPED; None: the default.

    Raises:
        ValueError: the adapter of that name is not here.
    """
    source = source or DEFAULT_MODEL
    if source not in SHIPPED or Path(source).is_dir():
        return source
    for root in (Path(), Path(__file__).parents[2]):  # the second where the package runs from a clone
        if (root / SHIPPED[source]).is_dir():
            return str(root / SHIPPED[source])
    raise ValueError(
        f"--model {source}: there is no {SHIPPED[source]}, which comes with the repository, here; give a folder, or a "
        "hub id"
    )


def model_name(source: str | None) -> str:
    """Return the last name of a model's folder or repository; of `.`, that of the current folder."""
    return Path(model_path(source)).absolute().name


def open_model(
    source: str | None, device: str | None, yes: bool = False, load: "LoadLlm | None" = None
) -> "SteerMoE":
    """Load a trained model on a device; base models that have a name are downloaded first, after consent.

    Args:
        source: as of `model_path`.
        yes: consent was given.
        load: as in `SteerMoE.from_pretrained`.

    Raises:
        ValueError: there is no such model or device, or the model cannot be loaded.
        UnavailableError: base models are missing, and there is no consent or no way to get them.
    """
    import torch

    from steermoe import weights
    from steermoe.models import checkpoint
    from steermoe.models.steermoe import SteerMoE

    path = model_path(source)
    base_models = checkpoint.sections(checkpoint.read(path).variant).values()
    try:
        weights.ensure((section.path for section in base_models), yes)
    except weights.UnavailableError as error:
        raise weights.UnavailableError(f"{error}; `--model mini` needs no download") from error
    model = SteerMoE.from_pretrained(path, load=load)
    name = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return model.to(name)
    except (RuntimeError, AssertionError) as error:  # torch built without CUDA asserts
        found = str(error).splitlines()[0]
        raise ValueError(f"--device: found {name!r}, which cannot be used: {found}") from error


def find_recordings(arguments: Sequence[str]) -> list[tuple[str, Path]]:
    """Return (name, path) of each recording: files, the audio in folders, files that match a pattern.

    A file in a folder is named from that folder on, another by its last name; where two files would have one name,
    all are named from the folder that they have in common. A file that does not exist is kept: opening it says so.

    Raises:
        ValueError: a folder has no audio, a pattern matches nothing, or standard input is given twice.
    """
    found: list[tuple[str, Path]] = []
    for argument in arguments:
        path = Path(argument)
        if path.is_dir():
            found += [(str(p.relative_to(path)), p) for p in _inside(path, argument)]
        elif glob.has_magic(argument) and not path.exists():
            there = glob.glob(argument, recursive=True)  # noqa: PTH207  absolute ones, too
            matches = sorted(path for path in map(Path, there) if path.is_file())
            if not matches:
                raise ValueError(f"{argument}: there is no such file, and as a pattern it matches none")
            found += [(match.name, match) for match in matches]
        else:
            found.append(("stdin" if argument == STANDARD_INPUT else path.name, path))
    if list(arguments).count(STANDARD_INPUT) > 1:
        raise ValueError("-: standard input can be read once only")
    files = {(name, os.path.abspath(path)) for name, path in found if str(path) != STANDARD_INPUT}  # noqa: PTH100
    if len(files) > len({name for name, _ in files}):
        root = os.path.commonpath([os.path.dirname(path) for _, path in files])  # noqa: PTH120
        return [
            (name if str(path) == STANDARD_INPUT else os.path.relpath(path, root), path)
            for name, path in found
        ]
    return found


def _inside(folder: Path, argument: str) -> list[Path]:
    """Return the audio in a folder and its subfolders, hidden files aside; report the other files."""
    from steermoe.audio.io import is_audio

    names = (p.relative_to(folder) for p in folder.rglob("*") if p.is_file())
    files = sorted(folder / name for name in names if not any(part.startswith(".") for part in name.parts))
    audio = [path for path in files if is_audio(path)]
    others = [str(path.relative_to(folder)) for path in files if path not in set(audio)]
    if not audio:
        raise ValueError(f"{argument}: a folder without audio; {len(files)} other files are there")
    if others:
        shown = ", ".join(others[:SHOWN]) + ", ..." * (len(others) > SHOWN)
        print(f"steermoe: {argument}: skipped {len(others)} files without audio: {shown}", file=sys.stderr)
    return audio


def source(path: Path) -> "Path | BinaryIO":
    """Return a path as it is; standard input for `-`."""
    return sys.stdin.buffer if str(path) == STANDARD_INPUT else path

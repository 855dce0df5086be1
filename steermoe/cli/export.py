"""`steermoe export`."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False, rich_markup_mode="markdown")

Model = Annotated[str, typer.Option(help="trained adapter, a folder or a hub id")]
Out = Annotated[Path, typer.Option(help="output folder, which must not exist")]
Int8 = Annotated[
    bool, typer.Option("--int8", help="quantize matrices to int8: a third of the size, a few errors")
]
Repository = Annotated[str, typer.Argument(help="hub repository owner/name; created if it does not exist")]
Evaluations = Annotated[
    Path | None, typer.Option(help="output of stage eval, for the card; default: a card without figures")
]
Private = Annotated[bool, typer.Option("--private", help="make the repository private")]
Merge = Annotated[
    bool, typer.Option("--merged", help="include the frozen models, as `steermoe export merged`")
]
Folder = Annotated[
    Path | None, typer.Option(help="write the files into this folder instead of uploading them")
]


@app.callback()
def main() -> None:
    """Export a trained model: to one folder with all that it needs, to ONNX Runtime, or to the hub.

    Examples:

        steermoe export merged --model models/mini/lora --out merged

        steermoe export onnx --model models/mini/steermoe --out exported

        steermoe export hub you/mini --model models/mini/steermoe --evaluations reports/mini/evaluations/steermoe
    """


@app.command()
def merged(model: Model, out: Out) -> None:
    """Write a folder with adapter, encoder and LLM that needs no other files and no network.

    Low-rank adapters (LoRA) are merged into the weights that they adapt, and the method is then the one without them.
    Steering depends on the audio, so it stays as it is. LLMs in fewer bits (llm.quantization) are refused.

    Examples:

        steermoe export merged --model models/mini/lora --out merged
        steermoe transcribe talk.wav --model merged
    """
    _check_new(out)
    from steermoe.export.merge import write_merged

    _print(out, write_merged(model, out))


@app.command()
def onnx(model: Model, out: Out, int8: Int8 = False) -> None:
    """Write ONNX graphs: encoder with steering and projector, and the LLM, with dynamic lengths.

    `steermoe.export.onnx_model.OnnxModel(folder).transcribe(...)` runs them in ONNX Runtime, without the original
    weights. Encoders of log-mel features (Whisper), in float32.

    Examples:

        steermoe export onnx --model models/mini/steermoe --out exported
        steermoe export onnx --model models/mini/steermoe --out exported-int8 --int8
    """
    _check_new(out)
    from steermoe.export.onnx_export import export_onnx
    from steermoe.models.steermoe import SteerMoE

    _print(out, export_onnx(SteerMoE.from_pretrained(model), out, int8))


@app.command()
def hub(
    repository: Repository, model: Model, evaluations: Evaluations = None, private: Private = False,
    merge: Merge = False, folder: Folder = None,
) -> None:  # fmt: skip
    """Publish an adapter with a model card that has its evaluation: every figure with its protocol, n and interval.

    The frozen models are included with --merged, and where --model is merged already; the card says whether.

    Examples:

        steermoe export hub you/mini --model models/mini/steermoe --evaluations reports/mini/evaluations/steermoe
        steermoe export hub you/mini --model models/mini/lora --merged
        steermoe export hub you/mini --model models/mini/steermoe --folder card   # to look at it first
    """
    if private and folder is not None:
        raise ValueError("--private: no effect with --folder, which uploads nothing; leave one out")
    from steermoe.export.publication import publish, write_publication

    if folder is None:
        print(publish(model, repository, private, evaluations, merge))
        return
    write_publication(model, repository, folder, evaluations, merge)
    print(f"{folder}: the files for {repository}")


def _check_new(out: Path) -> None:
    if out.exists():  # before anything is loaded
        raise FileExistsError(f"{out} exists; name another folder, or remove it")


def _print(out: Path, sizes: dict[str, int]) -> None:
    print(f"{out}: " + ", ".join(f"{part} {size / 1e6:.1f} MB" for part, size in sizes.items()))

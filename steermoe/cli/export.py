"""`steermoe export`."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False, rich_markup_mode="markdown")

Model = Annotated[str, typer.Option(help="a trained adapter: a folder, or a hub id")]
Out = Annotated[Path, typer.Option(help="the folder to make; it must not exist")]


@app.callback()
def main() -> None:
    """Take a trained model elsewhere: one folder with all that it needs, ONNX Runtime, or the hub.

    Examples:

        steermoe export merged --model models/mini/lora --out merged

        steermoe export onnx --model models/mini/steermoe --out exported

        steermoe export hub you/mini --model models/mini/steermoe --evaluations reports/mini/evaluations/steermoe
    """


@app.command()
def merged(model: Model, out: Out) -> None:
    """Write a folder that holds adapter, encoder and LLM, and needs nothing else at hand: no other files, no network.

    Low-rank adapters (LoRA) are folded into the weights that they adapt, and the method is then the one without them.
    Steering depends on what is heard, so it stays as it is. LLMs in fewer bits (llm.quantization) are refused.

    Examples:

        steermoe export merged --model models/mini/lora --out merged
        steermoe transcribe talk.wav --model merged
    """
    _must_be_new(out)
    from steermoe.export.merge import write_merged

    _say(out, write_merged(model, out))


@app.command()
def onnx(
    model: Model,
    out: Out,
    int8: Annotated[
        bool, typer.Option("--int8", help="matrices as int8: a third of the size, other words now and then")
    ] = False,
) -> None:
    """Write ONNX graphs: encoder with steering and projection, and the LLM, with dynamic lengths.

    `steermoe.export.onnx_model.OnnxModel(folder).transcribe(...)` runs them in ONNX Runtime, without the weights
    that they were made of. Encoders of log-mel features (Whisper), in float32.

    Examples:

        steermoe export onnx --model models/mini/steermoe --out exported
        steermoe export onnx --model models/mini/steermoe --out exported-int8 --int8
    """
    _must_be_new(out)
    from steermoe.export.onnx_export import export_onnx
    from steermoe.models.steermoe import SteerMoE

    _say(out, export_onnx(SteerMoE.from_pretrained(model), out, int8))


@app.command()
def hub(
    repository: Annotated[str, typer.Argument(help="where to: owner/name; made if it is not there")],
    model: Model,
    evaluations: Annotated[
        Path | None,
        typer.Option(help="what stage eval wrote about it, for the card; default: a card without figures"),
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="make the repository private")] = False,
    merge: Annotated[
        bool, typer.Option("--merged", help="with its frozen models, as `steermoe export merged` makes it")
    ] = False,
    folder: Annotated[
        Path | None, typer.Option(help="write what would be uploaded into this folder instead")
    ] = None,
) -> None:
    """Publish an adapter with a model card that has its evaluation: every figure with its protocol, n and interval.

    The frozen models are part of it with --merged, and where --model is merged already; the card says whether.

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
    print(f"{folder}: what {repository} would hold")


def _must_be_new(out: Path) -> None:
    if out.exists():  # before anything is loaded
        raise FileExistsError(f"{out} exists; name another folder, or remove it")


def _say(out: Path, sizes: dict[str, int]) -> None:
    print(f"{out}: " + ", ".join(f"{part} {size / 1e6:.1f} MB" for part, size in sizes.items()))

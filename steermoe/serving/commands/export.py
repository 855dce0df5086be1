"""`steermoe export`."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(add_completion=False, rich_markup_mode="markdown")

Model = Annotated[str, typer.Option(help="a trained adapter: a folder, or a hub id")]


@app.callback()
def main() -> None:
    """Take a trained model elsewhere: ONNX Runtime, or the hub.

    Examples:

        steermoe export onnx --model models/mini/steermoe --out exported

        steermoe export hub you/mini --model models/mini/steermoe --evaluations reports/mini/evaluations/steermoe
    """


@app.command()
def onnx(
    model: Model,
    out: Annotated[Path, typer.Option(help="the folder to make; it must not exist")],
    int8: Annotated[
        bool, typer.Option("--int8", help="matrices as int8: a third of the size, other words now and then")
    ] = False,
) -> None:
    """Write ONNX graphs: encoder with steering and projection, and the LLM, with dynamic lengths.

    `steermoe.serving.onnx_model.OnnxModel(folder).transcribe(...)` runs them in ONNX Runtime, without the weights
    that they were made of. Encoders of log-mel features (Whisper), in float32.

    Examples:

        steermoe export onnx --model models/mini/steermoe --out exported
        steermoe export onnx --model models/mini/steermoe --out exported-int8 --int8
    """
    if out.exists():  # before anything is loaded
        raise FileExistsError(f"{out} exists; name another folder, or remove it")
    from steermoe.models.steermoe import SteerMoE
    from steermoe.serving.export import export_onnx

    sizes = export_onnx(SteerMoE.from_pretrained(model), out, int8)
    print(f"{out}: " + ", ".join(f"{part} {size / 1e6:.1f} MB" for part, size in sizes.items()))


@app.command()
def hub(
    repository: Annotated[str, typer.Argument(help="where to: owner/name; made if it is not there")],
    model: Model,
    evaluations: Annotated[
        Path | None,
        typer.Option(help="what stage eval wrote about it, for the card; default: a card without figures"),
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="make the repository private")] = False,
    folder: Annotated[
        Path | None, typer.Option(help="write adapter and card into this folder instead of uploading them")
    ] = None,
) -> None:
    """Publish an adapter with a model card that has its evaluation: every figure with its protocol, n and interval.

    Examples:

        steermoe export hub you/mini --model models/mini/steermoe --evaluations reports/mini/evaluations/steermoe
        steermoe export hub you/mini --model models/mini/steermoe --folder card   # to look at it first
    """
    from steermoe.models.steermoe import SteerMoE
    from steermoe.serving.card import model_card

    loaded = SteerMoE.from_pretrained(model)
    card = str(model_card(loaded, repository, evaluations))
    if folder is None:
        print(loaded.push_to_hub(repository, private, card))
        return
    from steermoe.data.staging import write_text

    loaded.save_pretrained(folder)
    write_text(folder / "README.md", card)
    print(f"{folder}: adapter and card of {repository}")

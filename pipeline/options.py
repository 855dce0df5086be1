"""The options that the stages share."""

from pathlib import Path
from typing import Annotated

import typer

Params = Annotated[Path, typer.Option(help="the configuration")]
Source = Annotated[Path, typer.Option(help="folder that `download` filled")]
Shards = Annotated[Path, typer.Option(help="folder of parquet shards")]
Model = Annotated[Path, typer.Option(help="folder of a trained adapter")]
Models = Annotated[Path, typer.Option(help="folder of trained adapters, one a variant")]
Variants = Annotated[Path, typer.Option(help="folder of resolved variants")]
VariantFile = Annotated[Path, typer.Option(help="resolved variant, as `configure` writes it")]
BaseModels = Annotated[Path, typer.Option(help="folder of what the frozen models are, as `base` writes it")]
Inputs = Annotated[
    Path, typer.Option(help="folder of what each variant reads, with hashes; replaced as a whole")
]
Compared = Annotated[
    str | None, typer.Option(help="variants to select, with commas, or '*' for all; default: as they are")
]
Chosen = Annotated[
    str | None, typer.Option(help="corpora to select, with commas; default: what the variants need")
]
Reference = Annotated[str | None, typer.Option(help="variant that p-values are against; default: as it is")]
Evaluations = Annotated[Path, typer.Option(help="folder of evaluations")]
History = Annotated[Path, typer.Option(help="learning curve, or the folder of all variants' curves")]
Timing = Annotated[Path, typer.Option(help="duration of training, or the folder of all variants' durations")]
Run = Annotated[Path, typer.Option(help="JSON file of the MLflow run's id")]
Metrics = Annotated[Path, typer.Option(help="JSON file of headline figures")]
Out = Annotated[Path, typer.Option(help="what is written; replaced as a whole")]
Workers = Annotated[int | None, typer.Option(help="processes that work at a time; default: one a core")]
LoaderWorkers = Annotated[int, typer.Option(help="processes that load data; 0: none but this one")]
FeatureCache = Annotated[
    float, typer.Option(min=0, help="gigabytes of outputs of an untrained encoder that are kept; 0: none")
]
Steps = Annotated[int, typer.Option(min=1, help="optimizer steps of every trial")]
Names = Annotated[
    str | None, typer.Option(help="names of variants, with commas; default: the selected variants")
]

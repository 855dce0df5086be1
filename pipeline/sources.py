"""Stages `stamp` and `download`: what the profile reads from outside the repository."""

from pathlib import Path

from pipeline.options import Out, Params

PLACES = ("path", "mirror")  # settings of a corpus that name a file or folder


def stamp(out: Out, params: Params = Path("params.yaml")) -> None:
    """Write the state of folders, archives, models and adapters into OUT, a file for each stage that reads them.

    It runs in every `dvc repro`, and reads no recordings: of corpora, sizes and times are compared; of models and
    adapters, the content of all but large files. What is not there, or on the network, has no state.
    """
    import json

    from steermoe import config
    from steermoe.atomic_io import project_root, write_text
    from steermoe.data import filestate

    settings = config.load(params)
    variants = [settings.variant(name) for name in settings.compare]
    models = {part.path for chosen in (settings, *variants) for part in (chosen.encoder, chosen.llm)}
    models |= {chosen.video.encoder.path for chosen in (settings, *variants) if chosen.video is not None}
    adapters = {
        variant.training.distillation.teacher
        for variant in variants
        if variant.training.distillation is not None
    }
    adapters |= {getattr(variant.training, "init_from", None) or "" for variant in variants} - {""}
    stamps = {
        f"corpora/{name}": {
            place: filestate.glance(project_root() / place)
            for place in (getattr(section, key, None) for key in PLACES)
            if place is not None
        }
        for name, section in settings.corpora.items()
    }
    for name, folders in (("models", models), ("adapters", adapters)):
        stamps[name] = {folder: filestate.digests(Path(folder)) for folder in sorted(folders)}
    for name, state in stamps.items():
        write_text(out / f"{name}.json", json.dumps(state, indent=0, sort_keys=True) + "\n")


def download(corpus: str, out: Out, params: Params = Path("params.yaml")) -> None:
    """Fetch CORPUS into OUT, as the selected profile says."""
    from steermoe import config, corpora

    corpora.fetch(corpus, config.load(params).corpora[corpus], out)

"""Make what stands in for the models and archives of a profile that is a rehearsal."""

from pathlib import Path

from pipeline.options import Out, Params


def main(out: Out, params: Params = Path("params.yaml")) -> None:
    """Write tiny models into OUT/models, and small archives of every corpus selected into OUT/<corpus>.

    Of a profile that is no rehearsal, notes that there is nothing: so every stage's dependencies are there.
    """
    from steermoe import config
    from steermoe.atomic_io import write_text

    settings = config.load(params)
    rehearsal = settings.rehearsal
    if rehearsal is not None:
        from steermoe.rehearsal.archives import make_archives
        from steermoe.rehearsal.models import make_models

        make_models(rehearsal.seed, out / "models")
        make_archives(settings.corpora, rehearsal, out)
    note = (
        "nothing: the profile is no rehearsal" if rehearsal is None else "made here; no figure means anything"
    )
    for name in ("models", *settings.corpora):
        write_text(out / name / "made.txt", f"{note}\n")
    print(f"{settings.profile}: {note}")

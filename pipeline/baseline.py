"""Score what needs no training on one corpus: the encoder's own decoder, the cascade, and answers without audio."""

from pathlib import Path

from pipeline.options import Out, Params, Shards


def main(corpus: str, shards: Shards, out: Out, params: Params = Path("params.yaml")) -> None:
    """Score on the test splits of CORPUS the encoder's own decoder, the cascade, a constant and the LLM without audio.

    The cascade is the LLM's answer to the decoder's transcript, for all tasks but transcribing. Neither is scored on
    rows in languages that the decoder does not know; their number is reported.
    """
    import sys

    import polars as pl

    from steermoe import config
    from steermoe.data.filters import skipped_reason
    from steermoe.data.shards import read_rows
    from steermoe.evaluation import predictions as results

    if reason := skipped_reason(shards):
        for name in ("encoder", "cascade", "text-only", "constant"):
            results.write_skipped(out / name, reason)
        return
    from steermoe import distributed as processes
    from steermoe.evaluation import baselines, decoders, preservation
    from steermoe.evaluation.evaluator import measure
    from steermoe.evaluation.predictions import remarks, summarise
    from steermoe.models.steermoe import SteerMoE

    settings = config.load(params)
    evaluation, seed, device = settings.evaluation.of(corpus), settings.seed, processes.device()
    generation = settings.generation.model_copy(update={"ctc_weight": 0.0})  # there is no CTC head
    # Only the frozen parts and the prompts are used, which are the profile's: any variant will do.
    shared = {"encoder": settings.encoder, "llm": settings.llm, "prompts": settings.prompts}
    model = SteerMoE.from_config(settings.variant(settings.reference).model_copy(update=shared)).to(device)
    tasks = preservation.text_tasks(model, settings.evaluation, generation, seed)
    if tasks is not None:
        results.write_json(out / results.TEXT_TASKS, tasks)
    section = settings.corpora[corpus]
    test, train = (read_rows(shards, splits) for splits in (section.test, section.train))
    systems = {
        "text-only": (baselines.text_only(model, generation, seed), test),
        "constant": (baselines.constant(train, test, evaluation, seed), test),
    }
    own = decoders.own_decoder(model.config.encoder, generation, seed, device)
    if own is not None:
        is_spoken = pl.col("task") == "transcribe"
        read = baselines.cascade(model, own, generation, seed)
        for name, system, rows in (
            ("encoder", own, test.filter(is_spoken)),
            ("cascade", read, test.filter(~is_spoken)),
        ):
            system, known, left_out = decoders.decodable(system, rows)
            systems[name] = (system, known)
            if left_out:
                print(f"{corpus}: {name} is not scored on {left_out}, of {len(rows)}", file=sys.stderr)
    for name, (system, rows) in systems.items():
        if rows.is_empty():  # a corpus of questions, or of languages that the decoder does not know
            continue
        predictions = measure(system, rows, evaluation, seed)
        summary = summarise(predictions, evaluation)
        results.write_result(out / name, predictions, summary)
        for remark in remarks(corpus, summary):
            print(f"{name}: {remark}", file=sys.stderr)

"""Decode and score one variant on one corpus."""

import sys
from pathlib import Path

from pipeline.options import Model, Out, Params, Shards


def main(corpus: str, model: Model, shards: Shards, out: Out, params: Params = Path("params.yaml")) -> None:
    """Score the adapter MODEL on the test splits of CORPUS, with its own and with shuffled audio.

    The processes of the profile's `training.distributed` share the rows.
    """
    from steermoe import config
    from steermoe import distributed as processes
    from steermoe.data.filters import skipped_reason
    from steermoe.data.shards import read_rows
    from steermoe.evaluation import predictions as results

    if reason := skipped_reason(shards):
        results.write_skipped(out, reason)
        return
    settings = config.load(params)
    with processes.shared(processes.count(settings.training.distributed)) as is_ours:
        if not is_ours:
            return
        from steermoe.evaluation.evaluator import evaluate
        from steermoe.evaluation.predictions import remarks, summarise
        from steermoe.evaluation.preservation import text_tasks
        from steermoe.models.steermoe import SteerMoE
        from steermoe.training.mlflow_logger import Tracker

        is_first = processes.world().rank == 0
        loaded = SteerMoE.from_pretrained(model).to(processes.device())
        if is_first and loaded.config.llm_lora is not None:  # what the adapters inside the LLM cost it
            scores = text_tasks(loaded, settings.evaluation, settings.generation, settings.seed)
            if scores is not None:
                results.write_json(out / results.TEXT_TASKS, scores)
        rows = read_rows(shards, settings.corpora[corpus].test)
        evaluation = settings.evaluation.of(corpus)
        predictions = evaluate(loaded, rows, evaluation, settings.generation, settings.seed)
        if not is_first:
            return
        summary = summarise(predictions, evaluation)
        results.write_result(out, predictions, summary)
        for remark in remarks(corpus, summary):
            print(remark, file=sys.stderr)
        tracker = Tracker(settings.profile)
        tracker.attach(loaded.config, model)
        tracker.log_inputs(shards.parent, {corpus: settings.corpora[corpus].test}, "test")
        tracker.log(results.figures(corpus, summary))
        tracker.log_table(f"predictions/{corpus}.json", *results.samples(predictions.frame, settings.seed))
        tracker.tag({f"protocol.{corpus}.{name}": str(value) for name, value in summary["protocol"].items()})
        tracker.finish()

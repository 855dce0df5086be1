"""The log of a training as a table, and progress where there is no terminal, by a clock that the test moves."""

import math

from steermoe.training import reporting
from steermoe.training.reporting import ProgressReport


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def log_of(*dev_losses: float) -> list[dict]:
    log = []
    for place, loss in enumerate(dev_losses):
        log.append({"loss": 4.0 - place, "step": 10 * place + 5, "lr_projection": 0.1, "grad_norm": 2.0})
        log.append({"loss": 2.0 - place, "step": 10 * place + 10, "lr_projection": 0.2, "grad_norm": 1.0})
        log.append({"dev_loss": loss, "dev_token_accuracy": 0.5, "step": 10 * place + 10})
    return log


def test_the_best_is_the_lowest_and_the_first_of_equals():
    log = log_of(3.0, 1.0, 2.0, 1.0)
    assert reporting.best(log) == log[5]
    assert reporting.evaluations_since_best(log) == 2
    assert reporting.best([]) is None
    assert reporting.evaluations_since_best([]) == 0
    assert reporting.evaluations_since_best(log_of(1.0)) == 0


def test_a_row_for_each_evaluation_with_the_mean_loss_since_the_row_before():
    rows = reporting.table(log_of(3.0, 1.0))
    assert [row["step"] for row in rows] == [10, 20]
    assert [row["train_loss"] for row in rows] == [3.0, 2.0]
    assert [row["lr_projection"] for row in rows] == [0.2, 0.2]
    assert rows[0]["lr_lora"] is None
    log = [{"loss": 1.0, "step": 3}, {"loss": 5.0, "step": 4}, {"dev_loss": 1.0, "step": 4}]
    assert math.isclose(reporting.table(log)[0]["train_loss"], 2.0)  # weighted by steps
    header, first, *_ = reporting.to_csv(rows).splitlines()
    assert header.split(",") == list(reporting.COLUMNS)
    assert first.startswith("10,3.0,3.0,0.5,0.2,,,,,1.0")


def test_a_line_after_the_first_step_and_every_30_seconds(capsys):
    clock = Clock()
    report = ProgressReport("variant", 101, clock=clock)
    report.begin(0)
    for number in range(1, 81):
        clock.now += 1
        report.stepped(number, 1 / number, 2e-3)
    found = capsys.readouterr()
    assert found.out == ""
    starts = ["variant: step 1/101", "variant: step 31/101", "variant: step 61/101"]
    assert [line.split("  ")[0] for line in found.err.splitlines()] == starts
    figures = ["loss 0.0323", "learning rate 2.00e-03", "1.00 steps/s", "0:01:10 left at most"]
    assert found.err.splitlines()[1].split("  ")[1:] == figures
    clock.now += 20
    for batch in range(1, 60):
        clock.now += 1
        report.evaluating(80, batch, 60)
    words = [line.split(", ")[1] for line in capsys.readouterr().err.splitlines()]
    assert words == ["batch 1/60", "batch 31/60"]


def test_other_processes_print_nothing(capsys):
    report = ProgressReport("variant", 101, is_first=False, clock=Clock())
    report.begin(1)
    report.stepped(2, 1.0, 2e-3)
    report.evaluating(2, 1, 2)
    report.evaluated({"step": 2, "train_loss": 1.0, "dev_loss": 1.0, "dev_token_accuracy": 0.5})
    found = capsys.readouterr()
    assert found.out == found.err == ""

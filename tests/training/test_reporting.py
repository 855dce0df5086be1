"""The log of a training as a table, and progress where there is no terminal, by a clock that the test moves."""

import math
import threading
from collections.abc import Sequence

import pytest

from steermoe.training import reporting
from steermoe.training.reporting import ProgressReport


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def log_of(*dev_losses: float, wers: Sequence[float] = ()) -> list[dict]:
    log = []
    for place, loss in enumerate(dev_losses):
        log.append({"loss": 4.0 - place, "step": 10 * place + 5, "lr_projection": 0.1, "grad_norm": 2.0})
        log.append({"loss": 2.0 - place, "step": 10 * place + 10, "lr_projection": 0.2, "grad_norm": 1.0})
        log.append({"dev_loss": loss, "dev_token_accuracy": 0.5, "step": 10 * place + 10})
    for place, wer in enumerate(wers):
        log[3 * place + 2]["dev_wer"] = wer
    return log


def test_the_best_is_the_lowest_and_the_first_of_equals():
    log = log_of(3.0, 1.0, 2.0, 1.0)
    assert reporting.best(log) == log[5]
    assert reporting.evaluations_since_best(log) == 2
    assert reporting.best([]) is None
    assert reporting.evaluations_since_best([]) == 0
    assert reporting.evaluations_since_best(log_of(1.0)) == 0


def test_where_the_wer_is_measured_it_decides_and_the_loss_among_equals():
    log = log_of(3.0, 2.0, 1.0, 2.5, wers=[0.5, 0.4, 0.6, 0.4])
    assert reporting.best(log) == log[5]
    assert reporting.evaluations_since_best(log) == 2
    rows = reporting.table(log)
    assert [row["dev_wer"] for row in rows] == [0.5, 0.4, 0.6, 0.4]
    assert reporting.to_csv(rows).startswith("step,train_loss,dev_loss,dev_token_accuracy,dev_wer,")


def test_a_row_for_each_evaluation_with_the_mean_loss_since_the_row_before():
    rows = reporting.table(log_of(3.0, 1.0))
    assert [row["step"] for row in rows] == [10, 20]
    assert [row["train_loss"] for row in rows] == [3.0, 2.0]
    assert [row["lr_projection"] for row in rows] == [0.2, 0.2]
    assert rows[0]["lr_lora"] is None
    log = [{"loss": 1.0, "step": 3}, {"loss": 5.0, "step": 4}, {"dev_loss": 1.0, "step": 4}]
    assert math.isclose(reporting.table(log)[0]["train_loss"], 2.0)  # weighted by steps
    header, first, *_ = reporting.to_csv(rows).splitlines()
    assert header.split(",") == [column for column in reporting.COLUMNS if column != "dev_wer"]
    assert first.startswith("10,3.0,3.0,0.5,0.2,,,,,1.0")


AUDIO = [2.0 * step for step in range(1, 102)]  # seconds read after each step


def test_a_line_after_the_first_step_and_every_30_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    report = ProgressReport("variant", 101, AUDIO, clock=clock)
    with report.running(0):
        for number in range(1, 81):
            clock.now += 1
            report.stepped(number, 1 / number, 2e-3)
        lines = capsys.readouterr().out.splitlines()
        starts = ["variant: step 1/101", "variant: step 31/101", "variant: step 61/101"]
        assert [line.split("  ")[0] for line in lines] == starts
        figures = [
            "loss 0.0323", "learning rate 2.00e-03", "1 steps/s", "2 audio s/s", "0:01:10 left at most",
        ]  # fmt: skip
        assert lines[1].split("  ")[1:] == figures
        clock.now += 20
        for batch in range(1, 60):
            clock.now += 1
            report.evaluating(80, "evaluating", batch, 60)
        words = [line.split(", ")[1] for line in capsys.readouterr().out.splitlines()]
        assert words == ["batch 1/60", "batch 31/60"]


def test_a_step_that_takes_long_is_no_silence(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ticked = threading.Event()
    with monkeypatch.context() as patched:
        patched.setattr(ProgressReport, "tick", lambda _: ticked.set())
        with ProgressReport("variant", 101, AUDIO).running(0):
            assert ticked.wait(60)  # by a thread of its own, which ends with the context
    assert "progress" not in [thread.name for thread in threading.enumerate()]

    clock = Clock()
    report = ProgressReport("variant", 101, AUDIO, clock=clock)
    with report.running(7):
        assert capsys.readouterr().out == "variant: resumed at step 7 of 101\n"
        clock.now += 29
        report.tick()
        assert capsys.readouterr().out == ""
        clock.now += 1
        report.tick()
        assert capsys.readouterr().out == "variant: step 7/101  no step is done yet\n"
        report.stepped(8, 0.5, 2e-3)
        said = capsys.readouterr().out
        clock.now += 31
        report.tick()
        assert capsys.readouterr().out == said != ""


def test_other_processes_print_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    report = ProgressReport("variant", 101, AUDIO, is_first=False, clock=Clock())
    with report.running(1):
        report.stepped(2, 1.0, 2e-3)
        report.evaluating(2, "evaluating", 1, 2)
        report.evaluated({"step": 2, "train_loss": 1.0, "dev_loss": 1.0, "dev_token_accuracy": 0.5})
    found = capsys.readouterr()
    assert found.out == found.err == ""

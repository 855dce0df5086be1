"""The log of a training, read."""

import math

from steermoe.training import history


def log_of(*dev_losses: float) -> list[dict]:
    log = []
    for place, loss in enumerate(dev_losses):
        log.append({"loss": 4.0 - place, "step": 10 * place + 5, "lr_projection": 0.1, "grad_norm": 2.0})
        log.append({"loss": 2.0 - place, "step": 10 * place + 10, "lr_projection": 0.2, "grad_norm": 1.0})
        log.append({"dev_loss": loss, "dev_token_accuracy": 0.5, "step": 10 * place + 10})
    return log


def test_the_best_is_the_lowest_and_the_first_of_equals():
    log = log_of(3.0, 1.0, 2.0, 1.0)
    assert history.best(log) == log[5]
    assert history.evaluations_since_best(log) == 2
    assert history.best([]) is None
    assert history.evaluations_since_best([]) == 0
    assert history.evaluations_since_best(log_of(1.0)) == 0


def test_a_row_an_evaluation_with_the_mean_loss_since_the_row_before():
    rows = history.table(log_of(3.0, 1.0))
    assert [row["step"] for row in rows] == [10, 20]
    assert [row["train_loss"] for row in rows] == [3.0, 2.0]
    assert [row["lr_projection"] for row in rows] == [0.2, 0.2]
    assert rows[0]["lr_lora"] is None


def test_windows_of_unequal_length_weigh_by_their_steps():
    log = [{"loss": 1.0, "step": 3}, {"loss": 5.0, "step": 4}, {"dev_loss": 1.0, "step": 4}]
    assert math.isclose(history.table(log)[0]["train_loss"], 2.0)


def test_csv_has_every_column_for_every_method():
    header, first, *_ = history.to_csv(history.table(log_of(3.0))).splitlines()
    assert header.split(",") == list(history.COLUMNS)
    assert first.startswith("10,3.0,3.0,0.5,0.2,,,,,1.0")

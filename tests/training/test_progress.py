"""What a training says where there is no terminal, by a clock that the test moves."""

import types

import pytest
from transformers import TrainerState, TrainingArguments

from steermoe.training.progress import ProgressLines


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def step(lines: ProgressLines, state: TrainerState, number: int) -> None:
    state.global_step, lines.loss = number, 1 / number
    schedule = types.SimpleNamespace(get_last_lr=lambda: [2e-3, 1e-2])
    lines.on_step_end(TrainingArguments(output_dir="."), state, None, lr_scheduler=schedule)


def begun(clock: Clock, first: bool = True, **options: bool) -> tuple[ProgressLines, TrainerState]:
    lines = ProgressLines("variant", clock, **options)
    state = TrainerState(max_steps=101, is_world_process_zero=first)
    lines.on_train_begin(TrainingArguments(output_dir="."), state, None)
    return lines, state


def test_a_line_after_the_first_step_and_every_30_seconds(clock, capsys):
    lines, state = begun(clock, terminal=False)
    for number in range(1, 81):
        clock.now += 1
        step(lines, state, number)
    found = capsys.readouterr()
    assert found.out == ""
    assert [line.split("  ")[0] for line in found.err.splitlines()] == [
        "variant: step 1/101", "variant: step 31/101", "variant: step 61/101",
    ]  # fmt: skip
    assert found.err.splitlines()[1].split("  ")[1:] == [
        "loss 0.0323", "learning rate 2.00e-03", "1.00 steps/s", "0:01:10 left at most",
    ]  # fmt: skip
    clock.now += 20
    for batch in range(1, 60):
        clock.now += 1
        lines.evaluating(state, batch, 60)
    words = [line.split(", ")[1] for line in capsys.readouterr().err.splitlines()]
    assert words == ["batch 1/60", "batch 31/60"]


@pytest.mark.parametrize(("first", "terminal"), [(False, False), (True, True)])
def test_other_processes_and_a_terminal_have_no_lines(first, terminal, clock, capsys):
    lines, state = begun(clock, first, terminal=terminal)
    step(lines, state, 1)
    lines.evaluating(state, 1, 2)
    lines.close()
    assert capsys.readouterr().err == ""

"""The training loop: batch, forward, backward, clip, step, schedule; evaluate, checkpoint, log, stop."""

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset
from transformers import get_scheduler, set_seed

from steermoe.config import Distributed
from steermoe.data.batching import bucketed_batches
from steermoe.data.dataset import Batch, collate
from steermoe.distributed import ONE_PROCESS, PreemptedError, SigtermFlag, gathered
from steermoe.models.steermoe import SteerMoE
from steermoe.training import checkpointing, reporting
from steermoe.training.dev_wer import DevWer
from steermoe.training.distillation import Teacher
from steermoe.training.engine import Engine
from steermoe.training.optim import adamw, current_rates
from steermoe.training.reporting import MetricsReport, ProgressReport, StepTimer
from steermoe.training.rows import DivergedError, report_divergence
from steermoe.training.sampler import SharedDataset, StepBatches, counted_tokens, share, total_steps

STEERING_PARTS = ("vectors", "router")
REPEAT = "repeat the command, it resumes from the last checkpoint"
Examples = tuple[Dataset, Sequence[float]]
Tensors = dict[str, torch.Tensor]


class Trainer:
    """Trains what the method of a model's variant trains; checkpoints hold that, and what an exact resume needs.

    Args:
        model: built from its variant.
        train, dev: a dataset whose items `collate` takes, and the seconds of each item.
        run: folder of checkpoints, for this training alone.
        workers: processes that load data; 0 loads in this one.
        distributed: how the processes share the work.
        describe: describes rows, given by number, where the training diverges.
        teacher: what the model learns from in addition to the labels, if anything.
        wer: the rows of `dev` whose WER chooses the best weights; None: their loss chooses.
        tracker: takes metrics, in the first process.

    Attributes:
        step: optimizer steps that are done.
        log: an entry for every log and every evaluation, each with its step.
        best_weights: of the best evaluation so far, on the CPU, whole.
        trained: all trained parameters by name.

    Raises:
        ValueError: float16 without a GPU or under ZeRO; warm-up or the first evaluation come after the last step.
    """

    def __init__(
        self,
        model: SteerMoE,
        train: Examples,
        dev: Examples,
        run: Path,
        *,
        workers: int = 0,
        distributed: Distributed = ONE_PROCESS,
        describe: Callable[[Sequence[int]], list[dict[str, Any]]] = list,
        teacher: Teacher | None = None,
        wer: DevWer | None = None,
        tracker: Any = None,
    ) -> None:
        self.model, self.variant, self.run = model, model.config, run
        self.describe, self.teacher, self.wer = describe, teacher, wer
        training, seed = self.variant.training, self.variant.seed
        self.max_steps = total_steps(training, train[1], seed, model.encoder.window_seconds)
        # A divisor of eval_steps: no evaluation falls between two logs.
        self.log_steps = max(count for count in range(1, 26) if training.eval_steps % count == 0)
        set_seed(seed)
        self.trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        parts = model.parameter_groups()
        self.sizes = {part: sum(p.numel() for p in group) for part, group in parts.items()}
        self._steering = [p for part in STEERING_PARTS for p in parts.get(part, [])]
        optimizer = adamw(parts, training.learning_rates, training.weight_decay)
        self.engine = Engine(model, optimizer, training.precision, distributed)
        self.schedule = get_scheduler(training.schedule, optimizer, training.warmup_steps, self.max_steps)
        self._ctc_steps = 0 if training.ctc is None else training.ctc.steps
        self._workers, self._train, self._dev = workers, train, dev
        self.step, self.log, self.best_weights = 0, [], {}
        self.timer, self._sigterm, self._stops = StepTimer(), SigtermFlag(), False
        self._logged = 0  # step of the last log
        self._loss_sum = torch.zeros((), device=self.engine.device)  # since then
        self._figures: dict[str, float | torch.Tensor] = {}  # of the last step
        self._rows: list[int] = []  # of the step that is computed
        audio = self._batches().audio_seconds()
        self.progress = ProgressReport(self.variant.name, self.max_steps, audio, self.is_first)
        self.metrics = MetricsReport(tracker, model, audio)

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.engine.rank == 0

    @property
    def is_complete(self) -> bool:
        """Whether all steps are done, or patience has run out."""
        return (
            self.step >= self.max_steps
            or reporting.evaluations_since_best(self.log) >= self.variant.training.patience
        )

    # training

    def fit(self) -> None:
        """Train to the last step, or until patience runs out.

        Raises:
            PreemptedError: SIGTERM arrived; a checkpoint is written.
            DivergedError: a loss or gradient is not finite in some process.
            CheckpointError: a checkpoint cannot be written.
        """
        try:
            with self._sigterm, self.progress.running(self.step):
                self._run()
        except RuntimeError as error:
            # SIGTERM to the whole process group also ends the processes that load data, in the middle of a step.
            if self._sigterm.is_set and type(error) is RuntimeError:
                text = f"{self.variant.name}: ended by SIGTERM during a step; {REPEAT}"
                raise PreemptedError(text) from error
            raise

    def _run(self) -> None:
        eval_steps = self.variant.training.eval_steps
        if self._is_evaluation_owed():
            self.evaluate()
            if self._should_stop():
                raise self._preempted()
        for batch in self._loader(self._train[0], self._batches(self.step)):
            if self.is_complete:
                return
            self._train_step(batch)
            if self._is_logged(self.step):
                self._log_step()
            is_due = self.step == self.max_steps or self.step % eval_steps == 0
            if is_due and self.step >= self._ctc_steps:  # before, the LLM cannot read the audio yet
                self.evaluate()
            stops = self._should_stop()
            if is_due or stops:
                self.save()
            if stops:
                raise self._preempted()

    def _train_step(self, batch: Tensors) -> None:
        """Run one optimizer step on this process' rows of a batch."""
        if self._is_logged(self.step + 1):
            self.metrics.begin()
        self.timer.begin()
        self.model.train()
        self._rows, batch = batch["indices"].tolist(), self._moved(batch)
        with self.engine.autocast():
            lesson = None if self.teacher is None else self.teacher.lesson(batch)
            output = self.engine.wrapped(lesson=lesson, ctc_only=self.step < self._ctc_steps, **batch)
        loss_value = output.loss.item()
        loss = self._shared_loss(output, loss_value, batch)
        self.engine.backward(loss)
        self._figures |= self._clip()
        if self.engine.step():
            self.schedule.step()
        self._loss_sum += loss.detach()
        self.step += 1
        self.timer.end()
        self.progress.stepped(self.step, loss_value, float(self.schedule.get_last_lr()[0]))

    def _shared_loss(self, output: Any, value: float, batch: Tensors) -> torch.Tensor:
        """Return the loss, scaled so that its mean over processes is that of all rows' tokens.

        Raises:
            DivergedError: the loss of some process is not finite.
        """
        loss, taught, is_broken = output.loss, output.distillation, not math.isfinite(value)
        self._figures = {f"lr_{part}": rate for part, rate in current_rates(self.engine.optimizer).items()}
        if taught is not None:
            self._figures["distillation_loss"] = taught
        if self.engine.world > 1:
            tokens = counted_tokens(batch).item()
            taught_sum = 0.0 if taught is None else taught.item() * tokens
            sums = self.engine.sums(is_broken, self._sigterm.is_set, tokens, taught_sum)
            is_broken, self._stops = bool(sums[0]), bool(sums[1])
            if not is_broken:
                loss = loss * (tokens * self.engine.world / sums[2])
                self._figures |= {} if taught is None else {"distillation_loss": sums[3] / sums[2]}
        if is_broken:
            raise self._diverged({"loss": value})
        return loss

    def _clip(self) -> dict[str, torch.Tensor]:
        """Clip steering's own gradients, then all together; return the norms before.

        Raises:
            DivergedError: a gradient is not finite.
        """
        training, norms = self.variant.training, {}
        if self._steering:
            norms["steering_grad_norm"] = self.engine.clip(self._steering, training.steering_max_grad_norm)
        norms["grad_norm"] = self.engine.clip(list(self.trained.values()), training.max_grad_norm)
        # Where a scaled loss overflows, the step is skipped and the scale lowered.
        if not self.engine.scaler.is_enabled() and not math.isfinite(norms["grad_norm"].item()):
            raise self._diverged({"grad_norm": norms["grad_norm"].item()})
        return norms

    def _is_logged(self, step: int) -> bool:
        return step == self.max_steps or step % self.log_steps == 0

    def _log_step(self) -> None:
        """Log the mean loss since the last log, and the figures of this step."""
        mean = self.engine.sums(self._loss_sum.item())[0] / self.engine.world / (self.step - self._logged)
        entry = {"step": self.step, "loss": mean} | {name: float(v) for name, v in self._figures.items()}
        if self.model.steering is not None:  # the audio's
            scales = self.model.steering.scales
            entry["layer_scale"] = self.engine.weights({"scales": scales})["scales"].mean().item()
        self._loss_sum.zero_()
        self._logged = self.step
        self._append(entry)

    def _append(self, entry: dict[str, float]) -> None:
        self.log.append(entry)
        self.metrics.log(entry)

    def _diverged(self, what: dict[str, float]) -> DivergedError:
        """Return the error to raise in all processes, after the rows of this step were written to disk."""
        training = self.variant.training
        text = f"{self.variant.name}: training diverged by step {self.step}: {what}; lower training.learning_rates "
        text += f"(now {training.learning_rates}) or training.max_grad_norm"
        indices = sorted(
            row for rows in gathered({self.engine.rank: self._rows}).values() for row in rows if row >= 0
        )
        if self.is_first:
            report = report_divergence(self.run, self.step, what, self.describe(indices))
            text += f"; its rows are in {report}"
        return DivergedError(text)

    # evaluation

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Return mean loss of a target token, token accuracy and, if it is measured, WER on the dev splits.

        They are of all processes together. Where the training is asked to stop, the evaluation ends early and returns
        {}; the resumed training begins with it.
        """
        self.model.eval()
        totals = [0.0, 0.0, 0.0]
        loader = self._loader(self._dev[0], self._dev_batches())
        for number, batch in enumerate(loader, 1):
            if self.step < self.max_steps and self._should_stop(agree=True):
                return {}
            moved = self._moved(batch)
            with self.engine.autocast():
                output = self.model(**moved)
            tokens = float(counted_tokens(moved))
            correct = float(output.num_correct) if tokens else 0.0
            found = (float(output.loss) * tokens, tokens, correct)
            totals = [total + value for total, value in zip(totals, found, strict=True)]
            self.progress.evaluating(self.step, "evaluating on dev", number, len(loader))
        loss, tokens, correct = self.engine.sums(*totals)
        metrics = {"dev_loss": loss / tokens, "dev_token_accuracy": correct / tokens}
        if not math.isfinite(metrics["dev_loss"]):
            raise self._diverged(metrics)
        if self.wer is not None:
            errors, words = self._word_errors(self.wer)
            if not words:
                return {}
            metrics[reporting.WER] = errors / words
        self._append({"step": self.step, **metrics})
        if reporting.evaluations_since_best(self.log) == 0:
            self.best_weights = self.engine.weights(self.trained)
        self.progress.evaluated(reporting.table(self.log)[-1])
        return metrics

    def _word_errors(self, wer: DevWer) -> list[float]:
        """Return the number of errors and of words in all processes' answers; zeros where the training is to stop."""
        rows: list[int] = []
        loader = self._loader(self._dev[0], self._dev_batches(wer.rows))
        stops = False

        def batches() -> Iterator[Batch]:
            nonlocal stops
            for number, batch in enumerate(loader, 1):
                stops = self.step < self.max_steps and self._should_stop(agree=True)
                if stops:
                    return
                rows.extend(batch["indices"].tolist())
                self.progress.evaluating(self.step, "answering on dev", number, len(loader))
                yield Batch(**self._moved(batch))

        found = {rows[a.row]: a.ids for a in self.model.generate_all(batches(), wer.generation)}
        counts = wer.count({row: ids for row, ids in found.items() if row >= 0})
        return [0.0, 0.0] if stops else self.engine.sums(*counts)

    def _is_evaluation_owed(self) -> bool:
        """Return whether an evaluation is due that was not done: of initial weights, or one that a stop prevented."""
        training = self.variant.training
        is_due = self.step % training.eval_steps == 0 and (self.step > 0 or training.init_from is not None)
        is_due = is_due and self.step >= self._ctc_steps
        return is_due and self.step not in [entry["step"] for entry in reporting.evaluations(self.log)]

    # stopping

    def _should_stop(self, agree: bool = False) -> bool:
        """Return whether SIGTERM asks for an end; several processes agree in every step, and here with `agree`."""
        if (
            self.engine.world == 1
        ):  # also after the last step: whoever sent SIGTERM may take no result any more
            return self._sigterm.is_set
        if agree and not self._stops:
            self._stops = bool(self.engine.sums(self._sigterm.is_set)[0])
        return self._stops and not self.is_complete

    def _preempted(self) -> PreemptedError:
        steps = f"step {self.step} of {self.max_steps}"
        return PreemptedError(f"{self.variant.name}: ended by SIGTERM at {steps}; {REPEAT}")

    # checkpoints

    def save(self) -> None:
        """Write a checkpoint, which replaces the one before once it is whole; all processes must call this."""
        state = {
            "step": self.step,
            "log": self.log,
            "logged": self._logged,
            "best": self.best_weights,
            "weights": {} if self.engine.zero_stage else self.engine.weights(self.trained),
            "schedule": self.schedule.state_dict(),
            "seconds": self.timer.seconds,
            "wall": self.timer.wall,
        }
        checkpointing.write(self.run, self.step, self.engine, state, self._loss_sum)

    def resume(self, checkpoint: Path) -> None:
        """Continue from a checkpoint: exactly in the same number of processes, but for rounding in another.

        Raises:
            ValueError: as `checkpointing.read`.
        """
        state, loss_sum = checkpointing.read(checkpoint, self.engine, self.variant.seed)
        if not self.engine.zero_stage:
            self.load_trained(state["weights"])
        self.schedule.load_state_dict(state["schedule"])
        self.step, self.log, self._logged = state["step"], state["log"], state["logged"]
        self.best_weights = state["best"]
        self.timer.seconds, self.timer.wall_before = state["seconds"], state["wall"]
        self._loss_sum.copy_(loss_sum)

    @torch.no_grad()
    def load_trained(self, weights: dict[str, torch.Tensor]) -> None:
        """Put trained weights into the model, all of them or none."""
        assert weights.keys() == self.trained.keys(), "these weights are another model's"
        for name, parameter in self.trained.items():
            parameter.copy_(weights[name])

    # data

    def _batches(self, start: int = 0) -> StepBatches:
        return StepBatches(
            self._train[1], self.variant.training.max_batch_seconds, self.variant.seed, self.max_steps,
            self.engine.rank, self.engine.world, self.model.encoder.window_seconds, start,
        )  # fmt: skip

    def _dev_batches(self, rows: Sequence[int] | None = None) -> list[list[int]]:
        """Return the batches of this process, of some rows or of all."""
        budget, window = self.variant.training.max_batch_seconds, self.model.encoder.window_seconds
        rows = range(len(self._dev[1])) if rows is None else rows
        seconds = [self._dev[1][row] for row in rows]
        batches = bucketed_batches(seconds, budget, seed=None, epoch=0, window=window)
        chosen = [[rows[place] for place in batch] for batch in batches]
        return [share(batch, self.engine.rank, self.engine.world) for batch in chosen]

    def _loader(self, dataset: Dataset, batches: Any) -> DataLoader:
        return DataLoader(
            SharedDataset(dataset),
            batch_sampler=batches,
            collate_fn=collate,
            num_workers=self._workers,
            pin_memory=self.engine.device.type == "cuda",
            # Its own generator: every loader draws a seed for its workers, else from the global one.
            generator=torch.Generator().manual_seed(self.variant.seed),
        )

    def _moved(self, batch: Tensors) -> Tensors:
        return {name: tensor.to(self.engine.device, non_blocking=True) for name, tensor in batch.items()}

"""transformers' Trainer, thinly subclassed: our batches, our optimizer groups, our clipping, exact resume.

What is left to the Trainer: the loop, devices, mixed precision, several processes, the schedule's shape.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.utils import broadcast_object_list
from torch import nn
from torch.utils.data import DataLoader, Dataset
from transformers import PrinterCallback, TrainerCallback
from typing_extensions import override

from steermoe.config import Distributed, VariantConfig
from steermoe.data.batching import bucketed_batches
from steermoe.data.dataset import collate
from steermoe.distributed import ONE_PROCESS
from steermoe.models.steering import Steering
from steermoe.models.steermoe import SteerMoE
from steermoe.training import divergence, history
from steermoe.training.arguments import arguments
from steermoe.training.batches import Shares, StepBatches, counted_tokens, share, steps_of
from steermoe.training.callbacks import EarlyStopping, StepTimer, StopOnRequest
from steermoe.training.deepspeed import Zero
from steermoe.training.divergence import DivergedError, Locate
from steermoe.training.objective import Objective
from steermoe.training.parameter_groups import adamw, current_rates
from steermoe.training.preemption import Preemption
from steermoe.training.progress import ProgressLines
from steermoe.training.resumable import ResumableTrainer
from steermoe.training.teacher import Teacher

STEERING_PARTS = ("vectors", "router")


class AdapterTrainer(ResumableTrainer):
    """Trains what the method trains of a `SteerMoE`; checkpoints hold that, and what a resume needs.

    Args:
        model: built from `variant`.
        variant: its configuration.
        train, dev: a dataset whose items `collate` takes, and the seconds of each item.
        run: folder of checkpoints, for this training alone; None in processes but the first, who tells it.
        workers: processes that load data; 0 loads in this one.
        distributed: how the processes share the work.
        locate: tells where rows are, by their numbers, should the training diverge at them.
        teacher: what the model learns from beside the labels, where the variant has `training.distillation`.

    Attributes:
        preemption: asks for an end after the step under way; selected while its `with` block runs.
    """

    def __init__(
        self,
        model: SteerMoE,
        variant: VariantConfig,
        train: tuple[Dataset, Sequence[float]],
        dev: tuple[Dataset, Sequence[float]],
        run: Path | None,
        workers: int = 0,
        callbacks: Sequence[TrainerCallback] = (),
        distributed: Distributed = ONE_PROCESS,
        locate: Locate | None = None,
        teacher: Teacher | None = None,
    ) -> None:
        assert (teacher is None) == (variant.training.distillation is None)
        self.adapted, self.objective, self.variant = model, Objective(model, teacher), variant
        self.distributed, self.locate, self.zero = distributed, locate, None
        self.preemption, self._stops = Preemption(), False
        self._whole = {}
        self._indices = torch.tensor([], dtype=torch.int64)  # rows of the step under way
        self._taught: torch.Tensor | None = None  # what the teacher added to its loss
        window = model.encoder.window_seconds
        steps = steps_of(variant.training, train[1], variant.seed, window)
        self.timer = StepTimer()
        self.progress = ProgressLines(variant.name)
        self.best_weights: dict[str, torch.Tensor] = {}
        self._seconds = {"train": train[1], "dev": dev[1]}
        self._step_log: dict[
            str, float | torch.Tensor
        ] = {}  # of the step under way, as its gradients are clipped
        super().__init__(
            model=self.objective,
            args=arguments(variant.training, steps, variant.seed, workers, distributed),
            data_collator=lambda items: dict(collate(items)),
            train_dataset=Shares(train[0]),
            eval_dataset=Shares(dev[0]),
            callbacks=[
                EarlyStopping(variant.training.patience), self.timer, self.progress, *callbacks,
                StopOnRequest(lambda: self._stops or (self.args.world_size == 1 and self.preemption.requested)),
            ],
        )  # fmt: skip
        self.remove_callback(PrinterCallback)
        self.run = Path(broadcast_object_list([str(run)])[0])
        self.trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        parts = model.parameter_groups()
        self._steering = [p for part in STEERING_PARTS for p in parts.get(part, [])]
        self.sizes = {part: sum(p.numel() for p in group) for part, group in parts.items()}

    @override
    def get_train_dataloader(self) -> DataLoader:
        training, args = self.variant.training, self.args
        batches = StepBatches(
            self._seconds["train"], training.max_batch_seconds, self.variant.seed, args.max_steps,
            args.process_index, args.world_size, self.adapted.encoder.window_seconds,
        )  # fmt: skip
        return self._loader(cast(Dataset, self.train_dataset), batches)

    @override
    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        budget, window = self.variant.training.max_batch_seconds, self.adapted.encoder.window_seconds
        batches = bucketed_batches(self._seconds["dev"], budget, seed=None, epoch=0, window=window)
        mine = [share(batch, self.args.process_index, self.args.world_size) for batch in batches]
        return self._loader(cast(Dataset, self.eval_dataset), mine)

    def _loader(self, dataset: Dataset, batches: Any) -> DataLoader:
        """Not prepared by accelerate: these batches are this process' own, and the Trainer moves them."""
        return DataLoader(
            dataset,
            batch_sampler=batches,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
            # Its own generator: every loader draws a seed for its workers, else from the global one.
            generator=torch.Generator().manual_seed(self.variant.seed),
        )

    @override
    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            training = self.variant.training
            parts = self.adapted.parameter_groups()
            self.optimizer = adamw(parts, training.learning_rates, training.weight_decay)
        return self.optimizer

    @override
    def _move_model_to_device(self, model: nn.Module, device: torch.device) -> None:
        if self.distributed.strategy != "zero3":  # there only its pieces reach the device
            super()._move_model_to_device(model, device)

    @override
    def _prepare_for_training(
        self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: str | None
    ) -> tuple[Any, Any]:
        """Under ZeRO the engine takes the place of what accelerate prepares."""
        if self.distributed.strategy not in ("zero2", "zero3"):
            return super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        optimizer = cast(torch.optim.AdamW, self.create_optimizer())
        self.objective.autocast = torch.bfloat16 if self.args.bf16 else None
        self.zero = Zero(self.objective, optimizer, self.distributed, self.args.device)
        self.create_scheduler(max_steps, optimizer)
        self.optimizer = cast(Any, self.zero)
        self.model_wrapped = self.zero.engine
        self._load_optimizer_and_scheduler(resume_from_checkpoint)
        handler = cast(Any, self.callback_handler)
        handler.optimizer, handler.lr_scheduler = self.optimizer, self.lr_scheduler
        return self.zero.engine, train_dataloader

    @override
    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        if self.zero is None:
            return super().training_step(model, inputs, num_items_in_batch)
        model.train()
        loss = self.compute_loss(model, self._prepare_inputs(inputs))
        self.zero.backward(loss)
        return loss.detach()

    @override
    def compute_loss(self, model: nn.Module, inputs: Any, *rest: Any, **kwargs: Any) -> Any:
        """The loss of this process' rows, so scaled that the mean over processes is that of all rows' tokens.

        Raises:
            DivergedError: some process' loss is not finite.
        """
        self._indices = inputs["indices"]
        output = model(**inputs)
        loss, self._taught = output.loss, output.distillation
        self.progress.loss = loss.item()
        broken, total = float(not math.isfinite(self.progress.loss)), 0.0
        if self.args.world_size > 1:
            tokens = counted_tokens(inputs).item()
            taught = 0.0 if self._taught is None else self._taught.item() * tokens
            broken, stops, total, taught = self._sums(broken, self.preemption.requested, tokens, taught)
            self._stops = bool(stops)
            if not broken:
                loss = loss * (tokens * self.args.world_size / total)
                self._taught = None if self._taught is None else loss.new_tensor(taught / total)
        if broken:
            raise self._diverged({"loss": loss.item()})
        return loss

    def _sums(self, *values: float) -> list[float]:
        """Each value summed over all processes."""
        numbers = torch.tensor(values, dtype=torch.float64, device=self.args.device)
        return cast(torch.Tensor, self.accelerator.reduce(numbers, "sum")).tolist()

    def _diverged(self, what: dict[str, float]) -> DivergedError:
        """The error to raise in all processes, once the rows of this step are on disk."""
        text = f"{self.variant.name}: training diverged by step {self.state.global_step}: {what}; lower "
        text += (
            f"training.learning_rates (now {self.variant.training.learning_rates}) or training.max_grad_norm"
        )
        of_all = [self._indices.tolist()]
        if self.args.world_size > 1:
            of_all = [None] * self.args.world_size
            torch.distributed.all_gather_object(of_all, self._indices.tolist())
        indices = sorted(row for rows in of_all for row in cast(list[int], rows) if row >= 0)
        if self.args.should_save:
            rows = [{"index": row} for row in indices] if self.locate is None else self.locate(indices)
            text += f"; its rows are in {divergence.report(self.run, self.state.global_step, what, rows)}"
        return DivergedError(text)

    @override
    def _clip_grad_norm(self, model: nn.Module) -> Any:
        """Clip steering's own gradients, then all together.

        Here and not in a callback: `on_pre_optimizer_step` comes after the Trainer's clipping.

        Raises:
            DivergedError: a gradient is not finite.
        """
        self._step_log = {f"lr_{part}": rate for part, rate in current_rates(self.optimizer).items()}
        if self._taught is not None:
            self._step_log["distillation_loss"] = self._taught
        scaled = self.accelerator.scaler is not None  # its gradients can be unscaled once only
        clip = nn.utils.clip_grad_norm_ if scaled else self.accelerator.clip_grad_norm_
        if self.zero is not None:
            clip = self.zero.clip
        if scaled:
            self.accelerator.unscale_gradients()
        if self._steering:
            norm = clip(self._steering, self.variant.training.steering_max_grad_norm)
            self._step_log["steering_grad_norm"] = cast(torch.Tensor, norm)
        norm = cast(torch.Tensor, clip(list(self.trained.values()), self.variant.training.max_grad_norm))
        # With a scaled loss, gradients that overflow are no accident: the step is left out and the scale lowered.
        if not scaled and not math.isfinite(norm.item()):
            raise self._diverged({"grad_norm": norm.item()})
        return norm

    @override
    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "dev"
    ) -> dict[str, float]:
        """Mean loss a target token, and token accuracy, over the dev splits, all processes together."""
        self.objective.eval()
        totals = torch.zeros(3, dtype=torch.float64, device=self.args.device)
        batches = self.get_eval_dataloader()
        for number, batch in enumerate(batches, 1):
            if self._is_asked_to_stop():
                self.control.should_training_stop = True
                return {}  # the resumed training begins with this evaluation
            inputs = self._prepare_inputs(batch)
            with torch.no_grad():
                output = self.objective(**inputs)
            tokens = float(counted_tokens(inputs))
            correct = float(output.num_correct) if tokens else 0.0
            totals += totals.new_tensor([float(output.loss) * tokens, tokens, correct])
            self.progress.evaluating(self.state, number, len(batches))
        loss, tokens, correct = cast(torch.Tensor, self.accelerator.reduce(totals, "sum")).tolist()
        metrics = {"dev_loss": loss / tokens, "dev_token_accuracy": correct / tokens}
        self.log(metrics)
        if history.evaluations_since_best(self.state.log_history) == 0:
            self.best_weights = self.weights()
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _is_asked_to_stop(self) -> bool:
        """All processes agree. With the last step done, there is nothing that a stop would leave for later."""
        if not self.is_in_train or self.state.global_step >= self.args.max_steps:
            return False
        if not self._stops:
            asked = float(self.preemption.requested)
            self._stops = bool(self._sums(asked)[0] if self.args.world_size > 1 else asked)
        return self._stops

    @property
    def _owes_evaluation(self) -> bool:
        """An evaluation is due that was not done: of the adapter that the training begins with, or one that a stop
        prevented."""
        step, training = self.state.global_step, self.variant.training
        done = [entry["step"] for entry in history.evaluations(self.state.log_history)]
        is_due = step % training.eval_steps == 0 and (step > 0 or training.init_from is not None)
        return is_due and step not in done

    @override
    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> Any:
        if self._owes_evaluation:
            self.evaluate()
            if self.control.should_training_stop:
                return [], None
        return super().get_batch_samples(epoch_iterator, num_batches, device)

    @override
    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add rates and norms to what the Trainer logs.

        Raises:
            DivergedError: a loss or a norm is not finite.
        """
        if "loss" in logs:
            logs |= {name: float(value) for name, value in self._step_log.items()}
            if self.adapted.steering is not None:  # the audio's
                logs["layer_scale"] = self._mean_scale(self.adapted.steering)
        elif "dev_loss" not in logs:
            return  # the Trainer's summary of its session, all times: no part of the history
        excused = ("grad_norm", "steering_grad_norm") if self.accelerator.scaler is not None else ()
        broken = {k: v for k, v in logs.items() if k not in excused and not torch.isfinite(torch.tensor(v))}
        if broken:
            raise self._diverged({name: float(value) for name, value in broken.items()})
        super().log(logs, start_time)

    def _mean_scale(self, steering: Steering) -> float:
        name = next((name for name, p in self.trained.items() if p is steering.scales), None)
        whole = steering.scales if name is None else self.weights([name])[name]
        return whole.detach().mean().item()

    @property
    def stops(self) -> bool:
        """The training ends before its time, for it was asked to."""
        return self._stops or self.preemption.requested

"""transformers' Trainer, thinly subclassed: our batches, our optimizer groups, our clipping, exact resume.

What is left to the Trainer: the loop, devices, mixed precision, several processes, the schedule's shape.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.utils import broadcast_object_list
from torch import nn
from torch.utils.data import DataLoader, Dataset
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from typing_extensions import override

from steermoe.config import ArmConfig, Training
from steermoe.data.batching import bucketed_batches
from steermoe.data.collator import collate
from steermoe.models.steering import Steering
from steermoe.models.steermoe import SteerMoE
from steermoe.training import checkpoints, history
from steermoe.training.batches import StepBatches
from steermoe.training.callbacks import EarlyStopping, ProgressLines, StepTimer
from steermoe.training.parameter_groups import adamw, current_rates

WEIGHTS, OPTIMIZER, RANDOM = "weights.safetensors", "optimizer.safetensors", "random-{rank}.safetensors"
STEERING_PARTS = ("vectors", "router")


class DivergedError(RuntimeError):
    """The loss or the gradient is no longer a number."""


class Objective(nn.Module):
    """The model as the Trainer sees it: a batch in, a loss out.

    It keeps the Trainer off `model.config`, which it would write to, and the wrapper of mixed precision off
    the model.
    """

    def __init__(self, model: SteerMoE) -> None:
        super().__init__()
        self.model = model

    def forward(self, **batch: torch.Tensor) -> Any:
        """As of `SteerMoE.forward`."""
        return self.model(**batch)


class AdapterTrainer(Trainer):
    """Trains what the method trains of a `SteerMoE`; checkpoints hold that, and what a resume needs.

    Args:
        model: built from `arm`.
        arm: its configuration.
        train, dev: a dataset whose items `collate` takes, and the seconds of each item.
        run: folder of checkpoints, for this training alone; None in processes but the first, who tells it.
        workers: processes that load data; 0 loads in this one.
    """

    def __init__(
        self,
        model: SteerMoE,
        arm: ArmConfig,
        train: tuple[Dataset, Sequence[float]],
        dev: tuple[Dataset, Sequence[float]],
        run: Path | None,
        workers: int = 0,
        callbacks: Sequence[TrainerCallback] = (),
    ) -> None:
        self.adapted, self.objective, self.arm = model, Objective(model), arm
        self.timer = StepTimer()
        self.progress = ProgressLines(arm.name)
        self.best_weights: dict[str, torch.Tensor] = {}
        self._seconds = {"train": train[1], "dev": dev[1]}
        self._step_log: dict[
            str, float | torch.Tensor
        ] = {}  # of the step under way, as its gradients are clipped
        super().__init__(
            model=self.objective,
            args=_arguments(arm.training, arm.seed, workers),
            data_collator=collate,
            train_dataset=train[0],
            eval_dataset=dev[0],
            callbacks=[EarlyStopping(arm.training.patience), self.timer, self.progress, *callbacks],
        )
        self.remove_callback(PrinterCallback)
        self.run = Path(broadcast_object_list([str(run)])[0])
        self.trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        parts = model.parameter_groups()
        self._steering = [p for part in STEERING_PARTS for p in parts.get(part, [])]

    @override
    def get_train_dataloader(self) -> DataLoader:
        training, args = self.arm.training, self.args
        batches = StepBatches(
            self._seconds["train"], training.batch_seconds, self.arm.seed, args.max_steps,
            args.process_index, args.world_size,
        )  # fmt: skip
        return self._loader(cast(Dataset, self.train_dataset), batches)

    @override
    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        batches = bucketed_batches(self._seconds["dev"], self.arm.training.batch_seconds, seed=None, epoch=0)
        mine = batches[self.args.process_index :: self.args.world_size]
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
            generator=torch.Generator().manual_seed(self.arm.seed),
        )

    @override
    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            training = self.arm.training
            parts = self.adapted.parameter_groups()
            self.optimizer = adamw(parts, training.learning_rates, training.weight_decay)
        return self.optimizer

    @override
    def _clip_grad_norm(self, model: nn.Module) -> Any:
        """Clip steering's own gradients, then all together.

        Here and not in a callback: `on_pre_optimizer_step` comes after the Trainer's clipping.
        """
        self._step_log = {f"lr_{part}": rate for part, rate in current_rates(self.optimizer).items()}
        scaled = self.accelerator.scaler is not None  # its gradients can be unscaled once only
        clip = nn.utils.clip_grad_norm_ if scaled else self.accelerator.clip_grad_norm_
        if scaled:
            self.accelerator.unscale_gradients()
        if self._steering:
            norm = clip(self._steering, self.arm.training.steering_clip)
            self._step_log["steering_grad_norm"] = cast(torch.Tensor, norm)
        return (
            clip(list(self.trained.values()), self.arm.training.clip)
            if scaled
            else super()._clip_grad_norm(model)
        )

    @override
    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "dev"
    ) -> dict[str, float]:
        """Mean loss a target token, and token accuracy, over the dev splits, all processes together."""
        self.objective.eval()
        totals = torch.zeros(3, dtype=torch.float64, device=self.args.device)
        for batch in self.get_eval_dataloader():
            with torch.no_grad():
                output = self.objective(**self._prepare_inputs(batch))
            tokens, correct = float(output.num_tokens), float(output.num_correct)
            totals += totals.new_tensor([float(output.loss) * tokens, tokens, correct])
        loss, tokens, correct = cast(torch.Tensor, self.accelerator.reduce(totals, "sum")).tolist()
        metrics = {"dev_loss": loss / tokens, "dev_token_accuracy": correct / tokens}
        self.log(metrics)
        if history.evaluations_since_best(self.state.log_history) == 0:
            self.best_weights = {name: p.detach().to("cpu", copy=True) for name, p in self.trained.items()}
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    @override
    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add rates and norms to what the Trainer logs.

        Raises:
            DivergedError: a loss or a norm is not finite.
        """
        if "loss" in logs:
            logs |= {name: float(value) for name, value in self._step_log.items()}
            for module in self.adapted.modules():
                if isinstance(module, Steering):
                    logs["layer_scale"] = module.scales.detach().mean().item()
        elif "dev_loss" not in logs:
            return  # the Trainer's summary of its session, all times: no part of the history
        # With a scaled loss, gradients that overflow are no accident: the step is left out and the scale lowered.
        excused = ("grad_norm", "steering_grad_norm") if self.accelerator.scaler is not None else ()
        broken = {k: v for k, v in logs.items() if k not in excused and not torch.isfinite(torch.tensor(v))}
        if broken:
            raise DivergedError(
                f"{self.arm.name}: training diverged by step {self.state.global_step}: {broken}; lower "
                f"training.learning_rates (now {self.arm.training.learning_rates}) or training.clip"
            )
        super().log(logs, start_time)

    # checkpoints: the Trainer writes into a partial folder, which gets its name when it is whole

    @override
    def _get_output_dir(self, trial: Any) -> str:
        return str(self.run / checkpoints.PARTIAL)

    @override
    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            checkpoints.commit_checkpoint(self.run, self.state.global_step)
        self.accelerator.wait_for_everyone()

    @override
    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        if self.args.should_save:
            folder = Path(cast(str, output_dir))
            folder.mkdir(parents=True, exist_ok=True)
            timing = {"seconds": self.timer.seconds, "wall": self.timer.wall}
            tree = {"now": self.trained, "best": self.best_weights, "timing": timing}
            checkpoints.write_tree(folder / WEIGHTS, tree)

    @override
    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.args.should_save:
            optimizer, schedule = self._stateful()
            states = {"optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}
            checkpoints.write_tree(Path(output_dir) / OPTIMIZER, states)

    @override
    def _save_rng_state(self, output_dir: str) -> None:
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        file = RANDOM.format(rank=self.args.process_index)
        checkpoints.write_tree(Path(output_dir) / file, checkpoints.random_states())

    @override
    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        tree = checkpoints.read_tree(Path(resume_from_checkpoint) / WEIGHTS)
        self.load_trained(tree["now"])
        self.best_weights = tree["best"]
        self.timer.seconds, self.timer.wall_before = tree["timing"]["seconds"], tree["timing"]["wall"]

    @override
    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            states = checkpoints.read_tree(Path(checkpoint) / OPTIMIZER)
            optimizer, schedule = self._stateful()
            optimizer.load_state_dict(states["optimizer"])
            schedule.load_state_dict(states["schedule"])

    def _stateful(self) -> tuple[Any, Any]:
        assert self.optimizer is not None and self.lr_scheduler is not None
        return self.optimizer, self.lr_scheduler

    @override
    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            file = RANDOM.format(rank=self.args.process_index)
            checkpoints.restore_random_states(checkpoints.read_tree(Path(checkpoint) / file))

    def restore(self, checkpoint: Path) -> None:
        """Take the weights and times of a checkpoint, with which nothing is left to train."""
        self._load_from_checkpoint(str(checkpoint))

    @property
    def is_complete(self) -> bool:
        """All steps are done, or patience ran out."""
        exhausted = history.evaluations_since_best(self.state.log_history) >= self.arm.training.patience
        return self.state.global_step >= self.arm.training.steps or exhausted

    @torch.no_grad()
    def load_trained(self, weights: dict[str, torch.Tensor]) -> None:
        """Put trained weights into the model, all of them or none."""
        assert weights.keys() == self.trained.keys(), "these weights are another model's"
        for name, parameter in self.trained.items():
            parameter.copy_(weights[name])


def _arguments(training: Training, seed: int, workers: int) -> TrainingArguments:
    cuda = torch.cuda.is_available()
    if training.precision == "float16" and not cuda:
        raise ValueError(
            "training.precision: found 'float16', whose scaled loss needs a GPU; here use bfloat16"
        )
    every = training.eval_every
    arguments = TrainingArguments(
        output_dir=".",  # never written to: see `_get_output_dir`
        seed=seed,
        max_steps=training.steps,
        lr_scheduler_type=SCHEDULES[training.schedule],
        warmup_steps=training.warmup_steps,
        max_grad_norm=training.clip,
        bf16=training.precision == "bfloat16",
        fp16=training.precision == "float16",
        use_cpu=not cuda,
        eval_strategy="steps",
        eval_steps=every,
        save_strategy="steps",
        save_steps=every,
        # A divisor of `every`: a checkpoint never falls between two logs, whose running mean it would lose.
        logging_steps=max(count for count in range(1, 26) if every % count == 0),
        logging_nan_inf_filter=False,
        dataloader_num_workers=workers,
        dataloader_pin_memory=cuda,
        remove_unused_columns=False,
        ddp_find_unused_parameters=False,
        disable_tqdm=True,
        report_to="none",
    )
    # Without a launcher the Trainer would spread over all GPUs by DataParallel; several are for torchrun.
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1
    return arguments


# Training.schedule -> transformers' name of it; each after a linear warm-up.
SCHEDULES = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}

"""The Trainer's side of an exact resume: what a checkpoint holds, how it is written and taken up again.

A checkpoint has the same files whatever strategy wrote it, and in however many processes: the trained weights
now and at their best, the state of optimizer and schedule, and a file a process with what it draws from.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from transformers import Trainer, set_seed
from typing_extensions import override

from steermoe.config import VariantConfig
from steermoe.training import checkpoints, history
from steermoe.training.callbacks import StepTimer
from steermoe.training.deepspeed import Zero

WEIGHTS, OPTIMIZER, RANDOM = "weights.safetensors", "optimizer.safetensors", "random-{rank}.safetensors"


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written: no room, or no leave."""


class ResumableTrainer(Trainer):
    """Writes and reads checkpoints of what is trained, nothing else.

    Attributes:
        run: folder of checkpoints.
        variant: the configuration of what is trained.
        trained: all trained parameters by name.
        best_weights: of the evaluation with the lowest loss so far, on the CPU, whole.
        timer: whose times are kept.
        zero: what DeepSpeed has sharded; None without it.
    """

    run: Path
    variant: VariantConfig
    trained: dict[str, torch.nn.Parameter]
    best_weights: dict[str, torch.Tensor]
    timer: StepTimer
    zero: Zero | None
    _whole: dict[str, Any]  # what the checkpoint that is being written holds

    # checkpoints: the Trainer writes into a partial folder, which gets its name when it is whole

    @override
    def _get_output_dir(self, trial: Any) -> str:
        return str(self.run / checkpoints.PARTIAL)

    @override
    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Raises CheckpointError where it cannot be written; the one before stays."""
        # All processes gather what ZeRO has spread over them; the first one writes it.
        self._whole = {"weights": self.weights(), "optimizer": self._stateful()[0].state_dict()}
        try:
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                checkpoints.commit_checkpoint(self.run, self.state.global_step)
        except (OSError, SafetensorError) as error:
            kept = checkpoints.last_checkpoint(self.run)
            raise CheckpointError(
                f"{self.run / checkpoints.PARTIAL}: the checkpoint of step {self.state.global_step} cannot be "
                f"written ({error}); kept is {'none before it' if kept is None else kept.name}: make room there, "
                "or let it be written to, and repeat the command"
            ) from error
        self.accelerator.wait_for_everyone()
        self._whole = {}

    @override
    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        if self.args.should_save:
            folder = Path(cast(str, output_dir))
            folder.mkdir(parents=True, exist_ok=True)
            timing = {"seconds": self.timer.seconds, "wall": self.timer.wall}
            tree = {"now": self._whole["weights"], "best": self.best_weights, "timing": timing}
            checkpoints.write_tree(folder / WEIGHTS, tree)

    @override
    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self.args.should_save:
            states = {"optimizer": self._whole["optimizer"], "schedule": self._stateful()[1].state_dict()}
            checkpoints.write_tree(Path(output_dir) / OPTIMIZER, states)

    @override
    def _save_rng_state(self, output_dir: str) -> None:
        """A file a process: its generators, and the losses since the last log, whose mean is still to come."""
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        file = RANDOM.format(rank=self.args.process_index)
        losses = {"sum": self._tr_loss, "logged": self._globalstep_last_logged}
        tree = {"random": checkpoints.random_states(), "losses": losses}
        checkpoints.write_tree(Path(output_dir) / file, tree)

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
        """Each process its own state. Another number of processes than before begins new ones."""
        if checkpoint is None:
            return
        rank, size = self.args.process_index, self.args.world_size
        files = sorted(Path(checkpoint).glob(RANDOM.format(rank="*")))
        trees = [checkpoints.read_tree(file) for file in files]
        if len(trees) == size:
            mine = checkpoints.read_tree(Path(checkpoint) / RANDOM.format(rank=rank))
            checkpoints.restore_random_states(mine["random"])
            self._tr_loss.copy_(mine["losses"]["sum"])
        else:
            set_seed(self.variant.seed + self.state.global_step * size + rank)
            self._tr_loss.copy_(torch.stack([tree["losses"]["sum"] for tree in trees]).mean())
            if self.args.should_save:
                print(
                    f"{self.variant.name}: resumed in {size} processes what {len(trees)} began: the same training, "
                    "but sums are rounded otherwise"
                )
        self._globalstep_last_logged = trees[0]["losses"]["logged"]

    def weights(self, names: Sequence[str] | None = None) -> dict[str, torch.Tensor]:
        """Trained weights on the CPU, whole. Under ZeRO, all processes must call this."""
        chosen = {name: self.trained[name] for name in names or self.trained}
        if self.zero is not None:
            return self.zero.weights(chosen)
        return {name: p.detach().to("cpu", copy=True) for name, p in chosen.items()}

    def restore(self, checkpoint: Path) -> None:
        """Take the weights and times of a checkpoint, with which nothing is left to train."""
        self._load_from_checkpoint(str(checkpoint))

    @property
    def is_sharded(self) -> bool:
        """The model is in pieces, one in each process; `best_weights` are whole."""
        return self.zero is not None and self.zero.stage == 3

    @property
    def is_complete(self) -> bool:
        """All steps are done, or patience ran out."""
        exhausted = history.evaluations_since_best(self.state.log_history) >= self.variant.training.patience
        return self.state.global_step >= self.args.max_steps or exhausted

    @torch.no_grad()
    def load_trained(self, weights: dict[str, torch.Tensor]) -> None:
        """Put trained weights into the model, all of them or none."""
        assert weights.keys() == self.trained.keys(), "these weights are another model's"
        for name, parameter in self.trained.items():
            parameter.copy_(weights[name])

"""ZeRO by DeepSpeed (Rajbhandari et al. 2020), with our optimizer: the only file that imports deepspeed.

ZeRO-2 shards gradients and optimizer state over the processes, ZeRO-3 the weights too, the frozen ones with
them. Frozen weights have no gradients and no optimizer state in either.

The engine lies below transformers' Trainer, which knows nothing of it: gradients are clipped between backward and
step as without it, precision is torch's autocast as without it, and checkpoints have the same format. Of a trained
parameter's state, whatever process holds which piece of it, `state_dict` gives the whole.
"""

import logging
import os
import warnings
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.functional import pad
from torch.optim import AdamW

from steermoe.config import Distributed

MOMENTS = ("exp_avg", "exp_avg_sq")  # AdamW's state of a parameter, but for the number of steps
STAGES = {"zero2": 2, "zero3": 3}
BUCKET_NUMBERS = 10**7  # numbers that are sent at once


def configuration(distributed: Distributed) -> dict[str, Any]:
    """DeepSpeed's configuration. It has no optimizer, which would replace ours and its learning rates.

    No clipping and no precision either: the Trainer clips, and autocast is inside the model.
    """
    zero: dict[str, Any] = {
        "stage": STAGES[distributed.strategy],
        "contiguous_gradients": True,
        "overlap_comm": False,
        "reduce_bucket_size": BUCKET_NUMBERS,
        "allgather_bucket_size": BUCKET_NUMBERS,
    }
    if distributed.offload == "cpu":
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
        if distributed.strategy == "zero3":
            zero["offload_param"] = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    return {
        "train_micro_batch_size_per_gpu": 1,  # unused, but asked for: batches are counted in seconds
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 0.0,  # it is 1 where nothing is said
        "zero_optimization": zero,
        # Else offloading compiles DeepSpeed's own Adam; torch's does for the few numbers that are trained.
        "zero_force_ds_cpu_optimizer": False,
    }


class Zero:
    """A model under a DeepSpeed engine; to the Trainer, the optimizer of that model.

    Args:
        model: on the CPU for ZeRO-3, whose pieces alone reach the device.
        optimizer: over trained parameters of `model`.
        distributed: strategy zero2 or zero3.
        device: where it is trained.
    """

    def __init__(
        self, model: nn.Module, optimizer: AdamW, distributed: Distributed, device: torch.device
    ) -> None:
        self._groups = [list(group["params"]) for group in optimizer.param_groups]
        self._trained = [parameter for group in self._groups for parameter in group]
        self.optimizer, self.stage = optimizer, STAGES[distributed.strategy]
        self.engine = _engine(model, optimizer, distributed, device)

    # what the Trainer asks of an optimizer

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Of our optimizer: with names and learning rates, but with DeepSpeed's pieces as parameters."""
        return self.optimizer.param_groups

    def step(self) -> None:
        """Update the weights by the gradients that `backward` left."""
        self.engine.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Nothing: the engine drops its gradients at each step."""

    def backward(self, loss: torch.Tensor) -> None:
        """Gradients of all processes, averaged."""
        self.engine.backward(loss)

    def clip(self, parameters: Iterable[nn.Parameter], limit: float) -> torch.Tensor:
        """As `torch.nn.utils.clip_grad_norm_`; returns the norm before."""
        wanted = list(parameters)
        gradients = [self._gradient(parameter) for parameter in wanted]
        norm = nn.utils.get_total_norm(gradients)
        if norm > limit:
            for parameter, gradient in zip(wanted, gradients, strict=True):
                self._set_gradient(parameter, gradient * (limit / (norm + 1e-6)))
        return norm

    # whole tensors of what is sharded

    def weights(self, parameters: dict[str, nn.Parameter]) -> dict[str, torch.Tensor]:
        """Whole weights on the CPU, in every process. All processes must call this."""
        import deepspeed

        if self.stage < 3:
            return {name: p.detach().to("cpu", copy=True) for name, p in parameters.items()}
        found = {}
        for name, parameter in parameters.items():
            with deepspeed.zero.GatheredParameters([parameter]):
                found[name] = parameter.detach().to("cpu", copy=True)
        return found

    def whole(self, tensor: torch.Tensor) -> AbstractContextManager[Any]:
        """A context in which a tensor of the model is whole. All processes must enter it."""
        import deepspeed

        return deepspeed.zero.GatheredParameters([tensor]) if hasattr(tensor, "ds_id") else nullcontext()

    def state_dict(self) -> dict[str, Any]:
        """What `AdamW.state_dict` gives without sharding. All processes must call this."""
        from deepspeed.utils import safe_get_full_optimizer_state

        self._link()
        numbers = iter(range(len(self._trained)))
        groups = [
            {name: value for name, value in group.items() if name != "params"}
            | {"params": [next(numbers) for _ in parameters]}
            for group, parameters in zip(self.param_groups, self._groups, strict=True)
        ]
        state = {}
        for number, parameter in enumerate(self._trained):
            moments = {name: safe_get_full_optimizer_state(parameter, name) for name in MOMENTS}
            state[number] = {"step": self._steps(), **moments}
        return {"state": state, "param_groups": groups}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Take what `state_dict` gave, here or in another number of processes."""
        for group, values in zip(self.param_groups, saved["param_groups"], strict=True):
            group.update({name: value for name, value in values.items() if name != "params"})
        steps = saved["state"][0]["step"]
        for piece in self._pieces():  # AdamW makes its state at its first step, too late
            moments = {name: torch.zeros_like(piece) for name in MOMENTS}
            self.optimizer.state[piece] = {"step": steps.clone(), **moments}
        self._link()
        for number, parameter in enumerate(self._trained):
            for name in MOMENTS:
                self._set_moment(parameter, saved["state"][number][name], name)

    def _link(self) -> None:
        """Let DeepSpeed find the moments of every parameter: ZeRO-2 looks once, after a step of its first group."""
        if self.stage < 3:
            self.engine.optimizer._hp_optimizer_states_linked = False
            self.engine.optimizer._lazy_init_hp_params_optimizer_state()

    def _pieces(self) -> list[torch.Tensor]:
        """The flat tensors in float32 that this process updates."""
        zero = self.engine.optimizer
        return zero.fp32_partitioned_groups_flat if self.stage == 3 else zero.single_partition_of_fp32_groups

    def _steps(self) -> torch.Tensor:
        return self.optimizer.state[self._pieces()[0]]["step"]

    def _gradient(self, parameter: Any) -> torch.Tensor:
        """The whole gradient. `deepspeed.utils.safe_get_full_grad` would take what a process has left for it."""
        if self.stage == 3:
            return self.engine.optimizer.get_fp32_grad_for_param(parameter)
        self.engine.optimizer._wait_for_offload_copies()
        return parameter.get_full_hp_grad()

    def _set_gradient(self, parameter: Any, gradient: torch.Tensor) -> None:
        from deepspeed.utils import safe_set_local_grad

        if self.stage == 3:  # DeepSpeed's own cutting fails where a size is no multiple of the processes
            safe_set_local_grad(parameter, self._own_piece(parameter, gradient))
        else:
            parameter.set_full_hp_grad(gradient)

    def _set_moment(self, parameter: nn.Parameter, moment: torch.Tensor, name: str) -> None:
        from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

        moment = moment.to(self.engine.device)
        if self.stage == 3:
            safe_set_local_optimizer_state(parameter, self._own_piece(parameter, moment), name)
        else:
            safe_set_full_optimizer_state(parameter, moment, name)

    def _own_piece(self, parameter: Any, whole: torch.Tensor) -> torch.Tensor:
        size = parameter.ds_tensor.ds_numel
        flat = pad(whole.flatten(), (0, size * torch.distributed.get_world_size() - whole.numel()))
        return flat.narrow(0, size * torch.distributed.get_rank(), size)


def _engine(model: nn.Module, optimizer: AdamW, distributed: Distributed, device: torch.device) -> Any:
    if device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    for name in ("all_gather_into_tensor", "reduce_scatter_tensor"):  # what DeepSpeed calls of torch
        warnings.filterwarnings("ignore", f"`torch.distributed.{name}` is deprecated", FutureWarning)
    try:
        import deepspeed
        import deepspeed.ops
    except ImportError as error:
        raise ValueError(
            f"training.distributed.strategy: {distributed.strategy} needs DeepSpeed, which cannot be imported "
            f"({error}); install the extra `deepspeed`"
        ) from error
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # Else its communication on the CPU is compiled at the first use, for minutes.
    deepspeed.ops.__compatible_ops__ = {}  # type: ignore[attr-defined]
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    deepspeed.init_distributed()
    settings = configuration(distributed)
    if distributed.strategy == "zero3":  # before the engine, which else moves the whole model to the device
        deepspeed.zero.Init(module=model, config_dict_or_path=settings)
        for module in model.modules():
            for name, buffer in module._buffers.items():
                module._buffers[name] = None if buffer is None else buffer.to(device)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)
    return engine

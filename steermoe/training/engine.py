"""A model with its optimizer in one process, under DDP, or under DeepSpeed's ZeRO: the same steps for the loop.

ZeRO-2 shards gradients and optimizer state over the processes, ZeRO-3 the weights too, frozen ones included
(Rajbhandari et al. 2020). DeepSpeed is called directly and not through accelerate: its plugin steps at the end of the
backward pass, before steering's gradients can be clipped, casts frozen weights to the precision of training, and does
not run on CPUs.
"""

import logging
import os
import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.optim import AdamW

from steermoe.config import Distributed
from steermoe.distributed import world

STAGES = {"zero2": 2, "zero3": 3}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
BUCKET_NUMBERS = 10**7  # numbers that ZeRO sends at once


class Engine:
    """Runs forward, backward, clipping and step, and gathers what is sharded.

    Args:
        model: what is trained.
        optimizer: over the trained parameters of `model`.
        precision: row of DTYPES, the type of autocast; float16 also scales the loss.
        distributed: how the processes share the work.

    Raises:
        ValueError: float16 without a GPU or under ZeRO, or DeepSpeed cannot be imported.
    """

    def __init__(self, model: nn.Module, optimizer: AdamW, precision: str, distributed: Distributed) -> None:
        check_precision(precision, distributed)
        if precision == "bfloat16" and (note := slow_bfloat16()) and not world().rank:
            print(note, flush=True)
        self.accelerator = Accelerator(cpu=not torch.cuda.is_available())
        self.device = self.accelerator.device
        self.rank, self.world = self.accelerator.process_index, self.accelerator.num_processes
        self.strategy, self.zero_stage = distributed.strategy, STAGES.get(distributed.strategy, 0)
        self.model, self.optimizer = model, optimizer
        self._dtype = DTYPES[precision]
        self.scaler = torch.GradScaler(self.device.type, enabled=precision == "float16")
        if self.zero_stage:
            self.wrapped = _zero_engine(model, optimizer, distributed, self.device)
        else:
            self.wrapped = self.accelerator.prepare(model)

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context of forward passes."""
        is_mixed = self._dtype is not torch.float32
        return torch.autocast(self.device.type, self._dtype if is_mixed else None, enabled=is_mixed)

    def backward(self, loss: torch.Tensor) -> None:
        """Compute gradients, averaged over the processes."""
        if self.zero_stage:
            self.wrapped.backward(loss)
            return
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)

    def clip(self, parameters: Sequence[nn.Parameter], limit: float) -> torch.Tensor:
        """Clip gradients to a norm, as `clip_grad_norm_`, and return the norm before."""
        if not self.zero_stage:
            return nn.utils.clip_grad_norm_(parameters, limit)
        from deepspeed import utils

        gradients: list[Any] = [utils.safe_get_full_grad(parameter) for parameter in parameters]
        norm = nn.utils.get_total_norm(gradients)
        factor = limit / (norm + 1e-6)
        for parameter, gradient in zip(parameters, gradients, strict=True) if factor < 1 else ():
            if (
                self.zero_stage == 3
            ):  # `safe_set_full_grad` fails where the size is no multiple of the processes
                piece: Any = utils.safe_get_local_grad(parameter)
                utils.safe_set_local_grad(parameter, piece * factor)
            else:
                utils.safe_set_full_grad(parameter, gradient * factor)
        return norm

    def step(self) -> bool:
        """Update the weights and drop the gradients; False where a scaled loss overflowed and nothing is updated."""
        if self.zero_stage:
            self.wrapped.step()
            return True
        scale = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        return self.scaler.get_scale() >= scale

    def sums(self, *values: float) -> list[float]:
        """Return each value summed over all processes."""
        if self.world == 1:
            return list(values)
        numbers = torch.tensor(values, dtype=torch.float64, device=self.device)
        return self.accelerator.reduce(numbers, "sum").tolist()  # pyright: ignore[reportAttributeAccessIssue]

    def whole(self, tensor: torch.Tensor) -> AbstractContextManager[Any]:
        """Return a context in which a tensor of the model is whole; all processes must enter it."""
        if not hasattr(tensor, "ds_id"):
            return nullcontext()
        import deepspeed

        return deepspeed.zero.GatheredParameters([tensor])

    def weights(self, parameters: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return whole weights on the CPU; all processes must call this."""
        found = {}
        for name, parameter in parameters.items():
            with self.whole(parameter):
                found[name] = parameter.detach().to("cpu", copy=True)
        return found

    # Checkpoints: ZeRO's own files hold each process' pieces, which the same number of processes reads again.

    def save(self, folder: Path) -> dict[str, Any]:
        """Return the state of optimizer and scaler; ZeRO writes that and the trained weights into `folder`."""
        if self.zero_stage:
            self.wrapped.save_checkpoint(str(folder), tag="zero", exclude_frozen_parameters=True)
            return {}
        return {"optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict()}

    def load(self, folder: Path, state: dict[str, Any]) -> None:
        """Restore what `save` has kept."""
        if self.zero_stage:
            self.wrapped.load_checkpoint(str(folder), tag="zero", load_module_strict=False)
            return
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])


def check_precision(precision: str, distributed: Distributed) -> None:
    """Raise ValueError for float16 where its scaled loss is not available."""
    if precision != "float16":
        return
    if not torch.cuda.is_available():
        raise ValueError(
            "training.precision: found 'float16', whose scaled loss needs a GPU; here use bfloat16"
        )
    if distributed.strategy in STAGES:
        raise ValueError(
            f"training.precision: found 'float16', whose scaled loss is not for {distributed.strategy}; legal: "
            "float32, bfloat16"
        )


def slow_bfloat16() -> str | None:
    """Return a note where training in bfloat16 runs on an x86 CPU without instructions for it."""
    found = torch.cpu.get_capabilities()
    if torch.cuda.is_available() or found.get("architecture") != "x86_64":
        return None
    if any(found.get(name) for name in ("amx_bf16", "avx512_bf16")):
        return None
    return (
        "training.precision: bfloat16, for which this CPU has no instructions: a step takes three to four times as "
        "long as in float32"
    )


def zero_configuration(distributed: Distributed) -> dict[str, Any]:
    """Return DeepSpeed's configuration, without optimizer, clipping and precision, which are the loop's."""
    offload = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    zero: dict[str, Any] = {
        "stage": STAGES[distributed.strategy],
        "overlap_comm": False,
        "reduce_bucket_size": BUCKET_NUMBERS,
        "allgather_bucket_size": BUCKET_NUMBERS,
        # With small weights kept whole, DeepSpeed fails where a loaded checkpoint is evaluated before it is trained.
        "stage3_param_persistence_threshold": 0,
    }
    if distributed.offload == "cpu":
        zero["offload_optimizer"] = offload
        zero |= {"offload_param": offload} if distributed.strategy == "zero3" else {}
    return {
        "train_micro_batch_size_per_gpu": 1,  # required, and unused: batches are counted in seconds
        "gradient_clipping": 0.0,  # the default is 1
        "zero_optimization": zero,
        "zero_force_ds_cpu_optimizer": False,  # torch's AdamW will do; DeepSpeed's would have to be compiled
    }


def _zero_engine(model: nn.Module, optimizer: AdamW, distributed: Distributed, device: torch.device) -> Any:
    if device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    for name in ("all_gather_into_tensor", "reduce_scatter_tensor"):  # DeepSpeed calls them
        warnings.filterwarnings("ignore", f"`torch.distributed.{name}` is deprecated", FutureWarning)
    try:
        import deepspeed
    except ImportError as error:
        raise ValueError(
            f"training.distributed.strategy: {distributed.strategy} needs DeepSpeed, which cannot be imported "
            f"({error}); install the extra `deepspeed`"
        ) from error
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    deepspeed.init_distributed()
    settings = zero_configuration(distributed)
    if distributed.strategy == "zero3":  # before the engine, which else moves the whole model to the device
        deepspeed.zero.Init(module=model, config_dict_or_path=settings)
        for module in model.modules():
            for name, buffer in module.named_buffers(recurse=False):
                setattr(module, name, buffer.to(device))
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)
    return engine

"""Low-rank adapters inside the layers of a frozen model (Hu et al. 2021), by peft."""

import logging
from collections.abc import Iterable

# peft imports bitsandbytes if it is installed, which logs what its 4-bit kernels lack on this CPU.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

from peft import LoraConfig, inject_adapter_in_model  # noqa: E402
from peft.tuners.lora import LoraLayer  # noqa: E402
from torch import nn  # noqa: E402

from steermoe import config  # noqa: E402


def add_lora(
    section: config.Lora, model: nn.Module, layers: Iterable[nn.Module], setting: str
) -> list[nn.Parameter]:
    """Insert adapters into the layers of `model`, in place, in evaluation mode; return their parameters, in float32.

    A target adds rank * (inputs + outputs) parameters in every layer.

    Raises:
        ValueError: a target is not a linear module inside the layers.
    """
    inside = {id(m) for layer in layers for m in layer.modules() if isinstance(m, nn.Linear)}
    names = [name for name, module in model.named_modules() if id(module) in inside]
    kinds = {name.rsplit(".", 1)[-1] for name in names}
    wrong = [target for target in section.targets if target not in kinds]
    if wrong:
        raise ValueError(f"{setting}.targets: found {wrong}, the layers have: {', '.join(sorted(kinds))}")
    settings = LoraConfig(
        r=section.rank,
        lora_alpha=section.alpha,
        lora_dropout=section.dropout,
        target_modules=[name for name in names if name.rsplit(".", 1)[-1] in section.targets],
    )
    inject_adapter_in_model(settings, model)
    train_lora(model, False)
    parameters = [p for p in model.parameters() if p.requires_grad]
    for parameter in parameters:
        parameter.data = parameter.data.float()
    return parameters


def merge_lora(model: nn.Module) -> None:
    """Merge the adapters of `add_lora` into the weights, in place; no module of peft is left.

    peft merges each layer, as its `merge_and_unload` does for a wrapped model. Sums are rounded to the weights' dtype.

    Raises:
        ValueError: an adapter has values that are not finite.
    """
    adapted = [(name, m) for name, m in model.named_modules() if isinstance(m, LoraLayer)]
    for name, layer in adapted:
        layer.merge(safe_merge=True)  # pyright: ignore[reportCallIssue]  every layer that peft can inject has it
        model.set_submodule(name, layer.get_base_layer())
    if adapted:
        del model.peft_config  # or transformers takes the model for an adapted one when it saves it


def train_lora(model: nn.Module, mode: bool) -> None:
    """Switch the adapters' dropout on or off; the frozen layers stay in evaluation mode."""
    for module in model.modules():
        if isinstance(module, LoraLayer):
            module.lora_dropout.train(mode)

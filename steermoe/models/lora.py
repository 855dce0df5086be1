"""Low-rank adapters inside the encoder's layers (Hu et al. 2021), by peft."""

from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import nn

from steermoe import config
from steermoe.models.encoders.encoder import Encoder


def add_lora(section: config.Lora, encoder: Encoder) -> list[nn.Parameter]:
    """Put adapters into `encoder`, in place, in evaluation mode.

    Returns:
        Their parameters, in float32 whatever the encoder's type.

    Raises:
        ValueError: a target is no linear module inside the encoder's layers.
    """
    inside = {m for m in encoder.layers.modules() if isinstance(m, nn.Linear)}
    paths = [name for name, m in encoder.model.named_modules() if m in inside]
    names = {path.rsplit(".", 1)[-1] for path in paths}
    wrong = [target for target in section.targets if target not in names]
    if wrong:
        raise ValueError(
            f"lora.targets: found {wrong}, the encoder's layers have: {', '.join(sorted(names))}"
        )
    settings = LoraConfig(
        r=section.rank,
        lora_alpha=section.alpha,
        lora_dropout=section.dropout,
        # Whole paths: what has the same name outside the layers is left alone.
        target_modules=[path for path in paths if path.rsplit(".", 1)[-1] in section.targets],
    )
    inject_adapter_in_model(settings, encoder.model)
    train_lora(encoder, False)
    parameters = [p for p in encoder.parameters() if p.requires_grad]
    for parameter in parameters:
        parameter.data = parameter.data.float()
    return parameters


def train_lora(encoder: Encoder, mode: bool) -> None:
    """Switch the adapters' dropout on or off; the frozen layers around them stay in evaluation mode."""
    for module in encoder.modules():
        if isinstance(module, LoraLayer):
            module.lora_dropout.train(mode)

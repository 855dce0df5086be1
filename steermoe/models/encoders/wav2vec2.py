"""What the encoders after wav2vec 2.0 with Conformer layers have in common, as transformers builds them."""

from typing import Any

import torch
from torch import nn
from transformers.masking_utils import create_bidirectional_mask

from steermoe import config
from steermoe.models.encoders.encoder import Encoder, padding_mask
from steermoe.models.frozen import load_extractor, load_frozen


class Wav2Vec2(Encoder):
    """Loading, and the context of the layers; what comes before and after them is a subclass's.

    Attributes:
        extractor: the feature extractor that lies beside the weights.

    Args:
        section: `path` is a folder or hub id in Hugging Face format, with its preprocessor_config.json.
        kind: class of the model.
        extractor: class of the feature extractor.

    Raises:
        ValueError: nothing can be loaded from the path, weights are missing in it, or it has an adapter.
    """

    def __init__(self, section: config.Encoder, kind: Any, extractor: Any) -> None:
        super().__init__(section)
        self.model: Any = load_frozen(kind, section.path, section.dtype, "encoder")
        if self.model.config.add_adapter:
            raise ValueError(
                f"encoder.path: {section.path!r} has add_adapter, layers behind the encoder that shorten its "
                "output for a task of their own; use the checkpoint without them"
            )
        self.extractor = load_extractor(extractor, section.path, "encoder")
        self.layers: nn.ModuleList = self.model.encoder.layers
        self.width: int = self.model.config.hidden_size

    def context(self, hidden_BSD: torch.Tensor, lengths_B: torch.Tensor) -> tuple[Any, ...]:
        """Attention mask, positions, and what is valid for the convolutions (B, S)."""
        mask, valid_BS = None, padding_mask(hidden_BSD, lengths_B)
        if valid_BS is not None:
            mask = create_bidirectional_mask(self.model.config, hidden_BSD, attention_mask=valid_BS)
        embed = self.model.encoder.embed_positions
        # A copy: transformers keeps the last one, and one that inference mode made is of no use in training.
        positions = None if embed is None else embed(hidden_BSD).clone()
        return mask, positions, valid_BS

    def attention(self, layer_number: int) -> nn.Module:
        """Wav2Vec2ConformerSelfAttention or Wav2Vec2BertSelfAttention."""
        return self.layers[layer_number].get_submodule("self_attn")

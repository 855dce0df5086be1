"""ViT (Dosovitskiy et al. 2021, transformers' ViTModel) on each frame of a video.

The K tokens of a frame are its class token and its patches, row by row; a video of T frames is a sequence of T x K
tokens. Attention stays within a frame, and steering adds to every token. Down-sampling `average` with factor K gives
the mean of each frame.

Shapes: B batch, M values of a frame (colours x height x width), T frames, K tokens of a frame, S = T x K tokens,
D encoder width.
"""

from typing import Any

import numpy as np
from torch import Tensor, nn
from transformers import ViTModel
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from steermoe import config
from steermoe.data import video
from steermoe.models.encoders.encoder import Encoder
from steermoe.models.pretrained import load_frozen


class Frames:
    """Frames to the input of a ViT, by the image processor of its checkpoint: resized and normalised.

    Attributes:
        channels: M.
    """

    def __init__(self, path: str, channels: int) -> None:
        try:
            self._processor = ViTImageProcessorPil.from_pretrained(path)
        except OSError as error:
            raise ValueError(
                f"video.encoder.path: {path!r} lacks preprocessor_config.json, which describes how frames are "
                f"normalised: {error}"
            ) from error
        self.channels = channels

    def __call__(self, frames: np.ndarray | Tensor, /) -> Tensor:
        """Return features (M, T) float32 of uint8 frames (T, H, W) or (T, H, W, 3).

        Raises:
            ValueError: the frames are of another type or shape.
        """
        seen = list(video.checked(np.asarray(frames)))
        pixels: Tensor = self._processor(seen, return_tensors="pt")["pixel_values"]
        return pixels.flatten(1).T.contiguous()


class ViT(Encoder):
    """ViT, frozen, frame by frame.

    Args:
        section: `path` is a folder or hub id in Hugging Face format, with its preprocessor_config.json; of a
            classifier, the encoder alone is loaded.

    Raises:
        ValueError: nothing can be loaded from the path, or weights are missing in it.
    """

    self_attention = "attention"

    def __init__(self, section: config.VideoEncoder) -> None:
        super().__init__(section)
        self.model: Any = load_frozen(
            ViTModel, section.path, section.dtype, "video.encoder", add_pooling_layer=False
        )
        patches = self.model.embeddings.patch_embeddings
        self.height, self.width_of_frame = patches.image_size
        self.tokens: int = patches.num_patches + 1
        self.layers: nn.ModuleList = self.model.layers
        self.width: int = self.model.config.hidden_size
        self.frames_per_second = float(self.tokens)  # of one frame, as the duration is unknown
        self.features = Frames(section.path, patches.num_channels * self.height * self.width_of_frame)
        for layer in self.layers:
            _WithinFrames(layer.get_submodule("attention"), self.tokens)

    def output_lengths(self, lengths_B: Tensor) -> Tensor:
        """Return K tokens for each frame."""
        return lengths_B * self.tokens

    def embed(self, features_BMT: Tensor, lengths_B: Tensor, padded: bool) -> Tensor:
        """Embed patches, class token and positions of each frame."""
        rows, _, frames = features_BMT.shape
        pixels = features_BMT.transpose(1, 2).reshape(rows * frames, -1, self.height, self.width_of_frame)
        return self.model.embeddings(pixels).reshape(rows, frames * self.tokens, self.width)

    def context(self, hidden_BSD: Tensor, lengths_B: Tensor) -> tuple[Any, ...]:
        """Return nothing: no frame attends to another one."""
        return ()

    def finish(self, hidden_BSD: Tensor) -> Tensor:
        """Apply the final layer norm."""
        return self.model.layernorm(hidden_BSD)


class _WithinFrames:
    """Hooks by which an attention gets each frame as a row: (B, T x K, D) as (B x T, K, D), and back."""

    def __init__(self, attention: nn.Module, tokens: int) -> None:
        self.tokens, self.rows = tokens, 0
        attention.register_forward_pre_hook(self._apart)
        attention.register_forward_hook(self._together)

    def _apart(self, attention: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden_BSD, *others = args
        self.rows = hidden_BSD.shape[0]
        return hidden_BSD.reshape(-1, self.tokens, hidden_BSD.shape[2]), *others

    def _together(self, attention: nn.Module, args: Any, output: tuple[Tensor, Any]) -> Any:
        return output[0].reshape(self.rows, -1, output[0].shape[2]), *output[1:]

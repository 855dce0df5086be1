"""Speech encoders. A new one is a file with an `Encoder` subclass and a row here."""

from collections.abc import Callable

from steermoe import config
from steermoe.models.encoders.encoder import Encoder
from steermoe.models.encoders.whisper import Whisper
from steermoe.models.registry import choose


def load_encoder(section: config.Encoder) -> Encoder:
    """The frozen encoder that the section names, in evaluation mode.

    Raises:
        ValueError: there is no such encoder, or its weights cannot be loaded.
    """
    return choose(ENCODERS, section.name, "encoder.name")(section).eval()


ENCODERS: dict[str, Callable[[config.Encoder], Encoder]] = {"whisper": Whisper}

"""The section about a second branch beside the audio: frozen video encoder, its steering, its projector."""

from typing import Annotated, ClassVar

from pydantic import field_validator

from steermoe.config.method import Projector, Steering
from steermoe.config.problems import illegal
from steermoe.config.sections import Dtype, Revision, Section, Text, row_of


class VideoEncoder(Section):
    """The frozen encoder of frames: a row of VIDEO_ENCODERS, and a folder or hub id of its weights."""

    window: ClassVar = "unpadded"  # a video has as many frames as it has
    name: Annotated[str, row_of("models/encoders/__init__.py", "VIDEO_ENCODERS")]
    path: Text
    revision: Revision
    dtype: Dtype


class Video(Section):
    """What the LLM reads before the audio; `steering` null: the video encoder stays as it is.

    `steering` is of methods with steering alone, as the audio's is.
    """

    encoder: VideoEncoder
    steering: Steering | None
    projector: Projector

    @field_validator("projector")
    @classmethod
    def _behind_the_encoder(cls, projector: Projector) -> Projector:
        if projector.downsample_after_layer is not None:
            raise illegal(
                "null: a layer of the video encoder sees whole frames",
                found={"downsample_after_layer": projector.downsample_after_layer},
            )
        return projector

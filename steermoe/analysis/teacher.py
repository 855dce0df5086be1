"""What a teacher (`training.distillation`) costs who learns from it: a forward pass a clip, and memory."""

from dataclasses import dataclass
from typing import Self

from steermoe.analysis.audit import Sections, trained_parameters
from steermoe.analysis.presets import EncoderShape, LlmShape, encoder_shape, llm_shape
from steermoe.analysis.work import clip, work
from steermoe.config import ArmConfig
from steermoe.data.adapters import adapter_folder
from steermoe.models import adapter

BYTES = {"float32": 4, "bfloat16": 2}
OF_TRAINED = 4  # bytes: they are in float32
FORWARD = 1 / 3  # of the operations of trained parts, whose backward pass costs twice that


@dataclass(frozen=True)
class TeacherShape:
    """A teacher without weights.

    Attributes:
        encoder, llm: its frozen models.
        sections: what was trained between them.
        trained: its parameters by part.
        memory: bytes of all its weights.
    """

    encoder: EncoderShape
    llm: LlmShape
    sections: Sections
    trained: dict[str, int]
    memory: float

    @classmethod
    def of(cls, student: ArmConfig) -> Self | None:
        """The teacher of an arm; None where it has none.

        Raises:
            ValueError: its adapter or one of its models is not to be had.
        """
        if student.training.distillation is None:
            return None
        folder = adapter_folder(student.training.distillation.teacher)
        arm = adapter.read(folder).arm
        places = [adapter.find_frozen(section.path, folder) for section in (arm.encoder, arm.llm)]
        encoder = encoder_shape(places[0], arm.encoder.dtype, arm.encoder.layers)
        llm = llm_shape(places[1], arm.llm.dtype, arm.llm.layers)
        frozen = (
            encoder.parameters_in_all * BYTES[arm.encoder.dtype]
            + llm.parameters_in_all * BYTES[arm.llm.dtype]
        )
        sections = Sections.of(arm)
        trained = trained_parameters(sections, encoder, llm)
        return cls(encoder, llm, sections, trained, frozen + OF_TRAINED * sum(trained.values()))

    def forward(self, seconds: float, prompt_tokens: int, target_tokens: int) -> float:
        """Operations of its forward pass over a clip of so many seconds."""
        heard = clip(seconds, self.encoder, self.sections, prompt_tokens, target_tokens)
        step = work(heard, self.encoder, self.llm, self.sections, self.trained)
        return step.encoder_forward + step.llm_forward + FORWARD * step.trained

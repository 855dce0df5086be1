"""Transcriptions as OpenAI's `/v1/audio/transcriptions` takes and gives them."""

import json
from typing import Any

from steermoe.asr.transcript import Transcript, render
from steermoe.server import schema
from steermoe.server.errors import RequestError
from steermoe.server.service import Dictation, Service

JSON, TEXT = "application/json", "text/plain; charset=utf-8"


class Wanted:
    """What a transcription's form asks for.

    Raises:
        RequestError: a field that is illegal, or that has no effect here.
    """

    def __init__(self, service: Service, fields: dict[str, str], granularities: tuple[str, ...]) -> None:
        service.check_name(fields.get("model"))
        self._service = service
        self.format = schema.one_of(fields.get("response_format"), "response_format", schema.FORMATS, "json")
        self.stream = schema.truth(fields.get("stream"), "stream")
        temperature = schema.number(fields.get("temperature"), "temperature", 1.0)
        if self.stream and self.format not in ("json", "text"):
            raise RequestError(
                400,
                f"stream: response_format {self.format} has no pieces; take json, or do not stream",
                "stream",
            )
        # Like OpenAI's, a hint; only what is known to be wrong is refused.
        try:
            self.language = schema.language_code(fields.get("language"))
        except ValueError as error:
            raise RequestError(400, str(error), "language") from None
        if None not in (self.language, service.language) and self.language != service.language:
            raise RequestError(
                400, f"language: found {fields['language']!r}; {service.name} is for {service.language}: leave it out",
                "language",
            )  # fmt: skip
        name = "timestamp_granularities[]"
        self.granularities = {
            schema.one_of(each, name, schema.GRANULARITIES, "segment") for each in granularities
        }
        if granularities and self.format != "verbose_json":
            raise RequestError(400, f"{name}: needs response_format verbose_json", name)
        context = fields.get("prompt") or None
        if context is not None and len(context) > service.limits.max_text:
            raise RequestError(400, f"prompt: more than {service.limits.max_text} characters", "prompt")
        self.how = Dictation(
            schema.generation(service.limits.max_tokens, temperature), context, words="word" in self.granularities
        )  # fmt: skip

    def content(self, transcript: Transcript) -> tuple[str, str]:
        """The transcript in the format that was asked for, and its media type."""
        common = {"usage": {"type": "duration", "seconds": transcript.seconds}, **self._warned(transcript)}
        if self.format == "json":
            return json.dumps({"text": transcript.text, **common}), JSON
        content = render(transcript, self.format)
        if self.format != "verbose_json":
            return content, TEXT
        verbose = json.loads(content)
        words = [word for segment in verbose["segments"] for word in segment.pop("words")]
        if self.how.words:
            verbose["words"] = words
        if self.granularities == {"word"}:
            del verbose["segments"]
        language = self._service.language or self.language or "und"  # ISO 639-2: undetermined
        return json.dumps({**verbose, "language": language, **common}), JSON

    def done(self, transcript: Transcript) -> list[Any]:
        """The last events of a stream."""
        return [{"type": "transcript.text.done", "text": transcript.text, **self._warned(transcript)}]

    def headers(self, transcript: Transcript) -> dict[str, str]:
        """What a format without a place for warnings says of them."""
        warnings = self._service.warnings(transcript)
        return {"x-steermoe-warnings": "; ".join(warnings)} if warnings else {}

    def _warned(self, transcript: Transcript) -> dict[str, list[str]]:
        """Ours, not OpenAI's: what speaks against a transcript."""
        warnings = self._service.warnings(transcript)
        return {"warnings": warnings} if warnings else {}

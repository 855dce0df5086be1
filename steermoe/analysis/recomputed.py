"""Claims computed anew: parameters from the real modules, hours from operations, ceilings from a csv."""

from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from functools import cache

from steermoe.analysis.audit import Audit, Sections, audit, separate_routers
from steermoe.analysis.claims import Claim, Claims, Method, Models
from steermoe.analysis.plan import EFFICIENCY, GPUS, Corpus, Setup, plan
from steermoe.analysis.presets import encoder_shape, llm_shape

Ceilings = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Recomputed:
    """A claim computed anew.

    Attributes:
        value: in the claim's unit; None where only a range comes out.
        text: the same in words.
        how: it can be checked.
        agrees: whether it rounds to what was published; None where that cannot be said.
    """

    value: float | None
    text: str
    how: str
    agrees: bool | None


def recompute(claim: Claim, known: Claims, ceilings: Ceilings | None) -> Recomputed | None:
    """The claim computed anew; None where there is nothing to compute, or no csv to compute it from."""
    if claim.recompute is not None:
        arguments = dict(claim.recompute)
        how = arguments.pop("how")
        if how == "clothoaqa":
            return None if ceilings is None else _ceiling(claim, ceilings, **arguments)
        return CHECKS[how](claim, known.method, **arguments)
    if claim.of is None:
        return None
    found = counted(claim.of, known.method)
    number = found.part(claim.part)
    parts = {claim.part: number} if claim.part in found.frozen else found.trained
    how = " + ".join(f"{count:,} {part}" for part, count in parts.items())
    return _value(claim, number / 1e6, f"{number:,}", how)


def contradictions(known: Claims, claims: list[Claim], ceilings: Ceilings | None) -> list[str]:
    """A line for each claim that is contradicted: the claim, what comes out instead, and how to check it."""
    lines = []
    for claim in claims:
        if claim.status != "contradicted":
            continue
        said = f"{claim.id}: {claim.value:g} {claim.unit} {claim.metric}, {claim.system}"
        found = recompute(claim, known, ceilings)
        if found is not None:
            lines.append(f"{said}; recomputed: {found.text} ({found.how}). {claim.note}")
        elif claim.against is not None:
            other = known.claims[claim.against]
            against = f"{other.value:g} {other.unit} {other.system}, {known.cited(other)}"
            lines.append(f"{said}; against {other.id}: {against}. {claim.note}")
    return lines


def counted(of: Models, method: Method) -> Audit:
    """The parameters of a published configuration."""
    return _counted(of.model_dump_json(), method.model_dump_json())


@cache
def _counted(models: str, method: str) -> Audit:
    of = Models.model_validate_json(models)
    return audit(_sections(of, Method.model_validate_json(method)), of.encoder, of.llm)


def _sections(of: Models, method: Method) -> Sections:
    steering = method.steering
    if of.num_experts is not None:
        steering = steering.model_copy(update={"num_experts": of.num_experts})
    return Sections(
        of.method,
        steering if of.method == "steering" else None,
        method.lora if of.method == "lora" else None,
        method.bridge,
    )


def _value(claim: Claim, value: float, text: str, how: str) -> Recomputed:
    digits = Decimal(repr(claim.value)).normalize().as_tuple().exponent
    assert isinstance(digits, int)
    return Recomputed(value, text, how, abs(value - claim.value) <= 10.0 ** min(digits, 0) / 2 + 1e-9)


def _ceiling(claim: Claim, ceilings: Ceilings, protocol: str, figure: str) -> Recomputed:
    found = ceilings[protocol]
    value = 100 * found[figure]
    return _value(claim, value, f"{value:.1f} %", f"{figure} over {found['items']:,} items of the csv given")


def _growth(claim: Claim, method: Method, encoder: str, llm: str, experts: list[int]) -> Recomputed:
    few, many = (
        counted(Models(encoder=encoder, llm=llm, method="steering", num_experts=number), method).total
        for number in experts
    )
    growth = 100 * (many / few - 1)
    return _value(claim, growth, f"{growth:.1f} %", f"{few:,} -> {many:,} trained parameters")


def _routers(claim: Claim, method: Method, encoder: str, experts: int) -> Recomputed:
    models = Models(encoder=encoder, llm="qwen2.5-0.5b-instruct", method="steering", num_experts=experts)
    shared = counted(models, method).part("router")
    shape = encoder_shape(encoder)
    apart = separate_routers(len(shape.layers), shape.width, experts)
    return _value(claim, apart / shared, f"{apart / shared:g} x", f"{apart:,} against {shared:,} parameters")


def _weights(claim: Claim, method: Method, encoder: str, llm: str) -> Recomputed:
    parameters = encoder_shape(encoder).parameters_in_all, llm_shape(llm).parameters_in_all
    gigabytes = 2 * sum(parameters) / 1e9
    how = f"2 bytes x ({parameters[0]:,} + {parameters[1]:,}), nothing but weights"
    return _value(claim, gigabytes, f"{gigabytes:.1f} GB", how)


def _gpu_hours(
    claim: Claim,
    method: Method,
    encoder: str,
    llm: str,
    gpu: str,
    epochs: float,
    hours: list[float],
    mean_seconds: float,
) -> Recomputed:
    setup = Setup(GPUS[gpu], 1, 120.0, "bfloat16", "bfloat16")
    sections = _sections(Models(encoder=encoder, llm=llm, method="steering"), method)
    low, high = (f"{100 * share:.0f}" for share in EFFICIENCY)
    ranges = []
    for amount in hours:
        corpus = Corpus(amount, epochs, mean_seconds, prompt_tokens=10, target_tokens=40)
        padded, bare = plan(encoder_shape(encoder), llm_shape(llm), sections, corpus, setup).cases
        ranges.append(
            f"{amount:g} h of audio: {padded.hours[1]:.1f} to {padded.hours[0]:.1f} GPU-h {padded.name} "
            f"({100 * padded.floor_hours / claim.value:.1f} % of the peak in {claim.value:g} GPU-h), "
            f"{bare.hours[1]:.1f} to {bare.hours[0]:.1f} {bare.name} "
            f"({100 * bare.floor_hours / claim.value:.1f} %)"
        )
    how = (
        f"`steermoe plan`: {epochs:g} epochs, clips of {mean_seconds:g} s, {low} to {high} % of the "
        f"{GPUS[gpu].peak / 1e12:g} TFLOP/s of one {gpu}"
    )
    return Recomputed(None, "; ".join(ranges), how, None)


def _nothing_trained(claim: Claim, method: Method) -> Recomputed:
    return _value(claim, 0.0, "0", "a model that is evaluated as it is has no trained parameter")


CHECKS: dict[str, Callable[..., Recomputed]] = {
    "growth": _growth,
    "routers": _routers,
    "weights": _weights,
    "gpu_hours": _gpu_hours,
    "nothing_trained": _nothing_trained,
}

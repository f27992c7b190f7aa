"""Which linears stay in float: the most sensitive ones first, as many as the level says."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from telechat_kit.errors import ParameterError
from telechat_kit.model.w8a8 import SHARED_INPUTS
from telechat_kit.quantization.sensitivity import rank


@dataclass(frozen=True)
class FloatLinear:
    """A linear kept in float, and why."""

    name: str
    score: float | None  # None where others chose
    reason: str


def parse_level(level: str, linears: int) -> int:
    """Number of linears in float that `level` ("L0" ... ) asks for, of `linears` there are."""
    match = re.fullmatch(r"L(\d+)", str(level))
    if not match:
        raise ParameterError(
            f'level "{level}" is unknown. Use L0, L5, L10 ...: L and the number of linears in float.'
        )
    if int(match[1]) > linears:
        raise ParameterError(
            f"level {level} asks for {match[1]} float linears, the model has {linears}. Use a lower one."
        )
    return int(match[1])


def partners(name: str) -> list[str]:
    """The other linears that read the same input as `name`."""
    for group in SHARED_INPUTS:
        for member in group:
            if name.endswith(member):
                return [name.removesuffix(member) + other for other in group if other != member]
    return []


def choose_float_linears(
    scores: Mapping[str, float], level: str, group_fallback: bool = True
) -> list[FloatLinear]:
    """The linears to keep in float, most sensitive first.

    With `group_fallback` the partners of a chosen linear stay in float with it, beyond the number of the level
    if the last one chosen has one; without it single linears are counted, as msModelSlim does.
    """
    order = rank(scores)
    chosen = order[: parse_level(level, len(order))]
    kept = [
        FloatLinear(name, scores[name], f"rank {position} of {len(order)} by sensitivity")
        for position, name in enumerate(chosen, start=1)
    ]
    return kept + (_split_partners(chosen, scores) if group_fallback else [])


def _split_partners(chosen: Sequence[str], scores: Mapping[str, float]) -> list[FloatLinear]:
    return [
        FloatLinear(partner, scores[partner], f"reads the same input as {name}")
        for name in chosen
        for partner in partners(name)
        if partner not in chosen
    ]

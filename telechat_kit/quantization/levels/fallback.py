"""Which linears stay in float: as many of the most sensitive ones as the level says, or those that it lists.

Level `auto`, which measures, is `measured_levels`' business.
"""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from telechat_kit.errors import ParameterError
from telechat_kit.messages import Message, marked
from telechat_kit.model.layout import LAYOUTS, group_of
from telechat_kit.quantization.calibration.sensitivity import rank

#: The level that is found by measuring
AUTO = "auto"


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
            'level "{level}" is unknown. Use L0, L5, L10 ... (L and the number of linears in float), auto, '
            'or names and patterns of linears: "transformer.h.2.mlp.down_proj, transformer.h.28.mlp.*".',
            level=level,
        )
    if int(match[1]) > linears:
        raise ParameterError(
            "level {level} asks for {match} float linears, the model has {linears}. Use a lower one.",
            level=level,
            match=match[1],
            linears=linears,
        )
    return int(match[1])


def check_level(level: str, names: Sequence[str]) -> None:
    """Refuse a `level` that the linears `names` cannot satisfy, before any of the work."""
    if is_list(level):
        listed(level, names)
    elif level != AUTO:
        parse_level(level, len(names))


def is_list(level: str) -> bool:
    """Whether `level` lists names or patterns; every name of a linear has dots."""
    return any(sign in str(level) for sign in ".*?[,")


def listed(level: str, names: Sequence[str]) -> list[str]:
    """Those of `names` that `level`, names and shell patterns separated by commas, lists, in its order.

    The prefix `transformer.` may be left out, as in the files of the 7B, and so may `model.`.

    Raises:
        ParameterError: one of them matches nothing; it is named, with the nearest name.
    """
    found: dict[str, None] = {}
    prefixes = ("", *(layout.prefix for layout in LAYOUTS))
    for pattern in filter(None, (part.strip() for part in level.split(","))):
        matches = [
            name
            for name in names
            if any(fnmatchcase(name.removeprefix(prefix), pattern) for prefix in prefixes)
        ]
        if not matches:
            nearest = difflib.get_close_matches(pattern, names, n=1, cutoff=0)[0]
            raise ParameterError(
                'level: "{pattern}" matches no linear of this model. The nearest name is {nearest}.',
                pattern=pattern,
                nearest=nearest,
            )
        found |= dict.fromkeys(matches)
    return list(found)


def partners(name: str) -> list[str]:
    """The other linears that read the same input as `name`."""
    before, group = group_of(name) or ("", ())
    return [before + other for other in group if before + other != name]


def input_groups(names: Iterable[str], together: bool = True) -> list[list[str]]:
    """The linears `names`, those that read the same input `together` or each by itself; in their order."""
    groups: dict[frozenset[str], list[str]] = {}
    for name in names:
        groups.setdefault(frozenset([name, *partners(name)] if together else [name]), []).append(name)
    return list(groups.values())


def choose_float_linears(
    scores: Mapping[str, float],
    level: str,
    group_fallback: bool = True,
    order: Sequence[str] | None = None,
) -> list[FloatLinear]:
    """The linears to keep in float, most sensitive first, or in the order of the list.

    With `group_fallback` the partners of a chosen linear stay in float with it, beyond the number of the level
    if the last one chosen has one; without it single linears are counted, as msModelSlim does. With
    `order`, names by the noise of int8 in the residual stream, a number of linears is taken from there.
    """
    if is_list(level):
        kept = [FloatLinear(name, scores[name], "listed") for name in listed(level, list(scores))]
    else:
        by = marked("int8 noise in the residual stream") if order else "sensitivity"
        order = order or rank(scores)
        kept = [
            FloatLinear(
                name,
                scores[name],
                Message(
                    "rank {position} of {count} by {score}", position=position, count=len(order), score=by
                ),
            )
            for position, name in enumerate(order[: parse_level(level, len(order))], start=1)
        ]
    if not group_fallback:
        return kept
    chosen = {linear.name for linear in kept}
    return kept + [
        FloatLinear(partner, scores[partner], Message("shares an input with {linear}", linear=linear.name))
        for linear in kept
        for partner in partners(linear.name)
        if partner not in chosen
    ]

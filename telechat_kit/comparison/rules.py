"""Conditions on figures as text: what fails a comparison (`--fail-if`), and the limits that a run has to keep."""

import math
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from telechat_kit.errors import ParameterError
from telechat_kit.messages import marked

OPERATORS: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_NUMBER = r"[-+]?[\d.]+(?:e[-+]?\d+)?"
_RULE = re.compile(rf"\s*(\w+(?:\[[^\]]+\])?)\s*(<=|>=|<|>)\s*({_NUMBER})\s*(x?)\s*", re.I)
_LIMIT = re.compile(rf"\s*(\w+)(?:\[([^\]]+)\])?\s*(<=|>=|<|>)\s*({_NUMBER})(?:\s*x\s+(\S.*?))?\s*", re.I)

#: Figures that a limit can be set on -> whether it is asked for each text, and what the figure is called
LIMITED = {
    "kl_mean": (True, marked("mean KL from float, nats per token")),
    "perplexity_ratio": (True, marked("perplexity, W8A8 over float")),
    "top1_agreement": (True, marked("same first choice, share of positions")),
    "equal_answers": (False, marked("answers equal to the last token, share")),
    "w8a8_bytes": (False, marked("weight files")),
    "tokens_per_second": (False, marked("tokens per second")),
}
#: Limits that a profile may set; a page lists each of them
MOST_LIMITS = 100
#: Those that only mean something against another side
RELATIVE = ("w8a8_bytes", "tokens_per_second")
FLOAT = "float"

#: Int8 has to lose less than what is shipped widely at four bits: llama.cpp's table for Llama 3 8B on Wikitext
#: (tools/perplexity/README.md) gives Q4_K_M a mean KL of 0.031, a perplexity ratio of 1.028 and the same first choice
#: at 91.9 % of the positions; Q6_K has 0.0055, 1.003 and 96.0 %, Q8_0 0.0014, 1.0004 and 97.7 %. And it is to be no
#: slower than float.
DEFAULT_LIMITS = (
    "kl_mean < 0.03",
    "perplexity_ratio < 1.03",
    "top1_agreement > 0.92",
    "tokens_per_second > 1x float",
)


@dataclass(frozen=True)
class Rule:
    """A condition for CI: a figure, a comparison, and a number that is a multiple of the first run's with `x`."""

    text: str
    figure: str
    operator: str
    number: float
    relative: bool

    def holds(self, value: float) -> bool:
        """Whether `value` meets the condition."""
        return OPERATORS[self.operator](value, self.number)


def parse_rule(text: str) -> Rule:
    """`tokens_per_second < 0.95x` or `perplexity_ratio > 1.05` as a rule."""
    found = _RULE.fullmatch(text)
    number = _number(found[3]) if found else None
    if found is None or number is None:
        raise ParameterError(
            '--fail-if "{text}" is no condition. Write a figure, <, <=, > or >=, and a number, with an x for '
            "a multiple of the first run: 'tokens_per_second < 0.95x'.",
            text=text,
        )
    return Rule(text.strip(), found[1], found[2], number, bool(found[4]))


@dataclass(frozen=True)
class Limit:
    """What a figure of a run must keep: below or above `number`, for each text or one of them.

    `against` is what `number` is a multiple of: "float", or the place of another run; empty: nothing.
    """

    text: str
    figure: str
    where: str
    operator: str
    number: float
    against: str = ""

    @property
    def is_ceiling(self) -> bool:
        """Whether the figure is to stay below."""
        return self.operator.startswith("<")

    def keeps(self, value: float) -> bool:
        """Whether `value` keeps the limit."""
        return OPERATORS[self.operator](value, self.number)

    @property
    def by_text(self) -> bool:
        """Whether each text has a figure of its own."""
        return LIMITED[self.figure][0]


def parse_limits(texts: Sequence[str]) -> list[Limit]:
    """The limits of a profile.

    Raises:
        ParameterError: a text is no limit, or names a figure that none can be set on, or there are too many.
    """
    if len(texts) > MOST_LIMITS:
        raise ParameterError(
            "limits: {count} of them, more than {most}. Take some away.", count=len(texts), most=MOST_LIMITS
        )
    return [_parse_limit(text) for text in texts]


def _parse_limit(text: str) -> Limit:
    found = _LIMIT.fullmatch(text)
    number = _number(found[4]) if found else None
    if found is None or number is None:
        raise ParameterError(
            'limits: "{text}" is no limit. Write a figure, <, <=, > or >=, and a number: "kl_mean < 0.03", '
            '"kl_mean[zh] < 0.1", "tokens_per_second > 1.5x float", "tokens_per_second > 0.95x '
            'results/before".',
            text=text,
        )
    figure, where, sign, _, against = found.groups()
    if figure not in LIMITED:
        raise ParameterError(
            'limits: "{text}": no limit can be set on "{figure}". Use {limited}.',
            text=text,
            figure=figure,
            limited=", ".join(LIMITED),
        )
    if where and not LIMITED[figure][0]:
        raise ParameterError(
            'limits: "{text}": {figure} is not by text. Leave out [{where}].',
            text=text,
            figure=figure,
            where=where,
        )
    if bool(against) != (figure in RELATIVE):
        remedy = (
            f'"{figure} {sign} {found[4]}x float"' if figure in RELATIVE else f'"{figure} {sign} {found[4]}"'
        )
        raise ParameterError('limits: "{text}": write {remedy}.', text=text, remedy=remedy)
    return Limit(text.strip(), figure, where or "", sign, number, against or "")


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None

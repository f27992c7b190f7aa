"""Level `auto`: the float linears that a budget buys, found by measuring the model's own divergence.

All blocks are quantized at L0. Then some samples flow through variants that keep candidates for float in float, one
by one and the best ones together.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from telechat_kit.errors import ParameterError
from telechat_kit.messages import Message
from telechat_kit.quantization.levels.fallback import FloatLinear, input_groups
from telechat_kit.quantization.levels.hidden_states import Variant, VariantPass
from telechat_kit.quantization.partial import Pass

#: Groups of linears whose effect is measured one by one; the others add less noise to the residual stream.
CANDIDATES = 24


@dataclass(frozen=True)
class Budget:
    """What level `auto` may spend or must reach: single linears in float, or KL in nats per token."""

    linears: int | None = None
    kl: float | None = None


@dataclass(frozen=True)
class Candidate:
    """Linears that go to float together, and the KL of the model that keeps only them in float."""

    names: list[str]
    residual_noise: float  # estimate by which the candidates were picked, see `linear_quality`
    kl: float


@dataclass(frozen=True)
class Prefix:
    """The best candidates in float together: how many, their linears, and the KL of the model."""

    candidates: int
    linears: int
    kl: float


@dataclass(frozen=True)
class MeasuredLevel:
    """How the float linears of level `auto` were found. KL is that of int8 from float, mean in nats per token.

    The KL of candidates and prefixes is measured with the ranges of L0; `kl_written` is that of the checkpoint as
    it was written, with ranges calibrated anew.
    """

    budget: str
    samples: int
    tokens: int
    groups: int  # of linears in the model, of which the candidates add most noise to the residual stream
    kl_int8: float
    candidates: list[Candidate]  # by measured gain for each linear, the best first
    prefixes: list[Prefix]
    chosen: int  # number of candidates in float
    kl_chosen: float
    kl_written: float | None = None


def parse_budget(text: str, linears: int) -> Budget:
    """The budget that `text`, "5 linears" or "KL 0.02", stands for in a model of so many `linears`."""
    count = re.fullmatch(r"\s*(\d+)\s+linears?\s*", str(text))
    kl = re.fullmatch(r"\s*KL\s+(\d*\.?\d+(?:e-?\d+)?)\s*", str(text), re.IGNORECASE)
    if count and int(count[1]) > linears:
        raise ParameterError(
            'budget "{text}": the model has {linears} linears. Use a smaller number.',
            text=text,
            linears=linears,
        )
    if count:
        return Budget(linears=int(count[1]))
    if kl and float(kl[1]):
        return Budget(kl=float(kl[1]))
    raise ParameterError(
        'budget "{text}" is unknown. Use "5 linears" (at most so many stay in float) or "KL 0.02" (the '
        "divergence from float, nats per token, that is not to be exceeded).",
        text=text,
    )


def _sum(names: Sequence[str], noise: Mapping[str, float]) -> float:
    return sum(noise[name] for name in names)


def order_by_gain(kl: Mapping[Variant, float], noise: Mapping[str, float]) -> list[Candidate]:
    """Candidates by what each of their linears gains, the best first; those that gain nothing are last."""
    found = [Candidate(list(names), _sum(names, noise), value) for names, value in kl.items() if names]
    return sorted(found, key=lambda candidate: (candidate.kl - kl[()]) / len(candidate.names))


def prefixes_within(candidates: Sequence[Candidate], budget: Budget, kl_int8: float) -> list[list[Candidate]]:
    """The best one, two ... candidates that gain anything, for as long as the budget for linears lasts.

    A candidate that the rest of the budget does not suffice for is passed over. There are none if int8 itself
    reaches the KL of the budget.
    """
    if budget.kl is not None and kl_int8 <= budget.kl:
        return []
    left = budget.linears if budget.linears is not None else sum(len(found.names) for found in candidates)
    taken: list[Candidate] = []
    prefixes = []
    for candidate in candidates:
        if candidate.kl < kl_int8 and len(candidate.names) <= left:
            left -= len(candidate.names)
            taken = [*taken, candidate]
            prefixes.append(taken)
    return prefixes


def choose_measured(
    variant_pass: VariantPass,
    samples: Sequence[Tensor],
    noise: Mapping[str, float],
    scores: Mapping[str, float],
    budget: str,
    together: bool,
    numbers: tuple[str, str],
) -> tuple[list[FloatLinear], MeasuredLevel]:
    """The linears to keep in float within `budget`, the best first, and what was measured to find them.

    Args:
        variant_pass: without variants; two passes are made of it, for single candidates and for the best ones together.
        samples: ids, each `[1, T]`.
        noise: residual noise of every linear, in the order of the network.
        scores: sensitivity scores, for the record.
        together: linears that share an input are one candidate.
        numbers: what is said before the names of the two passes.

    Raises:
        ParameterError: the KL of the budget is not reached with all candidates that gain anything in float.
    """
    limit, groups = parse_budget(budget, len(noise)), input_groups(noise, together)
    noisiest = sorted(groups, key=lambda names: -_sum(names, noise))[:CANDIDATES]
    singles = replace(variant_pass, variants=[(), *(tuple(names) for names in noisiest)])
    kl = singles.measure(samples, Message("{numbers}, candidates through blocks", numbers=numbers[0]))
    candidates = order_by_gain(kl, noise)
    gaining = prefixes_within(candidates, limit, kl[()])
    prefixes = _measured_prefixes(variant_pass, samples, gaining, list(noise), numbers[1])
    best = _best([Prefix(0, 0, kl[()]), *prefixes], limit, budget)
    measured = MeasuredLevel(
        budget=budget,
        samples=len(samples),
        tokens=sum(sample.numel() for sample in samples),
        groups=len(groups),
        kl_int8=kl[()],
        candidates=candidates,
        prefixes=prefixes,
        chosen=best.candidates,
        kl_chosen=best.kl,
    )
    taken = gaining[best.candidates - 1] if best.candidates else []
    return [linear for found in taken for linear in _float_linears(found, kl[()], scores)], measured


def _measured_prefixes(
    variant_pass: VariantPass,
    samples: Sequence[Tensor],
    prefixes: Sequence[Sequence[Candidate]],
    order: Sequence[str],
    number: str,
) -> list[Prefix]:
    """KL with all candidates of each prefix in float; `order` has all linears as the network has them."""
    if not prefixes:
        return []
    members = [{name for candidate in prefix for name in candidate.names} for prefix in prefixes]
    variants = [tuple(name for name in order if name in names) for names in members]
    joint = replace(variant_pass, results=Pass(variant_pass.results.folder, "joint"), variants=variants)
    kl = joint.measure(samples, Message("{number}, best candidates through blocks", number=number))
    return [Prefix(size, len(variant), kl[variant]) for size, variant in enumerate(variants, start=1)]


def _best(prefixes: Sequence[Prefix], budget: Budget, text: str) -> Prefix:
    """The prefix of least KL, or the shortest one that reaches the budget's."""
    least = min(prefixes, key=lambda prefix: prefix.kl)
    if budget.kl is None:
        return least
    if least.kl > budget.kl:
        raise ParameterError(
            'budget "{text}" is not met: all in int8 the KL is {kl:.3g}, and the best measured choice, '
            "{linears} linears in float, reaches {reached:.3g}. Allow that much, or use another anti_outlier.",
            text=text,
            kl=prefixes[0].kl,
            linears=least.linears,
            reached=least.kl,
        )
    return next(prefix for prefix in prefixes if prefix.kl <= budget.kl)


def _float_linears(candidate: Candidate, kl_int8: float, scores: Mapping[str, float]) -> list[FloatLinear]:
    reason: str = Message(
        "measured: KL {kl_int8:.3g} -> {kl:.3g} when float", kl_int8=kl_int8, kl=candidate.kl
    )
    if len(candidate.names) > 1:
        names = " and ".join(name.rpartition(".")[2] for name in candidate.names)
        reason = Message("{reason}, {names} together", reason=reason, names=names)
    return [FloatLinear(name, scores[name], reason) for name in candidate.names]

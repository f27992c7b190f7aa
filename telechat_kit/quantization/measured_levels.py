"""Level `auto`: the float linears that a budget buys, found by measuring the model's own divergence.

Some samples flow through the network block by block as float states, as all-int8 states and as variants that keep
candidates in float. A variant parts from the others at the block of its first float linear, so that memory holds
one block and the states of the variants. The int8 blocks are those of a quantization at L0.
"""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from telechat_kit.errors import ParameterError
from telechat_kit.model.int8 import RUNTIME_TENSORS, W8A8Linear
from telechat_kit.model.shards import Shards
from telechat_kit.model.w8a8 import stored_name
from telechat_kit.quantization.blocks import Block, stream
from telechat_kit.quantization.divergence import divergences
from telechat_kit.quantization.fallback import FloatLinear, partners
from telechat_kit.quantization.partial import Pass

#: Groups of linears whose effect is measured one by one; the others add less noise to the residual stream.
CANDIDATES = 24

#: Names of the linears in float, in the order of the network
Variant = tuple[str, ...]


@dataclass(frozen=True)
class Budget:
    """What level `auto` may spend or must reach: single linears in float, or KL in nats per token."""

    linears: int | None = None
    kl: float | None = None


@dataclass(frozen=True)
class Candidate:
    """Linears that go to float together, and the KL of the model that keeps only them in float."""

    names: list[str]
    residual_noise: float  # estimate by which the candidates were picked, see `figures`
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
    if match := re.fullmatch(r"\s*(\d+)\s+linears?\s*", str(text)):
        if int(match[1]) > linears:
            raise ParameterError(f'budget "{text}": the model has {linears} linears. Use a smaller number.')
        return Budget(linears=int(match[1]))
    if (match := re.fullmatch(r"\s*KL\s+(\d*\.?\d+(?:e-?\d+)?)\s*", str(text), re.IGNORECASE)) and float(
        match[1]
    ):
        return Budget(kl=float(match[1]))
    raise ParameterError(
        f'budget "{text}" is unknown. Use "5 linears" (at most so many stay in float) or "KL 0.02" (the divergence '
        "from float, nats per token, that is not to be exceeded)."
    )


def groups(names: Sequence[str], together: bool) -> list[list[str]]:
    """The linears `names`, those that read the same input `together` or each by itself."""
    found: dict[frozenset[str], list[str]] = {}
    for name in names:
        found.setdefault(frozenset([name, *partners(name)] if together else [name]), []).append(name)
    return list(found.values())


@dataclass(frozen=True)
class Flow:
    """A pass in which states flow through the float network and through variants of the int8 one.

    States of a step: first those of the float network, `samples` of them, then as many of each variant that differs.

    Attributes:
        packed: the int8 blocks, as written.
        prepare: makes of a float block what its float parts are in the int8 network, given its float linears.
    """

    shards: Shards
    results: Pass
    device: torch.device
    packed: Pass
    prepare: Callable[[Block, Collection[str]], None]
    variants: Sequence[Variant]
    samples: int

    def step(self, block: Block, states: Sequence[Tensor]) -> list[Tensor]:
        """States after `block`: of the float network, then of every variant."""
        held = dict(zip(self._distinct(block.index - 1), _split(states, self.samples)[1:], strict=True))
        after = block.run(states[: self.samples])
        int8 = self._int8_linears(block)
        self.prepare(block, self._float_names(block, int8))
        floats = {name: block.submodule(name) for name in int8}
        for variant in self._distinct(block.index):
            for name, linear in int8.items():
                block.replace(name, floats[name] if name in variant else linear)
            after += block.run(held[_until(variant, block.index - 1)])
        self.results.write(block.index, {}, None, after)
        return after

    def measure(self, samples: Sequence[Tensor], description: str) -> dict[Variant, float]:
        """KL of each variant on `samples` (ids `[1, T]`). What is finished already is kept."""
        count = self.shards.config.n_layer
        stream(self, [*samples, *samples], description)
        if self.results.finished == count:
            reference, *others = _split(self.results.states(count - 1), self.samples)
            self.results.write(count, {}, divergences(self.shards, reference, others, self.device), [])
        return dict(zip(self.variants, self.results.details(count), strict=True))

    def _distinct(self, index: int) -> list[Variant]:
        """The variants that differ up to block `index`, by their float linears up to there."""
        return list(dict.fromkeys(_until(variant, index) for variant in self.variants))

    def _int8_linears(self, block: Block) -> dict[str, W8A8Linear]:
        tensors, found = self.packed.tensors(block.index), {}
        for name in block.linear_names:
            stored = stored_name(name, self.shards.config)
            parts = {part: tensors.get(f"{stored}.{part}") for part in RUNTIME_TENSORS}
            if parts["deq_scale"] is not None:
                found[name] = W8A8Linear(
                    {key: tensor for key, tensor in parts.items() if tensor is not None}
                ).to(self.device)
        return found

    def _float_names(self, block: Block, int8: Mapping[str, object]) -> set[str]:
        return {name for variant in self.variants for name in variant} | (set(block.linear_names) - set(int8))


def _until(variant: Variant, index: int) -> Variant:
    """The float linears of `variant` in the blocks up to `index`."""
    return tuple(name for name in variant if int(name.split(".")[2]) <= index)


def _split(states: Sequence[Tensor], size: int) -> list[Sequence[Tensor]]:
    return [states[start : start + size] for start in range(0, len(states), size)]


def most_promising(noise: Mapping[str, float], together: bool) -> list[list[str]]:
    """The groups of linears whose int8 adds the most noise to the residual stream, the noisiest first."""
    noisiest = sorted(groups(list(noise), together), key=lambda names: -_sum(names, noise))
    return noisiest[:CANDIDATES]


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
    flow: Flow,
    samples: Sequence[Tensor],
    noise: Mapping[str, float],
    scores: Mapping[str, float],
    budget: str,
    together: bool,
) -> tuple[list[FloatLinear], MeasuredLevel]:
    """The linears to keep in float within `budget`, the best first, and what was measured to find them.

    Args:
        flow: without variants; two passes are made of it, for single candidates and for the best ones together.
        samples: ids, each `[1, T]`.
        noise: residual noise of every linear, in the order of the network.
        scores: sensitivity scores, for the record.
        together: linears that share an input are one candidate.

    Raises:
        ParameterError: the KL of the budget is not reached with all candidates that gain anything in float.
    """
    limit, picked = parse_budget(budget, len(noise)), most_promising(noise, together)
    singles = replace(flow, variants=[(), *(tuple(names) for names in picked)])
    kl = singles.measure(samples, "3 of 6, candidates through blocks")
    candidates = order_by_gain(kl, noise)
    gaining = prefixes_within(candidates, limit, kl[()])
    prefixes = _measured_prefixes(flow, samples, gaining, list(noise))
    best = _best([Prefix(0, 0, kl[()]), *prefixes], limit, budget)
    measured = MeasuredLevel(
        budget=budget,
        samples=len(samples),
        tokens=sum(sample.numel() for sample in samples),
        groups=len(groups(list(noise), together)),
        kl_int8=kl[()],
        candidates=candidates,
        prefixes=prefixes,
        chosen=best.candidates,
        kl_chosen=best.kl,
    )
    taken = gaining[best.candidates - 1] if best.candidates else []
    return [linear for found in taken for linear in _float_linears(found, kl[()], scores)], measured


def _measured_prefixes(
    flow: Flow, samples: Sequence[Tensor], prefixes: Sequence[Sequence[Candidate]], order: Sequence[str]
) -> list[Prefix]:
    if not prefixes:
        return []
    members = [{name for candidate in prefix for name in candidate.names} for prefix in prefixes]
    variants = [tuple(name for name in order if name in names) for names in members]
    joint = replace(flow, results=Pass(flow.results.folder, "joint"), variants=variants)
    kl = joint.measure(samples, "4 of 6, best candidates through blocks")
    return [Prefix(size, len(variant), kl[variant]) for size, variant in enumerate(variants, start=1)]


def _best(prefixes: Sequence[Prefix], budget: Budget, text: str) -> Prefix:
    """The prefix of least KL, or the shortest one that reaches the budget's."""
    least = min(prefixes, key=lambda prefix: prefix.kl)
    if budget.kl is None:
        return least
    if least.kl > budget.kl:
        raise ParameterError(
            f'budget "{text}" is not met: all in int8 the KL is {prefixes[0].kl:.3g}, and the best measured choice, '
            f"{least.linears} linears in float, reaches {least.kl:.3g}. Allow that much, or use another anti_outlier."
        )
    return next(prefix for prefix in prefixes if prefix.kl <= budget.kl)


def _float_linears(candidate: Candidate, kl_int8: float, scores: Mapping[str, float]) -> list[FloatLinear]:
    reason = f"measured: KL {kl_int8:.3g} -> {candidate.kl:.3g} when float"
    if len(candidate.names) > 1:
        reason += ", " + " and ".join(name.rpartition(".")[2] for name in candidate.names) + " together"
    return [FloatLinear(name, scores[name], reason) for name in candidate.names]

"""States that flow block by block through the float network and through variants of the int8 one.

A variant keeps some linears in float. It parts from the others at the block of its first float linear, so that
memory holds one block and the states of the variants that differ already. Which variants are of interest is
`measured_levels`' business.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from telechat_kit.model.int8_linears import DYNAMIC_TENSORS, RUNTIME_TENSORS, int8_linear_of
from telechat_kit.model.w8a8 import stored_name
from telechat_kit.model.weight_shards import Shards
from telechat_kit.quantization.blocks import Block, stream
from telechat_kit.quantization.levels.head_divergence import kl_divergences
from telechat_kit.quantization.partial import Pass

ALL_PARTS = {*RUNTIME_TENSORS, *DYNAMIC_TENSORS}

#: Names of the linears in float, in the order of the network
Variant = tuple[str, ...]


@dataclass(frozen=True)
class VariantPass:
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
    prepare: Callable[[Block, Collection[str]], object]
    variants: Sequence[Variant]
    samples: int

    def step(self, block: Block, states: Sequence[Tensor]) -> list[Tensor]:
        """States after `block`: of the float network, then of every variant."""
        held = dict(zip(self._distinct(block.index - 1), _split(states, self.samples)[1:], strict=True))
        after = block.run(states[: self.samples])
        int8 = self._int8_linears(block)
        not_int8 = set(block.linear_names) - set(int8)
        self.prepare(block, {name for variant in self.variants for name in variant} | not_int8)
        floats = {name: block.submodule(name) for name in int8}
        for variant in self._distinct(block.index):
            for name, linear in int8.items():
                block.replace(name, floats[name] if name in variant else linear)
            after += block.run(held[_until(variant, block.index - 1)])
        self.results.write(block.index, {}, None, after)
        return after

    def measure(self, samples: Sequence[Tensor], description: str) -> dict[Variant, float]:
        """Mean KL of each variant on `samples` (ids `[1, T]`). What is finished already is kept."""
        weights = torch.tensor([float(sample.numel()) for sample in samples], dtype=torch.float64)
        weights /= weights.sum()
        found = self.by_sample(samples, description)
        return {
            variant: float(weights @ torch.tensor(kl, dtype=torch.float64)) for variant, kl in found.items()
        }

    def by_sample(self, samples: Sequence[Tensor], description: str) -> dict[Variant, list[float]]:
        """KL of each variant on each of the `samples`."""
        count = self.shards.config.n_layer
        stream(self, [*samples, *samples], description)
        if self.results.finished == count:
            reference, *others = _split(self.results.states(count - 1), self.samples)
            self.results.write(count, {}, kl_divergences(self.shards, reference, others, self.device), [])
        return dict(zip(self.variants, self.results.details(count), strict=True))

    def _distinct(self, index: int) -> list[Variant]:
        """The variants that differ up to block `index`, by their float linears up to there."""
        return list(dict.fromkeys(_until(variant, index) for variant in self.variants))

    def _int8_linears(self, block: Block) -> dict[str, nn.Module]:
        """The linears of the block that are packed in int8, static or dynamic, by name."""
        tensors = self.packed.tensors(block.index)
        found: dict[str, nn.Module] = {}
        for name in block.linear_names:
            stored = stored_name(name, self.shards.config)
            parts = {part: tensors[key] for part in ALL_PARTS if (key := f"{stored}.{part}") in tensors}
            if "weight_scale" in parts:
                found[name] = int8_linear_of({part: value.to(self.device) for part, value in parts.items()})
        return found


def _until(variant: Variant, index: int) -> Variant:
    """The float linears of `variant` in the blocks up to `index`."""
    return tuple(name for name in variant if int(name.split(".")[2]) <= index)


def _split(states: Sequence[Tensor], size: int) -> list[Sequence[Tensor]]:
    return [states[start : start + size] for start in range(0, len(states), size)]

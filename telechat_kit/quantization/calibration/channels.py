"""How large each channel of a linear's input gets in calibration: outliers, dead channels, before and after smoothing."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial

import torch
from torch import Tensor

from telechat_kit.quantization.blocks import Block
from telechat_kit.quantization.calibration.groups import reader_scales


class ChannelMaxima:
    """Largest absolute value of every input channel `[in]` of some linears, over all samples they see."""

    def __init__(self, names: Iterable[str]) -> None:
        #: what was there of an input that the linear reads mixed with others, `[in]`
        self.before: dict[str, Tensor] = {}
        self._maxima: dict[str, Tensor | None] = dict.fromkeys(names)

    def updates(self) -> dict[str, Callable[[Tensor], None]]:
        """What `observed` calls with the inputs `[..., in]` of each linear."""
        return {name: partial(self._update, name) for name in self._maxima}

    def _update(self, name: str, x: Tensor) -> None:
        largest, before = x.reshape(-1, x.shape[-1]).abs().amax(dim=0), self._maxima[name]
        self._maxima[name] = largest if before is None else torch.maximum(before, largest)

    def facts(
        self, block: Block, scales: Mapping[str, Tensor], channels: Tensor | None = None
    ) -> dict[str, dict[str, float | int]]:
        """Fields of a `LinearRecord` for each linear of `block`, folded with the smoothing `scales` of its feeders.

        `channels` tells which feed-forward channel each one is, if some were split.
        """
        divisor = reader_scales(block, scales)
        if channels is not None:
            down = block.prefix + block.layout.down
            divisor |= {down: divisor[down].to(channels.device)[channels]} if down in divisor else {}
        return {
            name: _facts(
                largest, self._raw(name, largest, divisor.get(name)), block.parameter(f"{name}.weight").data
            )
            for name, largest in self._maxima.items()
            if largest is not None
        }

    def _raw(self, name: str, largest: Tensor, divisor: Tensor | None) -> Tensor:
        """Largest values without outlier suppression."""
        if name in self.before:
            return self.before[name]
        return largest if divisor is None else largest * divisor.to(largest.device).abs()


def _facts(largest: Tensor, raw: Tensor, weight: Tensor) -> dict[str, float | int]:
    return {
        "input_absmax": largest.max().item(),
        "input_median": largest.median().item(),
        "raw_absmax": raw.max().item(),
        "raw_median": raw.median().item(),
        "dead_inputs": int((largest == 0).sum()),
        "dead_outputs": int((weight == 0).all(dim=1).sum()),
    }

"""How badly int8 activations suit a linear's input, and the order in which linears fall back to float.

Which of the ranked linears stay float, and how many samples are looked at, is decided by the pipeline.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from telechat_kit.errors import DataError


class SensitivityScore:
    """Streaming score of one linear's input: its largest absolute value over its spread within channels.

    msModelSlim calls it range_param; disable_level ranks by it. One constant outlier channel among C channels
    scores close to sqrt(C).
    """

    def __init__(self) -> None:
        self._peak: Tensor | None = None
        self._std: Tensor | None = None

    def update(self, x: Tensor) -> None:
        """Take in one sample `x [..., C]`; nothing of its size is kept.

        The shift of a channel is max + min of this sample, not their half, as in the reference.
        """
        tokens = x.reshape(-1, x.shape[-1])
        low, high = tokens.amin(dim=0), tokens.amax(dim=0)
        peak = torch.maximum(high.max(), -low.min())
        std = (tokens - (high + low)).std()
        self._peak = peak if self._peak is None else torch.maximum(self._peak, peak)
        self._std = std if self._std is None else torch.maximum(self._std, std)

    def value(self) -> float:
        """The score so far; infinite where channels are constant, 0 where every activation is 0.

        Raises:
            DataError: no sample was taken in, or the activations are not finite.
        """
        if self._peak is None or self._std is None:
            raise DataError("no activations to score: the linear was not reached by any calibration line.")
        if not torch.isfinite(self._peak):
            raise DataError(
                "the activations are not finite (NaN or infinity): their sensitivity has no meaning."
            )
        if self._peak == 0:
            return 0.0
        return float(self._peak / self._std)


def sensitivity_score(samples: Sequence[Tensor]) -> float:
    """Score of one linear's inputs `samples`, each `[..., C]`. The reference looks at the first five."""
    score = SensitivityScore()
    for sample in samples:
        score.update(sample)
    return score.value()


def rank(scores: Mapping[str, float]) -> list[str]:
    """Names by descending score, the most sensitive first; ties keep the mapping's order (first forward)."""
    return sorted(scores, key=scores.__getitem__, reverse=True)

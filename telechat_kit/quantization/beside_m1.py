"""Method best beside m1 on text that neither was calibrated on: where m1 loses less, the record says so.

A network without outliers, of random weights say, has nothing that best could do against them, and may lose more by it than it gains. All of the
linears that best keeps in float stay so for m1, whose scales and ranges are found on a few of the samples.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from telechat_kit.messages import Message
from telechat_kit.model.weight_shards import Shards
from telechat_kit.quantization.blocks import stream
from telechat_kit.quantization.partial import Pass
from telechat_kit.quantization.recipe import AppliedRecipe
from telechat_kit.quantization.streaming import Analyzer, Quantized, Quantizer, variant_pass
from telechat_kit.statistics import Estimate, mean_over_sequences

#: Samples that are held back, of at most so many tokens, and samples that m1 is calibrated on: few, for the whole comparison
#: is to take a fraction of the quantization
SAMPLES, TOKENS, CALIBRATED = 10, 64, 2
M1 = "m1"


@dataclass(frozen=True)
class BesideM1:
    """KL from float of the W8A8 model and of one made by m1, nats per token, on `samples` held back from both.

    `change` is that of m1 less that of best, paired by sample.
    """

    samples: int
    tokens: int
    kl: Estimate
    kl_m1: Estimate
    change: Estimate


def beside_m1(
    shards: Shards,
    held: Sequence[Tensor],
    samples: Sequence[Tensor],
    recipe: AppliedRecipe,
    quantized: Quantized,
    device: torch.device,
) -> BesideM1 | None:
    """Measure both on `held` (ids `[1, T]`); None where there is nothing to measure on.

    Work goes to the folder of the `quantized` blocks; what is finished there is kept.
    """
    if not held:
        return None
    folder, kept = quantized.blocks.folder, frozenset(linear.name for linear in quantized.float_linears)
    own = Quantizer(shards, recipe, Pass(folder, "analysis"), kept, quantized.blocks, device, len(samples))
    kl = _measured(own, held, 1)
    kl_m1 = _measured(
        _by_m1(Shards(shards.folder), samples[:CALIBRATED], recipe, kept, folder, device), held, 4
    )
    change = mean_over_sequences(kl_m1 - kl)
    return BesideM1(len(held), sum(sample.numel() for sample in held), _kl(kl), _kl(kl_m1), change)


def _by_m1(
    shards: Shards,
    samples: Sequence[Tensor],
    recipe: AppliedRecipe,
    kept: frozenset[str],
    folder: Path,
    device: torch.device,
) -> Quantizer:
    """The blocks as m1 makes them, those linears in float that best has."""
    m1 = replace(recipe, anti_outlier=M1, ingredients=[], split_channels=0)
    analysis, blocks = Pass(folder, "m1-analysis"), Pass(folder, "m1-block")
    stream(Analyzer(shards, m1, analysis, device), samples, _number(2))
    quantizer = Quantizer(shards, m1, analysis, kept, blocks, device, len(samples))
    stream(quantizer, samples, _number(3))
    return quantizer


def _measured(quantizer: Quantizer, held: Sequence[Tensor], number: int) -> np.ndarray:
    """KL of each sample, `[samples, 1]`."""
    check = variant_pass(quantizer, f"{quantizer.recipe.anti_outlier}-held-back", len(held))
    return np.array(check.by_sample(held, _number(number))[()])[:, None]


def _number(number: int) -> str:
    return Message("{number} of 4, comparison with m1", number=number)


def _kl(rows: np.ndarray) -> Estimate:
    return mean_over_sequences(rows).clip(low=0.0)

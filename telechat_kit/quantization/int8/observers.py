"""Int8 ranges of activations: observers take samples one by one and give a static scale and offset.

The score that the automatic choice of an observer looks at comes from `sensitivity`; weights are `packing`'s.
"""

import functools
import itertools
import math
import operator
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from telechat_kit.backends.plain import quantize_per_token
from telechat_kit.errors import DataError, ParameterError

#: Smallest scale, so that an all-zero tensor can be divided by it: float32's epsilon, as in msModelSlim.
EPS = 2**-23

#: Automatic choice: inputs of a higher score have outliers that carry meaning, so nothing of them is cut off.
MIN_MAX_ABOVE_SCORE = 50

ACT_METHODS = (1, 2, 3)

#: Histogram: bins, parts that a bin is cut into for merging, bins of the int8 grid, step of the quantiles.
BINS, UPSAMPLE, GRID, STEP = 2048, 128, 256, 1e-5

#: Earlier samples whose range is this many times smaller than the new one are dropped. The reference drops
#: constant ones only; its memory grows with this ratio, beyond what any machine has.
NEGLIGIBLE = 2**22


def affine_parameters(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Asymmetric int8 scale `[1]` and offset `[1]` of the range `low..high` (scalars).

    Per-tensor quantizer of msModelSlim: 256 steps over the range, widened to hold 0. Both results have the
    dtype of the bounds; the offset is an integer.
    """
    low, high = low.reshape(1).clamp(max=0), high.reshape(1).clamp(min=0)
    scale = ((high - low) / 255).clamp(min=EPS)
    return scale, torch.round(-low / scale) - 128


def fake_quantize(x: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
    """`x` rounded to the int8 grid of `scale [1]`, `offset [1]`, in its dtype: what calibration goes on with.

    The offset is added before rounding here, as in msModelSlim's calibration, and after it in the int8 model.
    """
    steps = (x / scale).add_(offset).round_().clamp_(-128, 127)
    return steps.sub_(offset).mul_(scale).to(x.dtype)


def fake_quantize_per_token(x: Tensor) -> Tensor:
    """`x [..., K]` rounded to the int8 grid of each token, in its dtype: the error of dynamic activations.

    Raises:
        DataError: the sample is empty or not finite.
    """
    _finite_bounds(x)
    x_q, scale = quantize_per_token(x)
    return (x_q * scale).to(x.dtype)


class MinMaxObserver:
    """Range from the mean of the samples' minima to the mean of their maxima (msModelSlim's act_method 1).

    With `widest` it is from the least to the largest value of all samples, as newer versions of that tool have it.
    """

    def __init__(self, widest: bool = False) -> None:
        self.widest = widest
        # Python numbers: scalar tensors among large temporary ones keep the heap from shrinking (2 GB on the demo)
        self._lows: list[float] = []
        self._highs: list[float] = []
        self._like = torch.zeros(())

    def update(self, x: Tensor) -> None:
        """Take in one sample of any shape; two scalars of it are kept.

        Raises:
            DataError: the sample is empty or not finite.
        """
        low, high = _finite_bounds(x)
        self._lows.append(low.item())
        self._highs.append(high.item())
        self._like = low

    def range(self) -> tuple[Tensor, Tensor]:
        """Lower and upper bound, scalars in the samples' dtype."""
        if not self._lows:
            raise _nothing_observed()
        lows, highs = self._like.new_tensor(self._lows), self._like.new_tensor(self._highs)
        return (lows.min(), highs.max()) if self.widest else (lows.mean(), highs.mean())

    def parameters(self) -> tuple[Tensor, Tensor]:
        """Scale `[1]` and offset `[1]` after the samples so far."""
        return affine_parameters(*self.range())


class HistogramObserver:
    """Range that loses least when a histogram of all samples is quantized (act_method 2 of msModelSlim).

    The method is that of PyTorch's HistogramObserver: histograms of 2048 bins are merged over growing ranges,
    then both ends move inwards for as long as the squared error of the int8 grid does not grow. As in the
    reference a sample is counted within the integer parts of its bounds only, which clips inputs of order 1.
    The state lies on the CPU: it is small, and float64 is not a type of every device.
    """

    def __init__(self) -> None:
        self._histogram = torch.zeros(0)
        self._low = self._high = torch.zeros(())
        self._sample = torch.zeros(0)

    def update(self, x: Tensor) -> None:
        """Take in one sample of any shape; it is added to the histogram and not kept.

        Raises:
            DataError: the sample is empty or not finite.
        """
        low, high = (bound.float().cpu() for bound in _finite_bounds(x))
        joint = torch.minimum(self._low, low), torch.maximum(self._high, high)
        if (self._high - self._low) * NEGLIGIBLE <= joint[1] - joint[0]:
            self._low, self._high, self._histogram = low, high, _count(x, low, high)
        else:
            self._merge(x, *joint)
        self._sample = x.new_empty(0)

    def _merge(self, x: Tensor, low: Tensor, high: Tensor) -> None:
        """Add the sample `x` over `low..high`, widened until a bin is a whole number of old fine ones."""
        fine = (self._high - self._low) / (BINS * UPSAMPLE)
        coarse = int(torch.ceil((high - low) / (fine * BINS)))
        high = high + (fine * BINS * coarse - (high - low))
        histogram = _count(x, low, high)
        if low == self._low and high == self._high:
            self._histogram = self._histogram + histogram
        else:
            start = int(torch.round((self._low - low) / fine))
            self._histogram = histogram + _spread(self._histogram, start, coarse)
        self._low, self._high = low, high

    def range(self) -> tuple[Tensor, Tensor]:
        """Lower and upper bound after the search, scalars in float32."""
        if not len(self._histogram):
            raise _nothing_observed()
        width = (self._high - self._low) / BINS
        start, end = _narrowest(self._histogram, float(width))
        return self._low + width * start, self._low + width * (end + 1)

    def parameters(self) -> tuple[Tensor, Tensor]:
        """Scale `[1]` and offset `[1]` after the samples so far, bfloat16 for such samples, else float32."""
        dtype = torch.bfloat16 if self._sample.dtype == torch.bfloat16 else torch.float32
        scale, offset = affine_parameters(*self.range())
        return scale.to(self._sample.device, dtype), offset.to(self._sample.device, dtype)


def make_observer(
    act_method: int, score: float | None = None, widest: bool = False
) -> MinMaxObserver | HistogramObserver:
    """The observer of one linear's input.

    Args:
        act_method: 1 min-max, 2 histogram, 3 automatic.
        score: the linear's `sensitivity_score` for the automatic choice; None, unknown, counts as 0.
        widest: min-max over all samples instead of the mean over them.

    Raises:
        ParameterError: `act_method` is none of these.
    """
    if act_method not in ACT_METHODS:
        raise ParameterError(
            "act_method {act_method!r} is unknown. Use 1 (min-max), 2 (histogram) or 3 (automatic).",
            act_method=act_method,
        )
    if act_method == 1 or (act_method == 3 and (score or 0) > MIN_MAX_ABOVE_SCORE):
        return MinMaxObserver(widest)
    return HistogramObserver()


def activation_range(
    samples: Sequence[Tensor], act_method: int, score: float | None = None
) -> tuple[Tensor, Tensor]:
    """Scale `[1]` and offset `[1]` of an input that took the values `samples` (any shapes), in this order."""
    observer = make_observer(act_method, score)
    for sample in samples:
        observer.update(sample)
    return observer.parameters()


def _finite_bounds(x: Tensor) -> tuple[Tensor, Tensor]:
    if x.numel() == 0:
        raise DataError("an activation to be observed is empty. Check the calibration lines for empty ones.")
    low, high = torch.aminmax(x)
    if not (torch.isfinite(low) and torch.isfinite(high)):
        raise DataError(
            "the activations are not finite (NaN or infinity), so they have no int8 range. "
            "Check the float checkpoint and its dtype: float16 overflows above 65504."
        )
    return low, high


def _nothing_observed() -> DataError:
    return DataError("no activations were observed: the linear was not reached by any calibration line.")


def _count(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Histogram `[BINS]` of `x` between the bounds' integer parts; if equal, torch.histc takes the data's."""
    return torch.histc(x.float(), BINS, min=float(low.trunc()), max=float(high.trunc())).cpu()


def _spread(histogram: Tensor, start: int, coarse: int) -> Tensor:
    """`histogram [BINS]` rebinned: fine bins, UPSAMPLE to a bin, from `start` on, read `coarse` at a time."""
    edges = torch.arange(BINS + 1) * coarse - start
    edges = edges.clamp(0, BINS * UPSAMPLE)
    whole, part = edges // UPSAMPLE, edges % UPSAMPLE / UPSAMPLE
    counts = functional.pad(histogram.double(), (0, 1))
    below = functional.pad(histogram.double().cumsum(0), (1, 0))
    return (below[whole] + part * counts[whole]).diff().float()


def _narrowest(histogram: Tensor, width: float) -> tuple[int, int]:
    """First and last bin of the kept range: the last of the path before the error grows."""
    kept, best = (0, BINS - 1), math.inf
    path = _narrowings(histogram) if width > 0 else iter(())
    while batch := list(itertools.islice(path, 8)):
        for bins, error in zip(batch, _squared_errors(histogram, width, batch), strict=True):
            if error > best:
                return kept
            kept, best = bins, error
    return kept


def _narrowings(histogram: Tensor) -> Iterator[tuple[int, int]]:
    """Ever narrower (first bin, last bin): quantiles at both ends move in by STEP, the longer jump first.

    While no quantile leaves its bin only the upper one moves on, so these steps are skipped in one go.
    """
    alphas, betas = _quantiles()
    cumulative, total = histogram.cumsum(0), float(histogram.sum())
    lefts = torch.searchsorted(cumulative, (alphas * total).float())
    rights = torch.searchsorted(cumulative, (betas * total).float(), right=True) - 1
    rising = -rights
    start, end, i, j = 0, BINS - 1, 0, 0
    while start < end and alphas[i] < betas[j]:
        left, right = min(max(int(lefts[i + 1]), start), end), max(min(int(rights[j + 1]), end), start)
        if left - start > end - right:
            start, i = left, i + 1
        elif right < end:
            end, j = right, j + 1
        else:
            j = int(torch.searchsorted(rising, -end, right=True)) - 1
            continue
        yield start, end


@functools.cache
def _quantiles() -> tuple[Tensor, Tensor]:
    """float64 quantiles from 0 upwards and from 1 downwards, summed step by step as the reference does."""
    steps = [STEP] * round(1 / STEP + 1)
    alphas = itertools.accumulate(steps, initial=0.0)
    betas = itertools.accumulate(steps, operator.sub, initial=1.0)
    return torch.tensor(list(alphas), dtype=torch.float64), torch.tensor(list(betas), dtype=torch.float64)


def _squared_errors(histogram: Tensor, width: float, kept: Sequence[tuple[int, int]]) -> list[float]:
    """Squared error of each of the `kept` ranges of bins when the histogram is quantized to GRID bins in it.

    The density is constant inside a bin of the histogram, so that a stretch from b to e adds
    density * ((e - center)^3 - (b - center)^3) / 3, and every whole target bin in between 2 * half^3 / 3.
    """
    first, last = torch.tensor(kept, dtype=torch.float64).unsqueeze(-1).unbind(1)
    target = width * (last - first + 1) / GRID
    begin = (torch.arange(BINS, dtype=torch.float64) - first) * width
    end = begin + width
    bin_begin = (begin / target).floor().clamp(0, GRID - 1)
    bin_end = (end / target).floor().clamp(0, GRID - 1)
    tails = (end - (bin_end + 0.5) * target) ** 3 - (begin - (bin_begin + 0.5) * target) ** 3
    spanned = tails + 2 * (target / 2) ** 3 * (bin_end - bin_begin)
    return (spanned * histogram.double() / (3 * width)).sum(dim=1).tolist()

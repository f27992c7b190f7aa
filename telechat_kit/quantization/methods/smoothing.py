"""Outlier suppression: scales for the channels of a linear's input move outliers from there into its weights.

The functions work on one group, the linears that read the same input. Finding them is the pipeline's business.
"""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from telechat_kit.errors import DataError, ParameterError
from telechat_kit.quantization.int8.observers import affine_parameters, fake_quantize
from telechat_kit.quantization.methods.activation_aware import activation_aware_scale

#: m1: SmoothQuant, alpha 0.5; m2: Outlier Suppression+, threshold searched; m3: AWQ; m4: SmoothQuant, alpha 0.9.
METHODS = ("m1", "m2", "m3", "m4")

#: Methods that measure a loss on the first sample, which is kept for them.
MEASURING = ("m2", "m3")

#: Smallest scale and smallest weight maximum.
FLOOR = 1e-5

#: Thresholds that m2 tries.
SEARCH_STEPS = 100

#: A group of this many linears is taken as query, key and value.
ATTENTION_LINEARS = 3


class GroupStatistics:
    """Streaming statistics of a group's input, in the samples' dtype, `[in]` or scalar.

    Args:
        keep_first: keep the first sample whole; the `MEASURING` methods measure their loss on it.

    Attributes:
        maximum, minimum: of each channel, over the samples so far.
        shift: their mean, the middle of each channel.
        thres_t: largest value of x - shift, signed, each sample with the shift of its time.
        thres_c: the same for each channel.
        std: largest standard deviation of x - shift over a whole sample.
        absolute_maximum: of each channel, without the shift (`a_c`).
        first: the first sample `[..., in]`, or None.
    """

    maximum: Tensor
    minimum: Tensor
    shift: Tensor
    thres_t: Tensor
    thres_c: Tensor
    std: Tensor
    absolute_maximum: Tensor

    def __init__(self, keep_first: bool = False) -> None:
        self.keep_first = keep_first
        self.first: Tensor | None = None
        self.count = 0

    def update(self, x: Tensor) -> None:
        """Take in one sample `x [..., in]`.

        Raises:
            DataError: the sample is not finite.
        """
        tokens = x.reshape(-1, x.shape[-1])
        low, high = tokens.amin(dim=0), tokens.amax(dim=0)  # aminmax over rows is twenty times as slow
        if not (torch.isfinite(low).all() and torch.isfinite(high).all()):
            raise DataError(
                "the activations before outlier suppression are not finite (NaN or infinity). "
                "Check the float checkpoint and its dtype: float16 overflows above 65504."
            )
        if self.count == 0:
            self._start(x, low, high)
        self.count += 1
        self.maximum = torch.maximum(self.maximum, high)
        self.minimum = torch.minimum(self.minimum, low)
        self.shift = (self.maximum + self.minimum) / 2
        self._take_shifted(tokens - self.shift)
        self.absolute_maximum = torch.maximum(self.absolute_maximum, torch.maximum(high, -low))

    def _start(self, x: Tensor, low: Tensor, high: Tensor) -> None:
        self.maximum, self.minimum = high, low
        self.thres_t = self.std = high.new_full((), -torch.inf)
        self.thres_c = torch.full_like(high, -torch.inf)
        self.absolute_maximum = torch.zeros_like(high)
        self.first = x.clone() if self.keep_first else None

    def _take_shifted(self, shifted: Tensor) -> None:
        highest = shifted.amax(dim=0)
        self.thres_c = torch.maximum(self.thres_c, highest)
        self.thres_t = torch.maximum(self.thres_t, highest.max())
        self.std = torch.maximum(self.std, shifted.std())


def weight_maximum(weights: Sequence[Tensor]) -> Tensor:
    """Largest absolute weight `[in]` of each input channel over a group's `weights`, each `[out_i, in]`."""
    maxima = [weight.abs().amax(dim=0) for weight in weights]
    return torch.stack(maxima).amax(dim=0).clamp(min=FLOOR)


def smoothing_scale(
    samples: Sequence[Tensor],
    weights: Sequence[Tensor],
    method: str,
    bias: Sequence[Tensor | None] | None = None,
) -> Tensor:
    """Smoothing scale `[in]` of one group: activations are to be divided by it, weights multiplied.

    Args:
        samples: the group's inputs, each `[..., in]`, in calibration order.
        weights: of the group's linears, each `[out_i, in]`.
        method: "m1", "m2", "m3" or "m4"; m3 looks at the first sample only.
        bias: of the group's linears, each `[out_i]` or None; matters to m2 in groups of three linears only.
    """
    statistics = GroupStatistics(keep_first=method in MEASURING)
    for sample in samples:
        statistics.update(sample)
    return scale_from_statistics(statistics, weights, method, bias)


def scale_from_statistics(
    statistics: GroupStatistics,
    weights: Sequence[Tensor],
    method: str,
    bias: Sequence[Tensor | None] | None = None,
) -> Tensor:
    """As `smoothing_scale`, from statistics that were gathered sample by sample.

    Raises:
        ParameterError: the method is unknown.
        DataError: no sample was taken in.
    """
    if method not in METHODS:
        raise ParameterError(
            'outlier suppression "{method}" is unknown. Use one of {methods}.',
            method=method,
            methods=", ".join(METHODS),
        )
    _require_samples(statistics)
    if method == "m3":
        return activation_aware_scale(_first_sample(statistics, method), weights)
    if method == "m4":
        return migration_scale(statistics, weights, 0.9)
    if method == "m1" or 3 * statistics.std >= statistics.thres_t:
        return migration_scale(statistics, weights, 0.5)
    return _searched_scale(statistics, weights, bias or [None] * len(weights))


def fold_smoothing(
    feeder: Tensor,
    weights: Sequence[Tensor],
    scale: Tensor,
    rows: Tensor | None = None,
    columns: Tensor | None = None,
) -> tuple[Tensor, list[Tensor]]:
    """A feeder's weight divided and the `weights` it feeds (each `[out_i, in]`) multiplied by `scale [in]`.

    The function computed by all together stays the same; biases do not change, so a feeder must have none.
    Dtypes are kept.

    Args:
        feeder: a norm `[in]`, or a linear `[out, ...]` whose rows give the channels.
        rows: the feeder's row behind each channel, `[in]`; None when it has one row a channel, in their order.
        columns: the scale of each column of `weights`; None when they have one column a channel, in their order.
    """
    divisor = scale = scale.to(feeder.device)
    if rows is not None:
        divisor = scale.new_ones(len(feeder)).index_copy(0, rows.to(feeder.device), scale)
    if feeder.dim() == 2:
        divisor = divisor[:, None]
    factors = scale if columns is None else columns.to(feeder.device)
    return (feeder / divisor).to(feeder.dtype), [(weight * factors).to(weight.dtype) for weight in weights]


def search_losses(
    statistics: GroupStatistics, weights: Sequence[Tensor], bias: Sequence[Tensor | None]
) -> list[float]:
    """The group's error on the first sample for each of the thresholds that m2 tries, in their order."""
    return [loss for loss, _ in _trials(statistics, weights, bias)]


def migration_scale(statistics: GroupStatistics, weights: Sequence[Tensor], alpha: float) -> Tensor:
    """SmoothQuant, equation 4: `activation^alpha / weight^(1 - alpha)` for each channel `[in]`, of their maxima.

    Raises:
        DataError: no sample was taken in.
    """
    _require_samples(statistics)
    largest = weight_maximum(weights).to(statistics.absolute_maximum.dtype)
    return (_power(statistics.absolute_maximum, alpha) / _power(largest, 1 - alpha)).clamp(min=FLOOR)


def _require_samples(statistics: GroupStatistics) -> None:
    if statistics.count == 0:
        raise DataError("no activations to smooth: the group was not reached by any calibration line.")


def _first_sample(statistics: GroupStatistics, method: str) -> Tensor:
    if statistics.first is None:
        raise DataError(
            "method {method} needs the first sample: make GroupStatistics with keep_first=True.",
            method=method,
        )
    return statistics.first


def _power(x: Tensor, exponent: float) -> Tensor:
    # torch's float32 root is an ulp off on some CPUs (vector library); the reference's is rounded rightly.
    return x.cpu().double().sqrt().to(x) if exponent == 0.5 else x.pow(exponent)


def _searched_scale(
    statistics: GroupStatistics, weights: Sequence[Tensor], bias: Sequence[Tensor | None]
) -> Tensor:
    """Outlier Suppression+, the threshold searched from one sigma to the maximum; the earliest best wins."""
    best, scale = torch.inf, torch.ones_like(statistics.shift)
    for loss, candidate in _trials(statistics, weights, bias):
        if loss < best:
            best, scale = loss, candidate
    return scale


def _trials(
    statistics: GroupStatistics, weights: Sequence[Tensor], bias: Sequence[Tensor | None]
) -> Iterator[tuple[float, Tensor]]:
    """Loss and scale `[in]` of every threshold of the search."""
    objective = _Objective(_first_sample(statistics, "m2"), statistics.shift, weights, bias)
    largest = weight_maximum(weights).to(statistics.shift.dtype)
    for step in range(SEARCH_STEPS):
        threshold = (statistics.thres_t - statistics.std) * step / (SEARCH_STEPS - 1) + statistics.std
        scale = _threshold_scale(statistics.thres_c, threshold, largest)
        yield objective.loss(scale), scale


def _threshold_scale(maximum: Tensor, threshold: Tensor, weight: Tensor) -> Tensor:
    """Scale `[in]` of channels whose `maximum [in]` passes the scalar threshold; 1 for the others."""
    ratio = (maximum / threshold).clamp(min=1)
    scale = (_power(ratio * threshold, 0.5) / _power(weight, 0.5)).clamp(min=FLOOR)
    return torch.where(ratio <= 1, ratio, scale)


class _Objective:
    """Mean squared error due to int8 activations in a group's output on one sample (loss of method m2)."""

    def __init__(
        self, x: Tensor, shift: Tensor, weights: Sequence[Tensor], bias: Sequence[Tensor | None]
    ) -> None:
        read = len(weights) if len(weights) == ATTENTION_LINEARS else 1
        weights = [w.to(x.dtype) for w in weights[:read]]
        biases = [x.new_zeros(()) if b is None else b.to(x.dtype) for b in bias[:read]]
        self.centered = x - shift
        self.target = self._unit([functional.linear(x, w) + b for w, b in zip(weights, biases, strict=True)])
        self.linears = [(w, b + w @ shift) for w, b in zip(weights, biases, strict=True)]

    def loss(self, scale: Tensor) -> float:
        """The error when activations are divided and weights multiplied by `scale [in]`."""
        x = self.centered / scale
        x = fake_quantize(x, *affine_parameters(*torch.aminmax(x)))
        outputs = [functional.linear(x, w * scale, b) for w, b in self.linears]
        return float(functional.mse_loss(self._unit(outputs), self.target))

    @staticmethod
    def _unit(outputs: Sequence[Tensor]) -> Tensor:
        """The output that is compared: attention over query, key and value, or the first linear's output."""
        if len(outputs) != ATTENTION_LINEARS:
            return outputs[0]
        query, key, value = outputs
        heads = query.split(key.shape[-1], dim=-1)
        return torch.cat([_attend(head, key, value) for head in heads], dim=-1)


def _attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    weights = torch.softmax(query @ key.transpose(-1, -2) / math.sqrt(key.shape[-1]), dim=-1)
    return weights @ value

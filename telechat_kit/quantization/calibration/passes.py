"""What a block's linears see on calibration samples: hooks that observe, and the int8 simulation in between."""

import contextlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

from torch import Tensor, nn

from telechat_kit.errors import DataError
from telechat_kit.quantization.blocks import Block
from telechat_kit.quantization.calibration.groups import (
    BEST,
    all_groups,
    by_channel,
    reader_scales,
    smoothing_groups,
    value_rows,
)
from telechat_kit.quantization.calibration.linear_quality import LinearFigures, float_products, watched
from telechat_kit.quantization.calibration.sensitivity import SensitivityScore
from telechat_kit.quantization.int8.observers import (
    HistogramObserver,
    MinMaxObserver,
    fake_quantize,
    fake_quantize_per_token,
)
from telechat_kit.quantization.int8.packing import fake_quantize_weight
from telechat_kit.quantization.methods.balancing import balanced_scale
from telechat_kit.quantization.methods.smoothing import (
    MEASURING,
    GroupStatistics,
    fold_smoothing,
    migration_scale,
    scale_from_statistics,
)

Observer = MinMaxObserver | HistogramObserver

#: msModelSlim scores the sensitivity on this many samples
SENSITIVITY_SAMPLES = 5

#: Exponents of method best by activations: of groups that a norm or the values feed, and of up_proj -> down_proj.
#: A static range is as wide as the widest channel, so channels are brought close to one size. A token's own scale
#: asks for less, and what is not moved into the weights cannot cost there. A rotation evens channels out before.
BEST_EXPONENTS = {"static": (0.8, 0.9), "turned": (0.5, 0.8), "dynamic": (0.5, 0.5)}

#: Methods that look at no sample beyond the first: sensitivity alone decides how many the first pass needs
FIRST_SAMPLE_ONLY = ("none", "m3")


def smoothing_scales(
    block: Block, states: Sequence[Tensor], method: str, signs: bool = True, spread: str = "static"
) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Outlier suppression of a block: the scale `[in]` of each group by its feeder, and the states after the block.

    Args:
        states: hidden states before the block, each `[1, T, H]`; all of them are looked at, but by m3.
        method: "none" gives no scales; `groups` tells which methods scale more than norms.
        signs: of method best; without them its scales are SmoothQuant's.
        spread: key of `BEST_EXPONENTS`, for method best.

    All scales are those of the float network: no one of them sees another one folded.
    """
    groups = smoothing_groups(block, method)
    statistics = {feeder: GroupStatistics(keep_first=method in MEASURING) for feeder in groups}

    def updating(feeder: str) -> Callable[[Tensor], None]:
        return lambda x: statistics[feeder].update(by_channel(block, feeder, x))

    with observed(block, {linears[0]: updating(feeder) for feeder, linears in groups.items()}):
        after = block.run(states)
    return {
        feeder: group_scale(block, feeder, statistics[feeder], method, signs, spread) for feeder in groups
    }, after


def group_scale(
    block: Block,
    feeder: str,
    statistics: GroupStatistics,
    method: str,
    signs: bool = True,
    spread: str = "static",
) -> Tensor:
    """Scale `[in]` of the group behind `feeder`, from `statistics` of its input; the rest as in `smoothing_scales`."""
    names = all_groups(block)[feeder]
    weights = [by_channel(block, feeder, block.parameter(f"{name}.weight").data) for name in names]
    if method == BEST:
        alpha = BEST_EXPONENTS[spread][feeder.endswith(block.layout.up)]
        scale = _best_scale(statistics, weights, signs, alpha)
    else:
        scale = scale_from_statistics(statistics, weights, method)
    # the reference divides dead channels by 1e-5: should one come alive in use, it would drown all others
    return scale.masked_fill(statistics.absolute_maximum == 0, 1.0)


def _best_scale(statistics: GroupStatistics, weights: Sequence[Tensor], signs: bool, alpha: float) -> Tensor:
    if signs:
        return balanced_scale(statistics.minimum, statistics.maximum, weights, alpha)
    return migration_scale(statistics, weights, alpha)


def fold(block: Block, scales: Mapping[str, Tensor]) -> None:
    """Scale the feeder of each group of `scales` down and its linears up, channel by channel, in place.

    A feeder is a norm, up_proj (each row) or what gives the values (their rows); the block computes the same as before.
    """
    columns, groups = reader_scales(block, scales), all_groups(block)
    for name, scale in scales.items():
        feeder, *linears = (block.parameter(f"{module}.weight") for module in (name, *groups[name]))
        rows = value_rows(block) if name.endswith(block.layout.value) else None
        weights, factors = [linear.data for linear in linears], columns[groups[name][0]]
        feeder.data, folded = fold_smoothing(feeder.data, weights, scale, rows, factors)
        for linear, weight in zip(linears, folded, strict=True):
            linear.data = weight


def sensitivity(block: Block, states: Sequence[Tensor]) -> dict[str, float]:
    """Sensitivity score of each linear's input, in the order of the network; the first samples decide."""
    scores = {name: SensitivityScore() for name in block.linear_names}
    with observed(block, {name: score.update for name, score in scores.items()}):
        block.run(states[:SENSITIVITY_SAMPLES])
    return {name: score.value() for name, score in scores.items()}


def calibrate(
    block: Block,
    states: Sequence[Tensor],
    observers: Mapping[str, Observer],
    figures: Mapping[str, LinearFigures],
) -> list[Tensor]:
    """The states after the block, with the int8 error of the linears in `observers`, which take in their inputs.

    `figures` of the block's linears, in int8 or not, take in what they read and give.
    As in msModelSlim a sample is quantized with the range known after it, and weights are quantized as well,
    so that deeper linears see what they will see in the int8 model. Weights are restored afterwards.
    """
    with (
        watched(block, figures, float_products(block, observers)),
        _quantized_weights(block, observers),
        _quantized_inputs(block, observers, figures),
    ):
        return block.run(states)


def calibrate_dynamic(
    block: Block, states: Sequence[Tensor], names: Collection[str], figures: Mapping[str, LinearFigures]
) -> list[Tensor]:
    """The states after the block, with the int8 error of the linears `names` when their activations are dynamic.

    No range is to be found, but deeper blocks shall see what they will see in the int8 model.
    """
    with (
        watched(block, figures, float_products(block, names)),
        _quantized_weights(block, names),
        observed(block, dict.fromkeys(names, fake_quantize_per_token)),
    ):
        return block.run(states)


@contextlib.contextmanager
def observed(block: Block, updates: Mapping[str, Callable[[Tensor], Tensor | None]]) -> Iterator[None]:
    """While active, `updates[name]` gets every input of the linear `name`, and may give another one in its place.

    An error in it is told with the name.
    """
    handles = [
        block.submodule(name).register_forward_pre_hook(_observing(name, update))
        for name, update in updates.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _observing(name: str, update: Callable[[Tensor], Tensor | None]) -> Callable[..., Tensor | None]:
    def hook(_: nn.Module, inputs: tuple[Tensor]) -> Tensor | None:
        try:
            return update(inputs[0])
        except DataError as error:
            raise DataError("input of {name}: {error}", name=name, error=error) from error

    return hook


def _quantized_inputs(
    block: Block, observers: Mapping[str, Observer], figures: Mapping[str, LinearFigures]
) -> contextlib.AbstractContextManager[None]:
    def observe_and_quantize(observer: Observer, taken: LinearFigures) -> Callable[[Tensor], Tensor]:
        def update(x: Tensor) -> Tensor:
            observer.update(x)
            scale, offset = observer.parameters()
            taken.take_range(x, scale, offset)
            return fake_quantize(x, scale, offset)

        return update

    return observed(
        block, {name: observe_and_quantize(observer, figures[name]) for name, observer in observers.items()}
    )


@contextlib.contextmanager
def _quantized_weights(block: Block, names: Iterable[str]) -> Iterator[None]:
    """While active, the weights of the linears `names` are rounded; their own come back afterwards."""
    parameters = {name: block.parameter(f"{name}.weight") for name in names}
    originals = {name: parameter.data for name, parameter in parameters.items()}
    try:
        for parameter in parameters.values():
            parameter.data = fake_quantize_weight(parameter.data)
        yield
    finally:
        for name, parameter in parameters.items():
            parameter.data = originals[name]

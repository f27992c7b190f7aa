"""What a block's linears see on calibration samples: hooks that observe, and the int8 simulation in between."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from torch import Tensor, nn

from telechat_kit.errors import DataError
from telechat_kit.quantization.blocks import Block
from telechat_kit.quantization.fallback import SHARED_INPUTS
from telechat_kit.quantization.figures import LinearFigures, watched
from telechat_kit.quantization.observers import (
    HistogramObserver,
    MinMaxObserver,
    fake_quantize,
    make_observer,
)
from telechat_kit.quantization.packing import fake_quantize_weight
from telechat_kit.quantization.sensitivity import SensitivityScore
from telechat_kit.quantization.smoothing import (
    GroupStatistics,
    fold_smoothing,
    migration_scale,
    scale_from_statistics,
)

Observer = MinMaxObserver | HistogramObserver

#: msModelSlim scores the sensitivity on this many samples
SENSITIVITY_SAMPLES = 5

#: The kit's own method: SmoothQuant with other exponents, and up_proj -> down_proj smoothed as well. The loss of
#: W8A8 sits in down_proj's input, which no norm feeds; the exponents suit the demo model; on random
#: weights, which have no outliers, the method loses more than m1.
BEST, BEST_NORM_ALPHA, BEST_UP_ALPHA = "best", 0.7, 0.75
UP, DOWN = "mlp.up_proj", "mlp.down_proj"

#: norm of a block -> the linears that it feeds
NORM_GROUPS = dict(zip(("input_layernorm", "post_attention_layernorm"), SHARED_INPUTS, strict=True))


def smoothing_scales(
    block: Block, states: Sequence[Tensor], method: str
) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Outlier suppression of a block: the scale `[in]` of each group by its feeder, and the states after the block.

    Args:
        states: hidden states before the block, each `[1, T, H]`; all of them are looked at.
        method: "none" gives no scales, "best" also that of up_proj -> down_proj.
    """
    groups = smoothing_groups(block, method)
    statistics = {feeder: GroupStatistics(keep_first=method == "m2") for feeder in groups}
    with observed(block, {linears[0]: statistics[feeder].update for feeder, linears in groups.items()}):
        after = block.run(states)
    scales = {}
    for feeder, linears in groups.items():
        weights = [block.parameter(f"{name}.weight").data for name in linears]
        if method == BEST:
            alpha = BEST_UP_ALPHA if feeder.endswith(UP) else BEST_NORM_ALPHA
            scales[feeder] = migration_scale(statistics[feeder], weights, alpha)
        else:
            scales[feeder] = scale_from_statistics(statistics[feeder], weights, method)
    return scales, after


def smoothing_groups(block: Block, method: str) -> dict[str, list[str]]:
    """What feeds the linears that `method` smooths, norm or linear, by name -> names of those linears.

    "best" adds up_proj -> down_proj: SwiGLU's product is linear in `up`, so the rows of the one may be divided
    by what the columns of the other are multiplied by.
    """
    if method == "none":
        return {}
    down = {block.prefix + UP: [block.prefix + DOWN]} if method == BEST else {}
    return norm_groups(block) | down


def norm_groups(block: Block) -> dict[str, list[str]]:
    """Name of each norm of the block -> names of the linears it feeds directly."""
    return {
        block.prefix + norm: [block.prefix + linear for linear in linears]
        for norm, linears in NORM_GROUPS.items()
    }


def fold(block: Block, scales: Mapping[str, Tensor]) -> None:
    """Scale the feeder of each group of `scales` down and its linears up, channel by channel, in place."""
    groups = smoothing_groups(block, BEST)
    for name, scale in scales.items():
        feeder, *linears = (block.parameter(f"{module}.weight") for module in (name, *groups[name]))
        feeder.data, folded = fold_smoothing(feeder.data, [linear.data for linear in linears], scale)
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
    scores: Mapping[str, float],
    act_method: int,
    figures: Mapping[str, LinearFigures],
) -> tuple[dict[str, Observer], list[Tensor]]:
    """Observers of the inputs of the linears in `scores`, and the states after the block, with their int8 error.

    `figures` of the block's linears, in int8 or not, take in what they read and give.
    As in msModelSlim a sample is quantized with the range known after it, and weights are quantized as well,
    so that deeper linears see what they will see in the int8 model. Weights are restored afterwards.
    """
    observers = {name: make_observer(act_method, score) for name, score in scores.items()}
    with (
        watched(block, figures, observers),
        _quantized_weights(block, scores),
        _quantized_inputs(block, observers, figures),
    ):
        after = block.run(states)
    return observers, after


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
            raise DataError(f"input of {name}: {error}") from error

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
    weights = {name: block.parameter(f"{name}.weight") for name in names}
    originals = {name: weight.data for name, weight in weights.items()}
    try:
        for weight in weights.values():
            weight.data = fake_quantize_weight(weight.data)
        yield
    finally:
        for name, weight in weights.items():
            weight.data = originals[name]

"""What a model's linears see on calibration samples: hooks that observe, and the int8 simulation in between."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from telechat_kit.errors import DataError
from telechat_kit.model.network import TelechatForCausalLM
from telechat_kit.progress import track
from telechat_kit.quantization.fallback import SHARED_INPUTS
from telechat_kit.quantization.observers import (
    HistogramObserver,
    MinMaxObserver,
    fake_quantize,
    make_observer,
)
from telechat_kit.quantization.packing import fake_quantize_weight
from telechat_kit.quantization.sensitivity import SensitivityScore
from telechat_kit.quantization.smoothing import GroupStatistics, fold_smoothing, scale_from_statistics

#: msModelSlim scores the sensitivity on this many samples
SENSITIVITY_SAMPLES = 5

#: norm of a block -> the linears that it feeds
NORM_GROUPS = dict(zip(("input_layernorm", "post_attention_layernorm"), SHARED_INPUTS, strict=True))


def run_samples(model: TelechatForCausalLM, samples: Sequence[Tensor], description: str) -> None:
    """Forward every sample `[1, T]` through the network for the hooks' sake; the head is left out."""
    with torch.inference_mode():
        for sample in track(samples, description):
            model.transformer(sample.to(model.device), use_cache=False)


def norm_groups(model: TelechatForCausalLM) -> dict[str, list[str]]:
    """Name of every block norm -> names of the linears it feeds directly."""
    return {
        f"transformer.h.{i}.{norm}": [f"transformer.h.{i}.{linear}" for linear in linears]
        for i in range(model.config.n_layer)
        for norm, linears in NORM_GROUPS.items()
    }


def smooth(model: TelechatForCausalLM, samples: Sequence[Tensor], method: str) -> None:
    """Suppress outliers in place: scale each norm down and its linears up, channel by channel (SmoothQuant)."""
    if method == "none":
        return
    groups = norm_groups(model)
    statistics = {norm: GroupStatistics(keep_first=method == "m2") for norm in groups}
    with observed(model, {linears[0]: statistics[norm].update for norm, linears in groups.items()}):
        run_samples(model, samples, f"outlier suppression {method}")
    for norm, linears in groups.items():
        _fold(model, norm, linears, statistics[norm], method)


def _fold(
    model: TelechatForCausalLM, norm_name: str, names: Sequence[str], statistics: GroupStatistics, method: str
) -> None:
    norm, linears = model.get_submodule(norm_name), [model.get_submodule(name) for name in names]
    weights = [linear.weight.data for linear in linears]
    scale = scale_from_statistics(statistics, weights, method)
    norm.weight.data, folded = fold_smoothing(norm.weight.data, weights, scale)
    for linear, weight in zip(linears, folded, strict=True):
        linear.weight.data = weight


def sensitivity(
    model: TelechatForCausalLM, samples: Sequence[Tensor], names: Sequence[str]
) -> dict[str, float]:
    """Sensitivity score of each named linear's input, in the order of the network."""
    scores = {name: SensitivityScore() for name in names}
    with observed(model, {name: score.update for name, score in scores.items()}):
        run_samples(model, samples[:SENSITIVITY_SAMPLES], "sensitivity")
    return {name: score.value() for name, score in scores.items()}


def calibrate(
    model: TelechatForCausalLM, samples: Sequence[Tensor], scores: Mapping[str, float], act_method: int
) -> dict[str, MinMaxObserver | HistogramObserver]:
    """Observers of the inputs of the linears in `scores`, each sample seen with the int8 error of earlier linears.

    As in msModelSlim a sample is quantized with the range known after it, and weights are quantized as well,
    so that deeper linears see what they will see in the int8 model. Weights are restored afterwards.
    """
    observers = {name: make_observer(act_method, score) for name, score in scores.items()}
    with _quantized_weights(model, scores), _quantized_inputs(model, observers):
        run_samples(model, samples, "calibration")
    return observers


@contextlib.contextmanager
def observed(model: nn.Module, updates: Mapping[str, Callable[[Tensor], Tensor | None]]) -> Iterator[None]:
    """While active, `updates[name]` gets every input of the linear `name`, and may give another one in its place.

    An error in it is told with the name.
    """
    handles = [
        model.get_submodule(name).register_forward_pre_hook(_observing(name, update))
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
    model: nn.Module, observers: Mapping[str, MinMaxObserver | HistogramObserver]
) -> contextlib.AbstractContextManager[None]:
    def observe_and_quantize(observer: MinMaxObserver | HistogramObserver) -> Callable[[Tensor], Tensor]:
        def update(x: Tensor) -> Tensor:
            observer.update(x)
            return fake_quantize(x, *observer.parameters())

        return update

    return observed(model, {name: observe_and_quantize(observer) for name, observer in observers.items()})


@contextlib.contextmanager
def _quantized_weights(model: nn.Module, names: Mapping[str, float]) -> Iterator[None]:
    weights = {name: model.get_parameter(f"{name}.weight") for name in names}
    originals = {name: weight.data for name, weight in weights.items()}
    try:
        for weight in weights.values():
            weight.data = fake_quantize_weight(weight.data)
        yield
    finally:
        for name, weight in weights.items():
            weight.data = originals[name]

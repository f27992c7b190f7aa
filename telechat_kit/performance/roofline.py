"""How fast a device could run a model at best: bytes and operations from the shapes, against what the device can do."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import nn

from telechat_kit.backends import backend_for, cpu
from telechat_kit.backends.data_sheets import data_sheet
from telechat_kit.inference.engine import engine_for
from telechat_kit.inference.network_run import PreallocatedCache
from telechat_kit.model.int8_linears import DynamicW8A8Linear, W8A8Linear
from telechat_kit.model.network import TelechatForCausalLM

#: Rows and sides of the product that the probe times: large enough that nothing but arithmetic counts
PROBE_ROWS, PROBE_SIDE = 512, 2048


@dataclass(frozen=True)
class ModelSize:
    """What one token costs: bytes read whatever the context, and operations (multiplications and additions).

    Those of one device, where several share the model: they work at the same time.
    """

    precision: str
    weight_bytes: int
    #: all weights but the embedding rows not looked up
    read_bytes_per_token: int
    cache_bytes_per_token: int
    #: operations of the int8 linears, and of the float ones without the head
    int8_operations: int = 0
    float_operations: int = 0
    head_operations: int = 0
    #: operations of attention for each position of the context
    attention_operations: int = 0


@dataclass(frozen=True)
class Peaks:
    """Bytes and operations per second of a device, and where the figures come from; None: not known."""

    bandwidth: float
    bandwidth_basis: str
    int8_operations: float | None = None
    float_operations: float | None = None
    operations_basis: str = "not known"


def model_size(name: str, model: TelechatForCausalLM, in_engine: bool = True) -> ModelSize:
    """Bytes and operations of a model.

    Bytes are those that the engine reads, where it runs the model and is meant: the head by its int8 copy.
    """
    config, tensors = model.config, {**dict(model.named_parameters()), **dict(model.named_buffers())}
    total = sum(tensor.nbytes for tensor in tensors.values())
    embedding = model.get_input_embeddings().weight
    if in_engine and (engine := engine_for(model)) is not None:
        read, per_position = engine.read_bytes_per_token, engine.cache_bytes_per_position
    else:
        read = total - (0 if config.tie_word_embeddings else embedding.nbytes)
        per_position = PreallocatedCache.of(model, 1, 1).slots.nbytes
    int8, floats = _operations(model)
    return ModelSize(
        precision=name,
        weight_bytes=total,
        read_bytes_per_token=read,
        cache_bytes_per_token=per_position,
        int8_operations=int8,
        float_operations=floats,
        head_operations=2 * config.vocab_size * config.hidden_size,
        attention_operations=4 * config.n_layer * config.hidden_size,
    )


def _operations(model: TelechatForCausalLM) -> tuple[int, int]:
    """Operations for one token of the int8 linears and of the float ones in the blocks."""
    modules = list(model.transformer.h.modules())
    int8 = [m for m in modules if isinstance(m, W8A8Linear | DynamicW8A8Linear)]
    floats = [m for m in modules if isinstance(m, nn.Linear)]
    return (
        sum(2 * m.in_features * m.out_features for m in int8),
        sum(2 * m.in_features * m.out_features for m in floats),
    )


def prefill_seconds(size: ModelSize, peaks: Peaks, inputs: int, batch: int = 1) -> float:
    """Least time for `batch` prompts of `inputs` tokens: all weights are read once, all operations done."""
    attention = size.attention_operations * inputs * (inputs + 1) / 2
    floats = size.float_operations * inputs + attention + size.head_operations
    return max(
        size.read_bytes_per_token / peaks.bandwidth,
        batch * _seconds(size.int8_operations * inputs, floats, peaks),
    )


def decode_seconds(size: ModelSize, peaks: Peaks, context: float, batch: int = 1) -> float:
    """Least time for one token in each of `batch` rows behind `context` positions: weights are read once for all."""
    read = size.read_bytes_per_token + batch * context * size.cache_bytes_per_token
    floats = size.float_operations + size.head_operations + size.attention_operations * context
    return max(read / peaks.bandwidth, batch * _seconds(size.int8_operations, floats, peaks))


def _seconds(int8: float, floats: float, peaks: Peaks) -> float:
    """Time of the operations whose peak is known: without any the bytes alone bound."""
    seconds = int8 / peaks.int8_operations if peaks.int8_operations else 0.0
    return seconds + (floats / peaks.float_operations if peaks.float_operations else 0.0)


def limit_tokens_per_second(
    size: ModelSize, peaks: Peaks, inputs: int, outputs: int, batch: int = 1
) -> float:
    """Fastest possible case: its tokens over the least time of the prompts and of the tokens behind the first."""
    steps = outputs - 1
    decode = steps * decode_seconds(size, peaks, inputs + outputs / 2, batch)
    return batch * outputs / (prefill_seconds(size, peaks, inputs, batch) + decode)


def measure_peaks(device: torch.device) -> Peaks:
    """Bandwidth from the backend; operations probed on the CPU, by the data sheet on the devices it is known of."""
    backend = backend_for(device.type)
    bandwidth, basis = backend.read_bandwidth()
    if device.type == "cpu":
        probe = f"measured, {PROBE_ROWS} x {PROBE_SIDE} x {PROBE_SIDE}"
        return Peaks(bandwidth, basis, _int8_peak(), _float_peak(), probe)
    sheet = data_sheet(backend.device_name())
    if sheet is None:
        return Peaks(bandwidth, basis)
    return Peaks(bandwidth, basis, sheet.int8_operations, sheet.half_operations, sheet.basis)


def higher(one: Peaks, other: Peaks) -> Peaks:
    """Of two probes of a device the higher figures: what else runs on it can only lower them."""
    return replace(
        one,
        bandwidth=max(one.bandwidth, other.bandwidth),
        int8_operations=_higher(one.int8_operations, other.int8_operations),
        float_operations=_higher(one.float_operations, other.float_operations),
    )


def _higher(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else max(one, other)


def _int8_peak() -> float:
    """Int8 operations per second of the backend's own product."""
    linear = W8A8Linear(
        {
            "weight": torch.ones(PROBE_SIDE, PROBE_SIDE, dtype=torch.int8),
            "input_scale": torch.ones(1),
            "input_offset": torch.zeros(1),
            "quant_bias": torch.zeros(PROBE_SIDE, dtype=torch.int32),
            "deq_scale": torch.ones(PROBE_SIDE),
        }
    )
    linear.prepare()
    return _peak(linear)


def _float_peak() -> float:
    """Of torch and of the backend the faster one: the engine multiplies with the backend, a float model's modules with torch."""
    linear = nn.Linear(PROBE_SIDE, PROBE_SIDE, bias=False)
    return max(_peak(linear), _peak(lambda x: cpu.float_linear(x, linear.weight, None)))


@torch.inference_mode()
def _peak(product: Callable[[torch.Tensor], object]) -> float:
    """Operations per second of the best of ten products; the first one warms up."""
    x, seconds = torch.ones(PROBE_ROWS, PROBE_SIDE), []
    for _ in range(11):
        start = time.perf_counter()
        product(x)
        seconds.append(time.perf_counter() - start)
    return 2 * PROBE_ROWS * PROBE_SIDE * PROBE_SIDE / min(seconds[1:])

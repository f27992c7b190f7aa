"""The CPU backend: true int8 products through compiled kernels or, without a compiler, torch's own.

Both are exact, on x86-64 and aarch64 alike.
"""

import resource
import sys
from collections.abc import Callable, Mapping
from functools import partial

import psutil
import torch
from torch import Tensor, nn

from telechat_kit.backends import plain
from telechat_kit.backends.cpu_kernels import operators as compiled
from telechat_kit.backends.cpu_kernels.library import activation_shift, description, library
from telechat_kit.backends.cpu_kernels.panels import (
    pack_linear,
    pack_weight,
    unpack_linear,
    unpack_weight,
)
from telechat_kit.backends.forms import PLAIN, Forms, Way
from telechat_kit.backends.hadamard import Rotation
from telechat_kit.backends.plain import (
    AddUp,
    blocked_float_weight,
    capture,
    measured_bandwidth,
    quantize,
    quantize_per_token,
    restore_float_weight,
    rotate,
    swiglu,
)
from telechat_kit.errors import DeviceError
from telechat_kit.messages import Message, marked
from telechat_kit.provenance import processor_name

__all__ = [
    "accumulate",
    "add_rms_norm",
    "attention",
    "blocked_float_weight",
    "capture",
    "choose_dtype",
    "collectives",
    "device_count",
    "device_name",
    "dynamic_int8_linear",
    "float_linear",
    "free_memory_bytes",
    "int8_linear",
    "joins_linears",
    "name",
    "open_device",
    "operations",
    "operators",
    "peak_memory_bytes",
    "prepare_dynamic_linear",
    "prepare_float_linear",
    "prepare_linear",
    "prepare_sharded_linear",
    "quantize",
    "quantize_per_token",
    "read_bandwidth",
    "restore_dynamic_linear",
    "restore_float_weight",
    "restore_linear",
    "rms_norm",
    "rotate",
    "sharded_dynamic_linear",
    "sharded_int8_linear",
    "silu_product",
    "swiglu",
    "synchronize",
    "turn",
]

name = "cpu"
#: The library through which several processes add up their parts of a model
collectives = "gloo"
#: The way of operations that compiled kernels do
KERNELS = "compiled kernels"
#: The operations that have more than one way here
operations = Forms()
#: Starting an operator costs little here: linears of one input are multiplied one after the other
joins_linears = False


def device_count() -> int:
    """One: all cores together are the device "cpu"."""
    return 1


def open_device(index: int) -> None:
    """Nothing to open."""


def choose_dtype(asked: torch.dtype | None, stored: torch.dtype | None) -> torch.dtype:
    """The dtype of a model's float tensors: `asked`, else float32, the dtype that processors are fast in."""
    del stored
    return asked or torch.float32


def prepare_float_linear(linear: nn.Linear) -> None:
    """Float weights are used as they are."""


def prepare_linear(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with the weight in the kernels' panels, where there are kernels."""
    if KERNELS not in operations.ways("int8_linear") or tensors["weight"].ndim == 4:
        return dict(tensors)
    return pack_linear(tensors, activation_shift())


def restore_linear(tensors: Mapping[str, Tensor], out: int, size: int) -> dict[str, Tensor]:
    """The tensors with the weight `[out, size]` and the bias as on disk."""
    if tensors["weight"].ndim == 2:
        return dict(tensors)
    return unpack_linear(tensors, out, size, activation_shift())


def accumulate(x_q: Tensor, weight: Tensor) -> Tensor:
    """`x_q [M, K]` int8 times `weight [N, K]` int8, transposed: the exact int32 products `[M, N]`."""
    return torch._int_mm(x_q, weight.t())


def int8_linear(
    x: Tensor,
    weight: Tensor,
    input_scale: Tensor,
    input_offset: Tensor,
    quant_bias: Tensor,
    deq_scale: Tensor,
) -> Tensor:
    """W8A8 linear of `x [..., K]`, `weight [N, K]` int8 or in panels: integer product, scaled, `[..., N]`."""
    if weight.is_meta:
        raise DeviceError(
            "the weights of an int8 linear are on no device. Load the model again with load_model."
        )
    y: Tensor = _int8_linear(x, weight, input_scale, input_offset, quant_bias, deq_scale)
    return y


def _in_torch(
    accumulate: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    weight: Tensor,
    input_scale: Tensor,
    input_offset: Tensor,
    quant_bias: Tensor,
    deq_scale: Tensor,
) -> Tensor:
    if weight.ndim == 4:  # the kernels were set aside after the weight was packed for them
        packed = {"weight": weight, "quant_bias": quant_bias}
        weight, quant_bias = restore_linear(packed, len(deq_scale), x.shape[-1]).values()
    x_q = quantize(x, input_scale, input_offset)
    return plain.scaled_product(x_q, weight, quant_bias, deq_scale, x.dtype, accumulate)


def _has_kernels() -> bool:
    return library() is not None


_int8_linear = operations.form(
    "int8_linear",
    Way(KERNELS, compiled.int8_linear, _has_kernels, lambda x, weight, *_: weight.ndim == 4),  # noqa: ARG005
    Way("torch._int_mm", partial(_in_torch, accumulate)),
    Way(PLAIN, partial(_in_torch, plain.accumulate)),
)


def prepare_dynamic_linear(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with the weight in the kernels' panels, where there are kernels, and what their shift adds."""
    weight = tensors["weight"]
    if KERNELS not in operations.ways("dynamic_int8_linear") or weight.ndim == 4:
        return dict(tensors)
    shift = -activation_shift() * weight.sum(1, dtype=torch.int32)
    return {**tensors, "weight": pack_weight(weight), "shift": shift}


def restore_dynamic_linear(tensors: Mapping[str, Tensor], out: int, size: int) -> dict[str, Tensor]:
    """The tensors with the weight `[out, size]` as on disk."""
    if tensors["weight"].ndim == 2:
        return dict(tensors)
    kept = {name: tensor for name, tensor in tensors.items() if name != "shift"}
    return {**kept, "weight": unpack_weight(tensors["weight"], out, size)}


def dynamic_int8_linear(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None = None,
    shift: Tensor | None = None,
) -> Tensor:
    """W8A8 linear of `x [..., K]`, `weight [N, K]` int8 or in panels, every token scaled by itself: `[..., N]`."""
    y: Tensor = _dynamic_int8_linear(x, weight, weight_scale, bias, shift)
    return y


def _dynamic_in_torch(
    accumulate: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    shift: Tensor | None,  # noqa: ARG001  (of the panels only)
) -> Tensor:
    if weight.ndim == 4:  # the kernels were set aside after the weight was packed for them
        weight = unpack_weight(weight, len(weight_scale), x.shape[-1])
    return plain.dynamic_product(x, weight, weight_scale, bias, accumulate)


_dynamic_int8_linear = operations.form(
    "dynamic_int8_linear",
    Way(KERNELS, compiled.dynamic_int8_linear, _has_kernels, lambda x, weight, *_: weight.ndim == 4),  # noqa: ARG005
    Way("torch._int_mm", partial(_dynamic_in_torch, accumulate)),
    Way(PLAIN, partial(_dynamic_in_torch, plain.accumulate)),
)


def prepare_sharded_linear(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors as they are: the kernels scale their products at once, a part must not."""
    return dict(tensors)


def sharded_int8_linear(x: Tensor, add_up: AddUp, **tensors: Tensor) -> Tensor:
    """The part of a W8A8 linear whose inputs are split over processes, added up exactly."""
    return plain.sharded_int8_linear(x, add_up, **tensors, accumulate=accumulate)


def sharded_dynamic_linear(
    x: Tensor, add_up: AddUp, largest: AddUp, weight: Tensor, weight_scale: Tensor, bias: Tensor | None
) -> Tensor:
    """The same with dynamic activations."""
    return plain.sharded_dynamic_linear(x, add_up, largest, weight, weight_scale, bias, accumulate)


def float_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Float linear of a W8A8 model, `x [..., K]`, `weight [N, K]`."""
    y: Tensor = _float_linear(x, weight, bias)
    return y


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """RMS norm of the last axis."""
    normed: Tensor = _rms_norm(x, weight, epsilon)
    return normed


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """The RMS norm of `x + residual`, and that sum."""
    total = x + residual
    return rms_norm(total, weight, epsilon), total


def silu_product(gate: Tensor, up: Tensor) -> Tensor:
    """`silu(gate) * up`."""
    product: Tensor = _silu_product(gate, up)
    return product


def turn(x: Tensor, rotation: Rotation) -> Tensor:
    """`x [..., n]` turned by `rotation`."""
    turned: Tensor = _turn(x, rotation)
    return turned


def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Attention of `query [B, heads, T, d]` over `key` and `value [B, kv_heads, S, d]`, as in `plain`."""
    form = _decode_attention if query.shape[2] == 1 else _prompt_attention
    mixed: Tensor = form(query, key, value, mask)
    return mixed


def _compiled(*arguments: object) -> bool:
    """Whether the kernels take the tensors among `arguments`: they know no gradients, no dtype but float32, no meta."""
    tensors = [each for each in arguments if isinstance(each, Tensor)]
    return all(tensor.dtype == torch.float32 and tensor.device.type == "cpu" for tensor in tensors) and not (
        torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    )


def _attended(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> bool:
    return _compiled(query, key, value) and compiled.can_attend(query, key, mask)


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:  # noqa: ARG001
    return compiled.attention(query, key, value)


_float_linear = operations.form(
    "float_linear",
    Way(KERNELS, compiled.float_linear, _has_kernels, _compiled),
    Way(PLAIN, plain.float_linear),
)
_rms_norm = operations.form(
    "rms_norm", Way(KERNELS, compiled.rms_norm, _has_kernels, _compiled), Way(PLAIN, plain.rms_norm)
)
_silu_product = operations.form(
    "silu_product",
    Way(KERNELS, compiled.silu_product, _has_kernels, _compiled),
    Way(PLAIN, plain.silu_product),
)
_turn = operations.form(
    "turn",
    Way(KERNELS, compiled.turn, _has_kernels, lambda x, rotation: _compiled(x) and rotation.signs is None),
    Way(PLAIN, plain.turn),
)
_prompt_attention, _decode_attention = (
    operations.form(name, Way(KERNELS, _attend, _has_kernels, _attended), Way(PLAIN, plain.attention))
    for name in ("prompt_attention", "decode_attention")
)


def operators() -> dict[str, str]:
    """Which operator does each verb that has more than one way, and what was set aside."""
    kernels = description() if library() is not None else f"torch._int_mm: {description()}"
    attention = description() if library() is not None else "scaled_dot_product_attention"
    return {"attention": attention, "int8_linear": kernels, **operations.avoided()}


def synchronize() -> None:
    """Nothing to wait for: CPU operators are finished when they return."""


def peak_memory_bytes() -> int:
    """Largest resident memory of this process so far."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def free_memory_bytes() -> int:
    """Memory that programs can still get without the machine starting to swap."""
    return psutil.virtual_memory().available


def device_name() -> str:
    """Model name of the processor and the number of threads that torch uses."""
    name, count = processor_name(), torch.get_num_threads()
    if count == 1:
        return Message("{processor} ({count} thread)", processor=name, count=count)
    return Message("{processor} ({count} threads)", processor=name, count=count)


def read_bandwidth() -> tuple[float, str]:
    """Bytes read per second by all threads, and that it was measured: the best of five passes over 512 MB."""
    return measured_bandwidth(torch.device("cpu"), synchronize), marked("measured")

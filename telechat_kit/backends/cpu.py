"""The CPU backend: true int8 products through torch's own kernels, on x86-64 and aarch64 alike."""

import platform
import resource
import sys
from collections.abc import Mapping
from pathlib import Path

import psutil
import torch
from torch import Tensor, nn

from telechat_kit.backends import plain
from telechat_kit.backends.plain import (
    attention,
    measured_bandwidth,
    quantize,
    quantize_per_token,
    rms_norm,
    rotate,
)

__all__ = [
    "accumulate",
    "attention",
    "choose_dtype",
    "device_count",
    "device_name",
    "dynamic_int8_linear",
    "free_memory_bytes",
    "int8_linear",
    "name",
    "open_device",
    "operators",
    "peak_memory_bytes",
    "prepare_float_linear",
    "prepare_linear",
    "quantize",
    "quantize_per_token",
    "read_bandwidth",
    "rms_norm",
    "rotate",
    "synchronize",
]

name = "cpu"


def device_count() -> int:
    """One: all cores together are the device "cpu"."""
    return 1


def open_device(index: int) -> None:
    """Nothing to open."""


def choose_dtype(asked: torch.dtype | None, stored: torch.dtype | None) -> torch.dtype:
    """The dtype of a model's float tensors: `asked`, else float32, the dtype that processors are fast in."""
    del stored
    return asked or torch.float32


def prepare_linear(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a W8A8 linear as they are."""
    return dict(tensors)


def prepare_float_linear(linear: nn.Linear) -> None:
    """Float weights are used as they are."""


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
    """W8A8 linear of `x [..., K]`, `weight [N, K]` int8: the integer product of `accumulate`, scaled to `[..., N]`."""
    x_q = quantize(x, input_scale, input_offset).reshape(-1, weight.shape[1])
    scaled = accumulate(x_q, weight).add_(quant_bias).float().mul_(deq_scale)
    return scaled.to(x.dtype).view(*x.shape[:-1], weight.shape[0])


def dynamic_int8_linear(x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None) -> Tensor:
    """W8A8 linear of `x [..., K]` by `weight [N, K]` int8, every token with a scale of its own, to `[..., N]`."""
    return plain.dynamic_product(x, weight, weight_scale, bias, accumulate)


def operators() -> dict[str, str]:
    """Which operator does each verb that has more than one way."""
    return {"attention": "scaled_dot_product_attention", "int8_linear": "torch._int_mm"}


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
    return f"{_processor()} ({torch.get_num_threads()} threads)"


def read_bandwidth() -> tuple[float, str]:
    """Bytes read per second by all threads, and that it was measured: the best of five passes over 512 MB."""
    return measured_bandwidth(torch.device("cpu"), synchronize), "measured"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()

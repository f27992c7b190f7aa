"""The CPU backend: true int8 products through torch's own kernels, on x86-64 and aarch64 alike."""

import platform
import resource
import sys
import time
from pathlib import Path

import torch
from torch import Tensor

from telechat_kit.backends.plain import attention, quantize, quantize_per_token, rms_norm, rotate

__all__ = [
    "accumulate",
    "attention",
    "device_name",
    "dynamic_int8_linear",
    "int8_linear",
    "name",
    "peak_memory_bytes",
    "quantize",
    "quantize_per_token",
    "read_bandwidth",
    "rms_norm",
    "rotate",
    "synchronize",
]

name = "cpu"


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
    x_q, x_scale = quantize_per_token(x.reshape(-1, weight.shape[1]))
    y = accumulate(x_q, weight).float().mul_(x_scale).mul_(weight_scale)
    if bias is not None:
        y.add_(bias)
    return y.to(x.dtype).view(*x.shape[:-1], weight.shape[0])


def synchronize() -> None:
    """Nothing to wait for: CPU operators are finished when they return."""


def peak_memory_bytes() -> int:
    """Largest resident memory of this process so far."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def device_name() -> str:
    """Model name of the processor and the number of threads that torch uses."""
    return f"{_processor()} ({torch.get_num_threads()} threads)"


def read_bandwidth() -> tuple[float, str]:
    """Bytes read per second by all threads, and that it was measured: the best of five passes over 512 MB."""
    data = torch.ones(1 << 26, dtype=torch.int64)
    data.sum()
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        data.sum()
        seconds.append(time.perf_counter() - start)
    return data.nbytes / min(seconds), "measured"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()

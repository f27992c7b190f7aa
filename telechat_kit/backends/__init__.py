"""What differs between devices, one module each, behind one small interface; nothing else branches on devices."""

from functools import cache
from typing import Protocol

import torch
from torch import Tensor

from telechat_kit.backends import cpu
from telechat_kit.errors import DeviceError

DEVICES = ("cpu", "cuda", "npu")


class Backend(Protocol):
    """The operations of one kind of device. Each module of this package is one."""

    name: str

    def quantize(self, x: Tensor, scale: Tensor, offset: Tensor) -> Tensor: ...
    def accumulate(self, x_q: Tensor, weight: Tensor) -> Tensor: ...
    def int8_linear(
        self,
        x: Tensor,
        weight: Tensor,
        input_scale: Tensor,
        input_offset: Tensor,
        quant_bias: Tensor,
        deq_scale: Tensor,
    ) -> Tensor: ...
    def quantize_per_token(self, x: Tensor) -> tuple[Tensor, Tensor]: ...
    def dynamic_int8_linear(
        self, x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None
    ) -> Tensor: ...
    def rms_norm(self, x: Tensor, weight: Tensor, epsilon: float) -> Tensor: ...
    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor: ...
    def attention(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor: ...
    def synchronize(self) -> None: ...
    def peak_memory_bytes(self) -> int: ...
    def device_name(self) -> str: ...
    def read_bandwidth(self) -> tuple[float, str]: ...


@cache
def backend_for(device_type: str) -> Backend:
    """The backend that serves tensors of `device_type` ("cpu", ...)."""
    if device_type in ("cpu", "meta"):
        return cpu
    raise DeviceError(f'this version of the kit has no backend for "{device_type}". Use device: cpu.')


def resolve_device(device: str) -> torch.device:
    """The torch device meant by a profile's `device`: "auto", "cpu", or a device that is really there.

    Raises:
        DeviceError: the name is unknown, or no such device is present.
    """
    kind, _, index = device.partition(":")
    if device == "auto" or kind == "cpu":
        return torch.device("cpu")
    if kind not in DEVICES:
        raise DeviceError(f'device "{device}" is unknown. Use auto, or one of {", ".join(DEVICES)}.')
    module = getattr(torch, kind, None)
    count = module.device_count() if module is not None and module.is_available() else 0
    if (index and not index.isdigit()) or int(index or 0) >= count:
        raise DeviceError(
            f'device "{device}" asked for, but torch sees {count} {kind} device(s) here. '
            "Use device: auto, or install the driver and the torch build of that device."
        )
    backend_for(kind)
    return torch.device(device)

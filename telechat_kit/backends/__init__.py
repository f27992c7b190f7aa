"""What differs between devices, one module each, behind one small interface; nothing else branches on devices."""

from collections.abc import Callable, Mapping
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

    def prepare_linear(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of a W8A8 linear on the device, in the form and under the names that `int8_linear` takes."""
        ...

    def restore_linear(self, tensors: Mapping[str, Tensor], out: int, size: int) -> dict[str, Tensor]:
        """What `prepare_linear` was given, from what it gave, for a weight `[out, size]`."""
        ...

    def quantize(self, x: Tensor, scale: Tensor, offset: Tensor) -> Tensor: ...
    def accumulate(self, x_q: Tensor, weight: Tensor) -> Tensor: ...

    #: x, then what `prepare_linear` gave
    int8_linear: Callable[..., Tensor]

    def float_linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor: ...
    def silu_product(self, gate: Tensor, up: Tensor) -> Tensor: ...
    def rms_norm(self, x: Tensor, weight: Tensor, epsilon: float) -> Tensor: ...
    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor: ...
    def attention(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor: ...
    def operators(self) -> dict[str, str]: ...
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

"""What differs between devices, one module each, behind one small interface; nothing else branches on devices."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import torch
from torch import Tensor, nn

from telechat_kit.backends import cpu, cuda, npu
from telechat_kit.backends.cores import keep_to_granted_cores
from telechat_kit.backends.forms import Forms
from telechat_kit.backends.hadamard import Rotation
from telechat_kit.backends.npu.torch_npu_guard import guard_torch_npu
from telechat_kit.backends.plain import AddUp
from telechat_kit.errors import DeviceError
from telechat_kit.messages import Message, marked

DEVICES = ("cpu", "cuda", "npu")

guard_torch_npu()


class Backend(Protocol):
    """The operations of one kind of device. Each module of this package is one."""

    name: str
    #: torch.distributed's backend for this device
    collectives: str
    #: operations that have more than one way on this device
    operations: Forms
    #: whether linears of one input are multiplied as one: where starting an operator costs more than what it does
    joins_linears: bool

    def device_count(self) -> int: ...
    def open_device(self, index: int) -> None: ...
    def choose_dtype(self, asked: torch.dtype | None, stored: torch.dtype | None) -> torch.dtype: ...

    def prepare_linear(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of a W8A8 linear on the device, in the form and under the names that `int8_linear` takes."""
        ...

    def prepare_float_linear(self, linear: nn.Linear) -> None: ...
    def blocked_float_weight(self, weight: Tensor) -> Tensor | None:
        """A copy of a float `weight` in the form that the device multiplies with; None: as it is."""
        ...

    def restore_float_weight(self, weight: Tensor) -> Tensor:
        """The float weight that was given, from what `blocked_float_weight` gave, or from itself."""
        ...

    def restore_linear(self, tensors: Mapping[str, Tensor], out: int, size: int) -> dict[str, Tensor]:
        """What `prepare_linear` was given, from what it gave, for a weight `[out, size]`."""
        ...

    def prepare_dynamic_linear(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`prepare_linear` for a linear with dynamic activations, as `dynamic_int8_linear` takes it."""
        ...

    def restore_dynamic_linear(
        self, tensors: Mapping[str, Tensor], out: int, size: int
    ) -> dict[str, Tensor]: ...
    def prepare_sharded_linear(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`prepare_linear` for a linear whose inputs are split over devices, as `sharded_int8_linear` takes it."""
        ...

    def quantize(self, x: Tensor, scale: Tensor, offset: Tensor) -> Tensor: ...
    def accumulate(self, x_q: Tensor, weight: Tensor) -> Tensor: ...

    #: x, then what `prepare_linear` gave
    int8_linear: Callable[..., Tensor]

    def quantize_per_token(self, x: Tensor) -> tuple[Tensor, Tensor]: ...

    #: x, then what `prepare_dynamic_linear` gave
    dynamic_int8_linear: Callable[..., Tensor]

    #: x, `add_up`, then what `prepare_sharded_linear` gave
    sharded_int8_linear: Callable[..., Tensor]

    def sharded_dynamic_linear(
        self,
        x: Tensor,
        add_up: AddUp,
        largest: AddUp,
        weight: Tensor,
        weight_scale: Tensor,
        bias: Tensor | None,
    ) -> Tensor: ...
    def float_linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor: ...
    def silu_product(self, gate: Tensor, up: Tensor) -> Tensor: ...
    def swiglu(self, both: Tensor) -> Tensor: ...
    def turn(self, x: Tensor, rotation: Rotation) -> Tensor: ...
    def rms_norm(self, x: Tensor, weight: Tensor, epsilon: float) -> Tensor: ...
    def add_rms_norm(
        self, x: Tensor, residual: Tensor, weight: Tensor, epsilon: float
    ) -> tuple[Tensor, Tensor]: ...
    def rotate(self, query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """Rotary embedding of both; they may be overwritten."""
        ...

    def attention(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor: ...
    def capture(self, step: Callable[[], object]) -> Callable[[], None]:
        """Run `step` once, record it as a graph, and give the call that replays it on the same tensors.

        Raises:
            DeviceError: device or release captures no graphs.
        """
        ...

    def operators(self) -> dict[str, str]: ...
    def synchronize(self) -> None: ...
    def peak_memory_bytes(self) -> int: ...
    def free_memory_bytes(self) -> int: ...
    def device_name(self) -> str: ...
    def read_bandwidth(self) -> tuple[float, str]: ...


@cache
def backend_for(device_type: str) -> Backend:
    """The backend that serves tensors of `device_type` ("cpu", ...)."""
    if device_type in ("cpu", "meta"):
        return cpu
    if device_type == "cuda":
        return cuda
    if device_type == "npu":
        return npu
    raise DeviceError(
        'the kit has no backend for "{device_type}". Use one of {devices}.',
        device_type=device_type,
        devices=", ".join(DEVICES),
    )


@dataclass(frozen=True)
class Choice:
    """The kind of device that "auto" means here, and why it is no better one: what is wrong with each that is."""

    kind: str
    against: tuple[str, ...] = ()

    def said(self, device: str) -> str:
        """`device`, the one of this kind, with the reasons."""
        if not self.against:
            return device
        if len(self.against) == 1:
            return Message("{device} (no npu: {npu})", device=device, npu=self.against[0])
        npu, cuda = self.against
        return Message("{device} (no npu: {npu}; no cuda: {cuda})", device=device, npu=npu, cuda=cuda)


@cache
def choose_device() -> Choice:
    """The best device here: the first NPU if it can be opened and multiplies, else the first GPU, else the CPU."""
    against = list[str]()
    for kind in ("npu", "cuda"):
        if not (problem := _problem(kind)):
            return Choice(kind, tuple(against))
        against.append(problem)
    return Choice("cpu", tuple(against))


def _problem(kind: str) -> str:
    """Why the first device of a kind cannot be used; empty if it can."""
    backend = backend_for(kind)
    try:
        if not backend.device_count():
            return marked("torch sees none")
        backend.open_device(0)
        ones = torch.ones(16, 16, device=kind)
        sums = (ones @ ones).cpu()
    except (
        DeviceError,
        RuntimeError,
    ) as error:  # a device that is busy or broken says so in the first product
        if isinstance(error.__cause__, ModuleNotFoundError):
            return Message("{name} is not installed", name=error.__cause__.name)
        return str(error).partition("\n")[0].partition(". ")[0]
    return "" if bool((sums == 16).all()) else marked("it multiplies wrongly")


def resolve_device(device: str) -> torch.device:
    """The torch device meant by a profile's `device`: "auto", "cpu", or a device that is really there, now open.

    "auto" is the best one here (`choose_device`). Of several it is the first, which does the work that is not shared.

    Raises:
        DeviceError: the name is unknown, its software does not work, or no such device is present.
    """
    device = split_devices(device)[0]
    kind, number = require_device(device)
    if kind == "cpu":
        keep_to_granted_cores()
        return torch.device("cpu")
    try:
        backend_for(kind).open_device(number)
    except DeviceError as error:
        raise _unusable(device, error) from error
    return torch.device(kind, number)


def split_devices(device: str) -> tuple[str, ...]:
    """The devices that `device` names: one, or several with commas between them, which share a model."""
    return tuple(part.strip() for part in str(device).split(","))


def require_device(device: str) -> tuple[str, int]:
    """Kind and number of one device that is there, without opening it.

    Raises:
        DeviceError: the name is unknown, its software does not work, or no such device is present.
    """
    kind, _, index = device.partition(":")
    if device == "auto":
        return choose_device().kind, 0
    if kind == "cpu":
        return "cpu", 0
    if kind not in DEVICES or (index and not index.isdigit()):
        raise DeviceError(
            'device "{device}" is unknown. Use auto, or one of {devices}, with a number as in {example}:0.',
            device=device,
            devices=", ".join(DEVICES),
            example=DEVICES[-1],
        )
    number = int(index or 0)
    try:
        count = backend_for(kind).device_count()
    except DeviceError as error:
        raise _unusable(device, error) from error
    if number >= count:
        raise _unusable(
            device,
            Message(
                "torch sees {count} {kind} device(s) here. {advice}",
                count=count,
                kind=kind,
                advice=_advice(kind, count),
            ),
        )
    return kind, number


def _unusable(device: str, problem: object) -> DeviceError:
    return DeviceError('device "{device}" asked for, but {problem}', device=device, problem=problem)


def _advice(kind: str, count: int) -> str:
    if count:
        return Message(
            "Numbers begin at 0: use {kind}:0 to {kind}:{count}, or make more devices visible.",
            kind=kind,
            count=count - 1,
        )
    tool = {"cuda": "nvidia-smi", "npu": "npu-smi info"}[kind]
    return Message(
        "Use device: auto, or install driver and torch build so that {tool} and torch see the device.",
        tool=tool,
    )

"""The sums that join a model's parts: a process group of torch.distributed over the devices' own library."""

import contextlib
import os
from collections.abc import Iterator
from datetime import timedelta

import torch.distributed as dist
from torch import Tensor

from telechat_kit.backends import backend_for, resolve_device
from telechat_kit.errors import DeviceError
from telechat_kit.model.sharding import Shard

#: How long a process waits for another one's part; loading keeps nobody waiting in a sum
PATIENCE = timedelta(minutes=10)
_HOST = "127.0.0.1"


def open_store(count: int) -> dist.TCPStore:
    """The store of a new team of `count` processes, on a free port of this machine."""
    return dist.TCPStore(_HOST, 0, count, is_master=True, wait_for_workers=False)


def join_group(devices: tuple[str, ...], rank: int, port: int, store: dist.TCPStore | None = None) -> Shard:
    """Become `rank` of the group and give the part that it holds.

    Raises:
        DeviceError: the device is not there, or its library cannot join.
    """
    device = resolve_device(devices[rank])
    # the parts of a machine talk over its own loopback; a host name without an address would stop gloo
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    library = backend_for(device.type).collectives
    store = store or dist.TCPStore(_HOST, port, len(devices), is_master=False)
    try:
        dist.init_process_group(library, store=store, rank=rank, world_size=len(devices), timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise DeviceError(
            "{devices} cannot work together through {library} ({error}). Use one of them, or see whether "
            "this torch was built with {library}.",
            devices=", ".join(devices),
            library=library,
            error=error,
        ) from error
    return Shard(rank, len(devices), add_up, largest)


def add_up(part: Tensor) -> Tensor:
    """The sum of every process's `part`, which is overwritten: exact for integers, in one order for all processes."""
    return _joined(part, dist.ReduceOp.SUM)


def largest(part: Tensor) -> Tensor:
    """The elementwise maximum of every process's `part`, which is overwritten."""
    return _joined(part, dist.ReduceOp.MAX)


def _joined(part: Tensor, operation: dist.ReduceOp.RedOpType) -> Tensor:
    part = part.contiguous()
    with _explained():
        dist.all_reduce(part, operation)
    return part


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if "out of memory" in str(error):
            raise
        raise DeviceError(
            "a process that holds a part of the model is gone ({error}). Its own error stands in the log of "
            "this run; run the step again.",
            error=str(error).splitlines()[0],
        ) from error


def leave_group() -> None:
    """Leave the group, so that another one can be joined."""
    if dist.is_initialized():
        dist.destroy_process_group()

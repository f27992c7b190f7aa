"""A stand-in for HCCL: sums over the processes of a team, in main memory through gloo; what the kit asks of it and no more."""

from datetime import timedelta

import torch.distributed as dist
from npu_operators import Chip, demand
from torch import Tensor

#: Data types of HcclAllReduce on the Atlas 300I Duo; the A2 adds these
_DUO = ("int8", "int16", "int32", "float16", "float32")
_A2 = (*_DUO, "int64", "bfloat16")


class Hccl(dist.ProcessGroup):
    """A process group whose tensors lie on the stand-in device."""

    def __init__(self, store: dist.Store, rank: int, size: int, timeout: timedelta) -> None:
        super().__init__(rank, size)
        self._gloo = dist.ProcessGroupGloo(store, rank, size, timeout)

    def allreduce(self, tensors: list[Tensor], options: dist.AllreduceOptions) -> dist.Work:
        for tensor in tensors:
            kind = str(tensor.dtype).removeprefix("torch.")
            demand(kind in (_DUO if Chip.is_310p() else _A2), "HcclAllReduce", f"data type {kind}")
            demand(tensor.device.type == "npu", "HcclAllReduce", f"a tensor on {tensor.device}")
        return self._gloo.allreduce([tensor.held for tensor in tensors], options)  # type: ignore[attr-defined]

    def getBackendName(self) -> str:
        return "hccl"


def install() -> None:
    """Register the backend "hccl" with torch.distributed."""
    dist.Backend.register_backend("hccl", Hccl, devices=["npu"])

"""A stand-in for torch_npu on machines without an NPU.

With its folder and that of `npu_operators` on PYTHONPATH, a process of the kit takes `device: npu:0`.

The device "npu" holds its tensors in main memory and refuses to calculate with tensors of another device; the
operators are those of `npu_operators`. `TORCH_NPU_STAND_IN_CHIP` names the chip, `TORCH_NPU_STAND_IN_CALLS` a
folder into which each process writes the kinds of operator calls that it made.
"""

import os

import npu_operators
import torch

from torch_npu import device, hccl

npu = device.install()
npu.devices = int(os.environ.get("TORCH_NPU_STAND_IN_DEVICES", "1"))
hccl.install()
npu_operators.Chip.name = os.environ.get("TORCH_NPU_STAND_IN_CHIP", npu_operators.Chip.name)
for _name in (*npu_operators.OPERATORS, "npu_fusion_attention"):  # transformers imports the last one by name
    globals()[_name] = getattr(torch.ops.npu, _name)

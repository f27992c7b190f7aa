"""Run as a process of its own: import torch_npu and print, as one JSON line, what it can do."""

import json
import os
import sys

os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"  # else `import torch` fails first, with less to say

import torch
import torch_npu

found = {
    "devices": torch_npu.npu.device_count(),
    "cxx11_abi": torch.compiled_with_cxx11_abi(),
    "operators": sorted(name for name in dir(torch_npu) if name.startswith("npu_")),
}
sys.stdout.write("\n" + json.dumps(found) + "\n")

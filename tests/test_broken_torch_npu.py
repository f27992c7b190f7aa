"""A torch_npu that cannot be imported, as without CANN: the kit works on, and says what is wrong when asked for it."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BROKEN = 'raise ImportError("libhccl.so: cannot open shared object file: No such file or directory")\n'
ENTRY_POINT = "[torch.backends]\ntorch_npu = torch_npu:_autoload\n"
SCRIPT = """
from telechat_kit.backends import resolve_device
from telechat_kit.errors import DeviceError
print(resolve_device("cpu"))
try:
    resolve_device("npu:0")
except DeviceError as error:
    print(error)
"""


def test_the_kit_works_and_the_device_is_refused_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "torch_npu").mkdir()
    (tmp_path / "torch_npu" / "__init__.py").write_text(BROKEN)
    information = tmp_path / "torch_npu-2.13.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: torch_npu\nVersion: 2.13.0\n")
    (information / "entry_points.txt").write_text(ENTRY_POINT)
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=False
    )
    cpu, told = done.stdout.splitlines()
    assert cpu == "cpu", done.stderr
    assert told.startswith(
        'device "npu:0" asked for, but torch_npu cannot be imported (libhccl.so: cannot open'
    )
    assert "source /usr/local/Ascend/ascend-toolkit/set_env.sh" in told

"""Two NPUs that share a model, on the stand-ins of torch_npu and HCCL, against one."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import call_list
import pytest

SCRIPT = Path(call_list.HERE) / "two_chips.py"


def run(chip: str, calls: Path, *folders: Path) -> dict[str, Any]:
    """What one chip and two give for each folder, also by exact products, and the operators used."""
    environment = call_list.environment(chip, calls) | {"TORCH_NPU_STAND_IN_DEVICES": "2"}
    command = [sys.executable, str(SCRIPT), *map(str, folders)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.soak
def test_two_910b_generate_the_ids_of_one(
    tiny_w8a8_folder: Path, dynamic_folder: Path, tmp_path: Path
) -> None:
    found = run("Ascend910B4", tmp_path, tiny_w8a8_folder, dynamic_folder)
    for each in found["found"]:
        one, two = each["ids"]
        assert two == one
    calls = call_list.written_calls(tmp_path)
    dtypes = {c["result"][0]["dtype"] for c in calls if c["operator"] == "npu_quant_matmul"}
    assert dtypes == {"float16", "int32"}


def test_two_310p_share_a_model_through_the_operators_that_they_have(
    even_folders: tuple[Path, Path], tmp_path: Path
) -> None:
    """The channels of each half are a multiple of 32: else its SwiGLU is that of torch, which rounds twice."""
    found = run("Ascend310P3", tmp_path, *even_folders)
    static, dynamic = found["found"]
    # parts in float16 are rounded before their sum: the first token agrees, behind a near tie others may not
    assert [ids[0] for ids in static["ids"][0]] == [ids[0] for ids in static["ids"][1]]
    assert 0 < static["apart"] < 0.1
    # the integers of two chips are added up exactly; one chip rounds product and bias before their sum
    assert dynamic["ids"][0] == dynamic["ids"][1]
    assert 0 < dynamic["apart"] < 2e-3
    assert found["operators"]["int8_linear"] == "npu_quant_matmul"
    assert found["operators"]["dynamic_int8_linear"].startswith("npu_dynamic_quant, npu_quant_matmul")
    assert found["operators"]["swiglu"] == "npu_swiglu"
    # nothing else parts them; operators that were set aside behind the start of the team are so in its other processes
    for each in found["exact"]:
        assert each["ids"][0] == each["ids"][1]
        assert each["apart"] == 0


def test_a_second_chip_that_is_not_there_is_told(tiny_w8a8_folder: Path, tmp_path: Path) -> None:
    environment = call_list.environment("Ascend310P3", tmp_path)
    command = [sys.executable, str(SCRIPT), str(tiny_w8a8_folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert 'device "npu:1" asked for, but torch sees 1 npu device(s) here' in done.stderr

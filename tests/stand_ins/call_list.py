"""Every kind of operator call that the kit makes on an NPU: quantize, load and decode a small TeleChat on each chip.

    python tests/stand_ins/call_list.py > tests/data/npu/calls.json

Each chip gets a process of its own, with the stand-in of torch_npu on its path.
"""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
CHIPS = ("Ascend310P3", "Ascend910B4")


def environment(chip: str, calls: Path) -> dict[str, str]:
    """Environment of a process on the stand-in of `chip`, which writes its calls into the folder `calls`."""
    paths = [str(HERE.parents[1]), str(HERE), str(HERE / "site")]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "ASCEND_HOME_PATH": str(HERE.parent / "data" / "npu" / "toolkit"),
        "TORCH_NPU_STAND_IN_CHIP": chip,
        "TORCH_NPU_STAND_IN_CALLS": str(calls),
    }


def calls_on(chip: str) -> list[dict[str, Any]]:
    """The calls that a small model makes on `chip`."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        command = [sys.executable, __file__, "run", str(folder / "work")]
        (folder / "calls").mkdir()
        done = subprocess.run(
            command, env=environment(chip, folder / "calls"), capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(done.stderr)
        return [{"chip": chip, **call} for call in written_calls(folder / "calls")]


def written_calls(folder: Path) -> list[dict[str, Any]]:
    """What the processes that wrote into `folder` called."""
    return [
        call for path in sorted(folder.iterdir()) for call in json.loads(path.read_text(encoding="utf-8"))
    ]


def run_small_model(folder: Path) -> None:
    """Quantize a TeleChat with heads of 128, load it on the device, decode a few tokens, read the weights back.

    In float, with static and dynamic activations, and as one of two parts, whose sums are left out.
    """
    import torch  # noqa: PLC0415

    from telechat_kit.inference.generation import generate  # noqa: PLC0415  only the child process may import the kit
    from telechat_kit.inference.loading import (  # noqa: PLC0415
        join_parts,
        load_model,
        load_part,
    )
    from telechat_kit.model import TelechatConfig, TelechatForCausalLM  # noqa: PLC0415
    from telechat_kit.model.sharding import Shard  # noqa: PLC0415
    from telechat_kit.model.tiny import byte_tokenizer  # noqa: PLC0415
    from telechat_kit.quantization import Calibration, Recipe, quantize  # noqa: PLC0415

    tokenizer = byte_tokenizer()
    config = TelechatConfig(
        len(tokenizer),
        hidden_size=256,
        n_layer=1,
        n_head=2,
        ffn_hidden_size=352,
        training_seqlen=64,
        base_seqlen=64,
    )
    TelechatForCausalLM(config).save_pretrained(folder / "float")
    tokenizer.save_pretrained(folder / "float")
    static, sample = (
        Recipe("L0", anti_outlier="m1"),
        Calibration("pydoc_data.topics", calibration_samples=1, calibration_tokens=16),
    )
    quantize(folder / "float", folder / "w8a8", static, sample, device="npu:0")
    quantize(
        folder / "float", folder / "dynamic", replace(static, activations="dynamic"), sample, device="npu:0"
    )
    part = load_part(folder / "w8a8", None, None, "npu:0", Shard(0, 2))
    join_parts(part, Shard(0, 2))
    generate(part, [7, 8, 9], 2)
    runs = [("float", None), ("w8a8", None), ("dynamic", None)]
    if not os.environ["TORCH_NPU_STAND_IN_CHIP"].startswith("Ascend310P"):
        runs += [("w8a8", torch.bfloat16), ("dynamic", torch.bfloat16)]
    for name, dtype in runs:
        model = load_model(folder / name, "npu:0", dtype)
        generate(model, [7, 8, 9], 3, repetition_penalty=1.03)
        model.state_dict()  # weights as on disk, from the form that the device multiplies with


if __name__ == "__main__":
    if sys.argv[1:2] == ["run"]:
        run_small_model(Path(sys.argv[2]))
    else:
        print(json.dumps([call for chip in CHIPS for call in calls_on(chip)], indent=1))

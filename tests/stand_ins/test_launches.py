"""Operators that a token starts on the stand-ins: fewer with joined linears, the same logits but for npu_swiglu."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import guide_cases
import pytest
import torch
from call_list import environment

from telechat_kit.inference.launches import LaunchCounter, count_launches, launch_seconds
from telechat_kit.inference.loading import load_model
from telechat_kit.inference.memory import LAUNCHES_BESIDES, LAUNCHES_PER_BLOCK

CODE = """
import json, sys
import torch
from telechat_kit.backends import npu
from telechat_kit.inference.launches import count_launches, launch_seconds
from telechat_kit.inference.loading import load_model
from telechat_kit.inference.network_run import NetworkRun

found = {}
for name in ("float", "w8a8", "dynamic"):
    for form in ("apart", "joined", "joined, gate in torch"):
        npu.operations.forget()
        npu.joins_linears = form != "apart"
        if form == "joined, gate in torch":
            npu.operations.use_slower("swiglu", "to compare")
        model = load_model(f"{sys.argv[1]}/{name}", "npu:0")
        with torch.inference_mode():
            run = NetworkRun(model, 40)
            logits = [run.logits(ids).cpu().tolist() for ids in ([7, 8, 9], [10])]
        counts = count_launches(name, model, [7, 8, 9])
        found[f"{name} {form}"] = {"logits": logits, "prompt": counts.prompt, "token": counts.token}
found["seconds"] = launch_seconds(model.device)
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("launches")
    guide_cases.build(folder)
    return folder


@pytest.mark.parametrize("chip", ["Ascend310P3", "Ascend910B4"])
def test_joined_linears_start_fewer_operators_and_give_the_same_logits(
    chip: str, built: Path, tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(built)],
        env=environment(chip, tmp_path),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert found.pop("seconds") > 0
    for name in ("float", "w8a8", "dynamic"):
        apart, joined, exact = (
            found[f"{name} {form}"] for form in ("apart", "joined", "joined, gate in torch")
        )
        assert exact["logits"] == apart["logits"]  # bit for bit
        largest = torch.tensor(apart["logits"]).abs().max()
        difference = (torch.tensor(joined["logits"]) - torch.tensor(apart["logits"])).abs().max()
        assert difference <= 0.05 * largest  # npu_swiglu rounds once, which may move an int8 by a step
        assert joined["token"] <= apart["token"] - 4
        assert joined["prompt"] < apart["prompt"]
    # what 01_setup multiplies with an assumed time
    assert found["float joined"]["token"] == LAUNCHES_PER_BLOCK[False] + LAUNCHES_BESIDES
    assert found["w8a8 joined"]["token"] == LAUNCHES_PER_BLOCK[True] + LAUNCHES_BESIDES


def test_views_and_allocations_are_not_counted_and_what_torch_makes_of_others_is() -> None:
    x, counter = torch.ones(2, 6), LaunchCounter("cpu")
    with torch.inference_mode(), counter:
        x.view(3, 4).t()
        x[:1].unsqueeze(0)
        torch.empty(3)
    assert counter.count == 0
    with torch.inference_mode(), counter:
        x.t().reshape(4, 3)  # a copy
        torch.nn.functional.linear(x, torch.ones(5, 6), torch.ones(5))
    assert counter.count in (4, 5)  # with those that make the operands; linear is one operator or two


def test_a_cpu_has_no_launches(tiny_folder: Path) -> None:
    assert count_launches("float", load_model(tiny_folder, "cpu"), [1, 2]) is None
    assert launch_seconds(torch.device("cpu")) is None

"""The whole tiny profile with `device: npu:0`, all five notebooks, on exact stand-ins of torch_npu: by papermill alone.

With sabotaged operators `telechat-kit run` runs it.
"""

import json
import subprocess
import sys
from pathlib import Path

import call_list
import nbformat
import pytest
import yaml
from npu_registry import Call
from papermill_runs import NOTEBOOKS, execute_by_papermill

from telechat_kit.reports import read_run
from telechat_kit.runs.state import STEPS

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "params" / "tiny.yaml"
LISTED = json.loads((ROOT / "tests" / "data" / "npu" / "calls.json").read_text(encoding="utf-8"))


#: One operator refuses, one gives wrong numbers, one ends its process. What stands behind them gives the same bits, or in
#: attention the same but for a rounding, which calibration does not see
SABOTAGE = "npu_add_rms_norm:refuse,npu_incre_flash_attention:wrong,npu_quantize:kill"


def own_values(folder: Path, operators: str) -> dict[str, str]:
    """What the profile is told: the device, whether its operators are tested, and to write all of it below `folder`."""
    paths = {"checkpoint_path": "tiny", "model_path": "tiny", "quant_path": "tiny-w8a8", "run_folder": "run"}
    own = {key: str(folder / name) for key, name in paths.items()}
    return {"device": "npu:0", "operators": operators, **own}


def chip(folder: Path, sabotage: str = "") -> dict[str, str]:
    """Environment of processes that find the stand-in of torch_npu on their path."""
    (folder / "calls").mkdir()
    environment = call_list.environment("Ascend310P3", folder / "calls")
    return environment | {"TORCH_NPU_STAND_IN_SABOTAGE": sabotage}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where papermill has left everything."""
    folder = tmp_path_factory.mktemp("npu")
    profile = folder / "profile.yaml"
    values = yaml.safe_load(TINY.read_text(encoding="utf-8")) | own_values(folder, "never")
    profile.write_text(yaml.safe_dump(values), encoding="utf-8")
    execute_by_papermill(folder, profile, chip(folder))
    return folder


@pytest.fixture(scope="module")
def harmed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with three operators sabotaged, which `01_setup` has to find."""
    folder = tmp_path_factory.mktemp("harmed")
    overrides = [word for key, value in own_values(folder, "npu").items() for word in ("-p", key, value)]
    main = "from telechat_kit.cli import main; main()"
    command = [sys.executable, "-c", main, "run", str(TINY), *overrides]
    environment = chip(folder, SABOTAGE)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def test_papermill_alone_runs_every_notebook(folder: Path) -> None:
    for path in NOTEBOOKS:
        executed = nbformat.read(folder / path.name, as_version=4)
        assert executed.metadata.papermill.exception is None
        assert all(cell.execution_count for cell in executed.cells if cell.cell_type == "code")
    run = read_run(folder / "run")
    assert run.setup.checkpoint_path == run.precision.model_path == str(folder / "tiny")
    assert (folder / "run" / "report.html").is_file()
    assert (folder / "tiny-w8a8" / "quantize.json").is_file()


def test_papermill_leaves_nothing_where_it_is_started(folder: Path) -> None:
    given = {"calls", "profile.yaml"}
    names = {path.name for path in folder.iterdir()}
    assert names == {"tiny", "tiny-w8a8", "run", *(path.name for path in NOTEBOOKS)} | given


def test_every_record_names_the_chip(folder: Path) -> None:
    run = read_run(folder / "run")
    for record in (run.setup, run.quantize, run.precision, run.performance):
        assert (record.conditions.device, record.conditions.device_name) == ("npu", "Ascend310P3")
    assert run.performance.read_bandwidth == 204.8e9


def test_the_records_say_which_operators_were_used_and_where_the_slower_way_was(folder: Path) -> None:
    used = read_run(folder / "run").precision.conditions.operators
    assert used["int8_linear"] == "npu_quant_matmul"
    assert used["decode_attention"] == "npu_incre_flash_attention"
    assert used["prompt_attention"].startswith("npu_prompt_flash_attention, padded to 16")
    assert used["prompt_attention"].endswith(
        "plain torch"
    )  # of the float32 blocks that the loss is traced with
    assert used["rotate"] == "plain torch"  # heads of 16; a 310P documents 128


def test_w8a8_on_the_npu_is_as_near_to_float_as_it_should_be(folder: Path) -> None:
    divergence = read_run(folder / "run").precision.divergence
    assert divergence.kl_mean.value < 0.01
    assert divergence.top1_agreement.value > 0.8


def test_every_operator_call_is_in_the_list_that_real_shape_functions_accept(folder: Path) -> None:
    calls = call_list.written_calls(folder / "calls")
    listed = {
        Call(c["operator"], c["arguments"], c["result"]).kind for c in LISTED if c["chip"] == "Ascend310P3"
    }
    made = {Call(c["operator"], c["arguments"], c["result"]).kind for c in calls}
    assert made <= listed
    assert {json.loads(kind)[0] for kind in made} >= {"npu_quant_matmul", "npu_quantize", "npu_format_cast"}


@pytest.mark.soak
def test_a_run_with_three_sabotaged_operators_completes_and_names_them(harmed: Path) -> None:
    state = json.loads((harmed / "run" / "run.json").read_text(encoding="utf-8"))
    assert [step["status"] for step in state["steps"]] == ["completed"] * len(STEPS)
    used = read_run(harmed / "run").precision.conditions.operators
    for operation, way, verdict in (
        ("add_rms_norm", "npu_add_rms_norm", "refused at 1 row: call npu_add_rms_norm failed"),
        ("decode_attention", "npu_incre_flash_attention", "wrong at 1 row, off by 0.2"),
        ("quantize", "npu_quantize, dividing", "crashed at 1 row: ended with exit code 139"),
        ("quantize", "npu_quantize, multiplying", "crashed at 1 row: ended with exit code 139"),
    ):
        assert f"{way} set aside (in the test of operators {verdict}" in used[operation]
    report = (harmed / "run" / "report.html").read_text(encoding="utf-8")
    assert all(f"{name} set aside" in report for name in ("npu_add_rms_norm", "npu_incre_flash_attention"))
    assert "npu_quantize, multiplying set aside" in report


@pytest.mark.soak
def test_its_answers_are_those_of_the_unharmed_run(harmed: Path, folder: Path) -> None:
    own, others = (
        [
            json.loads(line)
            for line in (each / "run" / "answers.jsonl").read_text(encoding="utf-8").splitlines()
        ]
        for each in (harmed, folder)
    )
    assert own == others
    assert all(answer["float_ids"] and answer["w8a8_ids"] for answer in own)
    assert all(check.equal == check.compared > 0 for check in read_run(harmed / "run").performance.id_checks)

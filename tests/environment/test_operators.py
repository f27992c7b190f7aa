"""`check --operators`: processes that crash and hang, what a run makes of the results, and the table."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from zipfile import ZipFile

import call_list
import pytest
from click.testing import CliRunner

from telechat_kit.backends import cpu
from telechat_kit.backends.probes import Sizes
from telechat_kit.cli import cli
from telechat_kit.cli.operator_table import operator_table
from telechat_kit.environment import OperatorTest, OperatorTests, check_operators, use_tested_operators
from telechat_kit.environment.operator_tests import Trials
from telechat_kit.errors import DataError, DeviceError, ParameterError
from telechat_kit.inference.engine import unsuited
from telechat_kit.inference.generation import generate
from telechat_kit.inference.loading import load_model

SIZES = Sizes(hidden=256, heads=2, kv_heads=1, head_dim=128, ffn=96)


@pytest.fixture
def on_310p(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Trials:
    """Processes that are started find a stand-in of torch_npu with a 310P."""
    for key, value in call_list.environment("Ascend310P3", tmp_path).items():
        monkeypatch.setenv(key, value)
    return Trials("npu:0", SIZES, "float16", 120.0)


def sabotage(monkeypatch: pytest.MonkeyPatch, plan: str) -> None:
    monkeypatch.setenv("TORCH_NPU_STAND_IN_SABOTAGE", plan)


def test_an_operator_that_ends_its_process_costs_only_the_calls_it_was_at(
    on_310p: Trials, monkeypatch: pytest.MonkeyPatch
) -> None:
    # each number of rows calls it seven times at most: the first process ends within the second number
    sabotage(monkeypatch, "npu_rms_norm:kill@8")
    tests = list(on_310p.of("rms_norm", "npu_rms_norm", [1, 10], {}))
    assert [test.rows for test in tests] == [1, 10]
    crashed = [test for test in tests if test.verdict == "crashed"]
    assert tests[0].verdict == "right"
    assert crashed
    assert crashed[0].message == "ended with exit code 139"


def test_an_operator_that_hangs_is_ended_and_named(on_310p: Trials, monkeypatch: pytest.MonkeyPatch) -> None:
    sabotage(monkeypatch, "npu_swiglu:hang")
    impatient = Trials(on_310p.device, SIZES, "float16", 5.0)
    (test,) = impatient.of("swiglu", "npu_swiglu", [10], {})
    assert (test.verdict, test.message) == ("timed out", "said nothing for too long")


def test_a_chip_that_the_kit_does_not_know_is_told(on_310p: Trials, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_NPU_STAND_IN_CHIP", "Ascend310B1")
    with pytest.raises(DeviceError, match=r"the chip Ascend310B1 .* is unknown to the kit"):
        on_310p.listed()


def test_what_failed_before_is_kept_out_of_the_way_of_what_is_tried(
    on_310p: Trials, monkeypatch: pytest.MonkeyPatch
) -> None:
    sabotage(monkeypatch, "npu_quantize:kill")
    aside = {"quantize": ["npu_quantize, dividing", "npu_quantize, multiplying"]}
    (test,) = on_310p.of("int8_linear", "npu_quant_matmul", [10], aside)
    assert test.verdict == "right"


def of_cpu(*tests: OperatorTest) -> OperatorTests:
    return OperatorTests("cpu", cpu.device_name(), "float32", {}, list(tests))


WRONG = of_cpu(
    OperatorTest("rms_norm", "compiled kernels", 1, "right", 1e-7, 0.01),
    OperatorTest("rms_norm", "compiled kernels", 10, "wrong", 0.25),
    OperatorTest("rms_norm", "plain torch", 1, "right", 1e-7, 0.02),
    OperatorTest("rms_norm", "plain torch", 10, "right", 1e-7, 150.4),
    OperatorTest("rotate", "torch", 1, "no memory", message="out of memory"),
    OperatorTest("rotate", "torch", 10, "not called"),
)


@pytest.fixture
def after_a_wrong_norm(tmp_path: Path) -> Iterator[Path]:
    """A run folder whose set-up found that the compiled norm is wrong."""

    (tmp_path / "setup.json").write_text(json.dumps({"operators": asdict(WRONG)}))
    yield tmp_path
    cpu.operations.forget()


@pytest.mark.skipif("compiled kernels" not in cpu.operations.ways("rms_norm"), reason="no compiled kernels")
def test_a_run_takes_the_slower_way_says_so_and_gives_the_same_ids(
    after_a_wrong_norm: Path, tiny_w8a8_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = load_model(tiny_w8a8_folder, device="cpu")
    before = generate(model, [7, 8, 9], 12).token_ids
    assert unsuited(model) is None
    use_tested_operators(after_a_wrong_norm, "cpu")
    told = "rms_norm: compiled kernels is not used (wrong at 10 rows, off by 0.25); plain torch does it.\n"
    assert capsys.readouterr().out == told
    assert unsuited(model) == "a compiled kernel is set aside"
    assert generate(model, [7, 8, 9], 12).token_ids == before
    assert "plain torch" in cpu.operations.used("rms_norm")
    assert (
        "compiled kernels set aside (in the test of operators wrong at 10 rows" in cpu.operators()["rms_norm"]
    )


def test_results_of_another_device_are_left_alone(
    after_a_wrong_norm: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cpu, "device_name", lambda: "another processor")
    assert use_tested_operators(after_a_wrong_norm, "cpu") == {}
    assert "this is another processor. Run 01_setup again." in capsys.readouterr().out
    assert cpu.operations.set_aside() == {}


def test_without_results_nothing_is_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert use_tested_operators(tmp_path, "cpu") == {}
    (tmp_path / "setup.json").write_text('{"operators": null}')
    assert use_tested_operators(tmp_path, "cpu") == {}
    assert set(capsys.readouterr().out.splitlines()) == {
        "operators: 01_setup of this run tried none; they are used as they are."
    }


def test_damaged_results_are_named(tmp_path: Path) -> None:
    (tmp_path / "setup.json").write_text('{"operators": {"device": "cpu"}}')
    with pytest.raises(DataError, match=r"setup.json: operators: Field required. Run 01_setup again"):
        use_tested_operators(tmp_path, "cpu")


def test_a_way_without_another_behind_it_is_a_dead_end() -> None:
    tests = of_cpu(OperatorTest("rotate", "torch", 10, "crashed", message="ended with SIGSEGV"))
    assert tests.avoided() == {}
    assert [test.operation for test in tests.dead_ends()] == ["rotate"]
    assert operator_table(tests).endswith(
        "rotate: torch failed (crashed at 10 rows: ended with SIGSEGV), and no way is left behind it."
    )


def test_too_little_memory_is_no_reason_to_avoid_a_way() -> None:
    short = OperatorTest("rms_norm", "compiled kernels", 2000, "no memory")
    other = OperatorTest("rms_norm", "plain torch", 2000, "right", 0.0, 1.0)
    assert of_cpu(short, other).avoided() == {}


def test_the_table_shows_times_and_what_happened_in_place_of_them() -> None:
    lines = operator_table(WRONG).splitlines()
    assert [line.split() for line in lines[3:7]] == [
        ["operation", "way", "1", "10", "largest", "error"],
        ["rms_norm", "compiled", "kernels", "0.01", "wrong", "0.2"],
        ["plain", "torch", "0.02", "150", "1e-07"],
        ["rotate", "torch", "memory", "-"],
    ]


@pytest.mark.parametrize(
    ("found", "code"), [(WRONG, 0), (of_cpu(OperatorTest("rotate", "torch", 1, "wrong")), 1)]
)
def test_the_command_adds_the_table_and_ends_with_1_only_if_no_way_is_left(
    found: OperatorTests, code: int, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("telechat_kit.environment.check_operators", lambda *_, **__: found)
    profile = tmp_path / "profile.yaml"
    profile.write_text(
        f"checkpoint_path: {tiny_folder}\nembedded_model: ''\nrun_folder: {tmp_path}\ndevice: cpu\n"
    )
    done = CliRunner().invoke(cli, ["check", "--operators", "--profile", str(profile)])
    assert operator_table(found) in done.stdout
    as_json = CliRunner().invoke(cli, ["check", "--operators", "--json", "--profile", str(profile)])
    report = json.loads(as_json.stdout)
    assert [test["verdict"] for test in report["operators"]["tests"]] == [
        test.verdict for test in found.tests
    ]
    assert done.exit_code == as_json.exit_code == code


def test_a_device_that_cannot_be_opened_is_told_beside_the_table(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: object, **__: object) -> None:
        raise DeviceError("the NPU 0 cannot be opened")

    monkeypatch.setattr("telechat_kit.environment.check_operators", gone)
    done = CliRunner().invoke(cli, ["check", "--operators", "--device", "cpu"])
    assert "operators were not tried: the NPU 0 cannot be opened" in done.stderr
    assert "component" in done.stdout


def test_a_checkpoint_that_is_not_there_is_told_beside_the_table_and_in_the_parcel(tmp_path: Path) -> None:
    profile, parcel = tmp_path / "profile.yaml", tmp_path / "machine.zip"
    profile.write_text(
        f"checkpoint_path: {tmp_path}/none\nembedded_model: ''\nrun_folder: {tmp_path}\ndevice: cpu\n"
    )
    arguments = ["check", "--operators", "--profile", str(profile), "--bundle", str(parcel)]
    done = CliRunner().invoke(cli, arguments)
    assert "operators were not tried: checkpoint folder" in done.stderr
    assert "component" in done.stdout
    assert "check.txt" in ZipFile(parcel).namelist()


def test_when_operators_are_tried(tiny_folder: Path) -> None:
    assert check_operators(tiny_folder, "cpu", "npu") is None
    assert check_operators(tiny_folder, "cpu", "never") is None
    with pytest.raises(ParameterError, match=r'operators is "sometimes"\. Use one of npu'):
        check_operators(tiny_folder, "cpu", "sometimes")

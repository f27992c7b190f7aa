"""`telechat-kit check` on recorded machines: the table as the user sees it, and what a change to a machine changes.

The expected tables are the files `table.txt` beside each recording, for the profile of TeleChat-7B on a 310P.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from recorded import MACHINES, NAMES, recorded

from telechat_kit.cli import cli
from telechat_kit.cli.check_commands import CHECK_SCHEMA, as_table
from telechat_kit.environment import Check, check, to_do
from telechat_kit.environment.probe import Outcome, Probe
from telechat_kit.errors import DeviceError

SEVEN_B, TWELVE_B = "models/telechat-7b", "models/telechat-12b"


@pytest.fixture
def at(project: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Check]]:
    """Rows of a probe by component, with the checkpoints of the project."""
    monkeypatch.chdir(project)

    def rows(probe: Probe, checkpoint: str = SEVEN_B, device: str = "npu:0") -> dict[str, Check]:
        return {row.component: row for row in check(checkpoint, "results/x", device, probe=probe)}

    return rows


def command(
    name: str, *arguments: str, project: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[int, str, str]:
    """Exit code, stdout, stderr of `telechat-kit check` on a recorded machine."""
    monkeypatch.chdir(project)
    monkeypatch.setattr("telechat_kit.environment.setup.Probe", lambda: recorded(name))
    done = CliRunner().invoke(cli, ["check", *arguments])
    return done.exit_code, done.stdout, done.stderr


@pytest.mark.parametrize("name", NAMES)
def test_the_table_is_what_the_user_sees(name: str, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, out, err = command(
        name, "--profile", "params/telechat-7b-310p.yaml", project=project, monkeypatch=monkeypatch
    )
    assert out == (MACHINES / name / "table.txt").read_text()
    assert (code, err) == (0 if name.startswith("healthy") else 1, "")


@pytest.mark.parametrize("name", NAMES)
def test_the_json_holds_the_same_rows(name: str, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ("--profile", "params/telechat-7b-310p.yaml", "--json")
    code, out, _ = command(name, *arguments, project=project, monkeypatch=monkeypatch)
    report = json.loads(out)
    assert set(report) == {"schema", "device", "to_do", "checks"}
    assert (report["schema"], report["device"]) == (CHECK_SCHEMA, "npu:0")
    rows = [Check(**row) for row in report["checks"]]
    assert {row.verdict for row in rows} <= {"ok", "warning", "missing", "wrong"}
    assert report["to_do"] == len(to_do(rows)) == sum(row.verdict in ("missing", "wrong") for row in rows)
    assert code == (1 if report["to_do"] else 0)
    assert as_table(rows) + "\n" == (MACHINES / name / "table.txt").read_text()


@pytest.mark.parametrize("name", NAMES)
def test_every_row_that_is_not_good_says_what_to_do(name: str, at: Callable[..., dict[str, Check]]) -> None:
    rows = at(recorded(name)).values()
    assert [row for row in rows if bool(row.advice) != (row.verdict != "ok")] == []


def test_an_npu_is_looked_for_when_the_device_is_auto(at: Callable[..., dict[str, Check]]) -> None:
    rows = at(recorded("broken-not-sourced"), device="auto")
    assert rows["environment"].advice == "source /usr/local/Ascend/cann/set_env.sh"


def test_an_npu_is_not_judged_when_the_device_is_the_cpu(at: Callable[..., dict[str, Check]]) -> None:
    rows = at(recorded("broken-not-sourced"), device="cpu")
    assert (rows["chip"].found, rows["chip"].verdict) == ("one is here and not used", "ok")
    assert "torch_npu" not in rows
    assert to_do(rows.values()) == []


@pytest.mark.parametrize(
    ("toolkit", "kernels", "verdict"),
    [
        ("9.0.0", "9.1.0", "ok"),
        ("8.5.2", "9.0.0", "ok"),
        ("8.5.0", "9.0.0", "wrong"),
        ("9.1.0", "9.1.1", "wrong"),
    ],
)
def test_operators_of_another_version_go_with_the_toolkits_that_are_published_as_taking_them(
    toolkit: str, kernels: str, verdict: str, at: Callable[..., dict[str, Check]], tmp_path: Path
) -> None:
    probe = with_root(recorded("healthy-310p"), tmp_path)
    for name, version in (("toolkit", toolkit), ("ops", kernels)):
        file = probe.path(f"/usr/local/Ascend/cann/aarch64-linux/ascend_{name}_install.info")
        file.write_text(f"version={version}\n")
    assert at(probe)["kernels"].verdict == verdict


@pytest.mark.parametrize(
    ("cann", "driver", "verdict"),
    [("9.1.0", "26.1.1", "ok"), ("9.1.1", "25.7.rc1", "ok"), ("9.1.0", "25.0.3", "wrong"), ("9.0.0", "25.0.3", "ok"), ("9.2.0", "25.5.1", "ok"), ("9.1.0", "27.0.0", "warning")],
)  # fmt: skip
def test_a_driver_is_wrong_only_below_a_published_list(
    cann: str, driver: str, verdict: str, at: Callable[..., dict[str, Check]], tmp_path: Path
) -> None:
    probe = with_root(recorded("healthy-310p"), tmp_path)
    probe.path("/usr/local/Ascend/cann/aarch64-linux/ascend_toolkit_install.info").write_text(
        f"version={cann}\n"
    )
    probe.path("/usr/local/Ascend/driver/version.info").write_text(f"package_version={driver}\n")
    assert at(probe)["driver"].verdict == verdict


def with_root(probe: Probe, folder: Path) -> Probe:
    """The same machine with files that a test may change."""
    return replace(probe, root=Path(shutil.copytree(probe.root, folder / "root")))


def test_a_chip_of_another_family_beside_the_one_that_is_asked_for_does_no_harm(
    at: Callable[..., dict[str, Check]],
) -> None:
    probe = recorded("healthy-310p-older-driver")
    shown = probe.npu_smi(["info"])
    output = shown.output.replace("32      310P3", "32      310B4")
    mixed = replace(probe, npu_smi=lambda _: replace(shown, output=output))
    assert at(mixed)["chip"].verdict == "ok"
    assert at(mixed, device="npu:1")["chip"].advice.startswith("a 310B is no 310P")


def test_a_device_beyond_the_last_is_refused_with_the_choice(at: Callable[..., dict[str, Check]]) -> None:
    assert at(recorded("healthy-910b"), device="npu:1")["chip"].verdict == "ok"
    row = at(recorded("healthy-910b"), device="npu:2")["chip"]
    assert row.verdict == "wrong"
    assert "there is no npu:2: choose npu:0 to npu:1" in row.advice


def test_visible_devices_are_numbered_as_torch_npu_numbers_them(at: Callable[..., dict[str, Check]]) -> None:
    probe = recorded("healthy-910b")
    one = replace(probe, environ={**probe.environ, "ASCEND_RT_VISIBLE_DEVICES": "1"})
    assert at(one)["chip"].verdict == "ok"
    row = at(one, device="npu:1")["chip"]
    assert (row.found, row.verdict) == ("2 x 910B4, 1 visible", "wrong")


def test_a_model_too_large_for_the_card_is_told_before_it_is_loaded(
    at: Callable[..., dict[str, Check]],
) -> None:
    seven, twelve = (at(recorded("healthy-310p"), path)["device memory"] for path in (SEVEN_B, TWELVE_B))
    assert (seven.required, seven.verdict) == ("9.9 GB as W8A8, 16.4 GB as float16", "ok")
    assert (twelve.required, twelve.verdict) == ("16.8 GB as W8A8, 28.0 GB as float16", "warning")
    assert (
        twelve.advice == "float16 does not fit this card, W8A8 does: run the float steps with -p device cpu"
    )


def test_of_several_devices_each_has_its_rows_and_its_part_of_the_model(
    at: Callable[..., dict[str, Check]],
) -> None:
    one, two = (at(recorded("healthy-910b"), TWELVE_B, device) for device in ("npu:0", "npu:0,npu:1"))
    assert one["device memory"].required == "16.8 GB as W8A8, 28.0 GB as float16"
    for component in ("device memory", "device memory, npu:1"):
        assert two[component].required == "9.6 GB as W8A8, 15.2 GB as float16"
    assert two["chip, npu:1"].verdict == "ok"
    assert "device files, npu:1" not in two
    assert at(recorded("healthy-310p"), TWELVE_B, "npu:0,npu:1")["chip, npu:1"].verdict == "wrong"


def test_devices_of_two_kinds_are_refused(at: Callable[..., dict[str, Check]]) -> None:
    with pytest.raises(DeviceError, match="only devices of one kind can share a model"):
        at(recorded("healthy-910b"), device="npu:0,cpu")


def with_memory(probe: Probe, used: str, total: str) -> Probe:
    """The same machine whose first chip has another memory, in npu-smi's own text."""

    def npu_smi(arguments: object) -> Outcome:
        shown = probe.npu_smi(["info"])
        return replace(shown, output=shown.output.replace("1839 / 21527", f"{used} / {total}"))

    return replace(probe, npu_smi=npu_smi)


def test_a_card_that_is_too_small_even_for_int8_is_wrong(at: Callable[..., dict[str, Check]]) -> None:
    row = at(with_memory(recorded("healthy-310p"), "839 ", "8192 "))["device memory"]
    assert (row.found, row.verdict) == ("7.7 of 8.6 GB free", "wrong")
    assert "not even as W8A8" in row.advice


def test_other_processes_that_take_the_room_are_named(at: Callable[..., dict[str, Check]]) -> None:
    rows = at(recorded("broken-pair"))
    assert rows["other processes"].found == "48988 python3 7,811 MB"
    assert rows["device memory"].verdict == "wrong"
    assert rows["device memory"].advice == "end the other processes, or choose another device"


def failing(code: int, error: str) -> Callable[[], Outcome]:
    return lambda: Outcome(code, "", error)


@pytest.mark.parametrize(
    ("outcome", "found"),
    [
        (failing(124, "no answer within 180 s"), "no answer within 180 s"),
        (failing(-11, ""), "the process ended with -11"),
        (failing(1, "warning\nRuntimeError: 107002 context"), "RuntimeError: 107002 context"),
    ],
)
def test_an_import_that_hangs_crashes_or_raises_is_a_row(
    outcome: Callable[[], Outcome], found: str, at: Callable[..., dict[str, Check]]
) -> None:
    row = at(replace(recorded("healthy-310p"), import_torch_npu=outcome))["torch_npu"]
    assert (row.found, row.verdict) == (f"2.9.0, cannot be imported: {found}", "wrong")
    assert row.advice == "read the whole message: python -c 'import torch, torch_npu'"


def test_the_guides_cann_is_known_without_torch_npu_too(at: Callable[..., dict[str, Check]]) -> None:
    """So it looks to somebody who installs the kit, which needs a newer Python, beside the guide's CANN."""
    packages = {"torch": "2.13.0", "transformers": "5.23.0", "safetensors": "0.8.0"}
    row = at(replace(recorded("guide-310p"), python="3.11.9", package=packages.get))["version set"]
    assert row.found == "CANN 7.0.0, torch 2.13.0, torch_npu none: the guide's CANN"
    assert "the guide ran int8 through ATB" in row.advice


@pytest.mark.parametrize(
    ("torch", "torch_npu", "verdict", "advice"),
    [
        ("2.9.0+cpu", "2.9.0", "ok", ""),
        ("2.7.1", "2.7.1.post2", "ok", ""),
        ("2.9.0", "2.9.0.post6", "ok", ""),
        ("2.9.0", "2.9.0.post4", "ok", ""),
        ("2.13.0", "2.13.0", "ok", ""),
        ("2.7.1", "2.7.1", "wrong", "torch_npu 2.7.1 is built for CANN 8.3.RC1: pip install torch==2.7.1 torch_npu==2.7.1.post2"),
        ("2.15.0", "2.15.0", "warning", "newer than every set that the kit knows, so its operators decide (check --operators): if a run fails, pip install torch==2.9.0 torch_npu==2.9.0"),
        ("2.12.0", "2.9.0", "wrong", "torch_npu 2.9.0 is built for torch 2.9.0: pip install torch==2.9.0 torch_npu==2.9.0"),
        ("2.6.0", "2.6.0.post5", "wrong", "too old for the kit: pip install torch==2.9.0 torch_npu==2.9.0"),
        ("2.8.0", "2.8.0.post99", "warning", "not published for CANN 8.5.0: if a run fails, pip install torch==2.8.0 torch_npu==2.8.0.post2"),
    ],
)  # fmt: skip
def test_versions_that_do_not_belong_together_are_told_with_the_set_that_does(
    torch: str, torch_npu: str, verdict: str, advice: str, at: Callable[..., dict[str, Check]]
) -> None:
    packages = {"torch": torch, "torch_npu": torch_npu}
    row = at(replace(recorded("healthy-310p"), package=packages.get))["version set"]
    assert (row.verdict, row.advice) == (verdict, advice)


@pytest.mark.parametrize(
    ("changed", "verdict", "advice"),
    [
        ({"ASCEND_LAUNCH_BLOCKING": "1"}, "warning", "unset ASCEND_LAUNCH_BLOCKING"),
        ({"PYTORCH_ALLOC_CONF": "a", "PYTORCH_NPU_ALLOC_CONF": "b"}, "wrong", "unset PYTORCH_ALLOC_CONF or"),
        ({"LD_LIBRARY_PATH": ""}, "wrong", "LD_LIBRARY_PATH lacks /usr/local/Ascend/cann/lib64"),
    ],
)
def test_environment_variables_that_spoil_a_run_are_named(
    changed: dict[str, str], verdict: str, advice: str, at: Callable[..., dict[str, Check]]
) -> None:
    probe = recorded("healthy-310p")
    row = at(replace(probe, environ={**probe.environ, **changed}))["environment"]
    assert row.verdict == verdict
    assert row.advice.startswith(advice)


def test_an_atb_of_the_other_abi_is_a_warning(at: Callable[..., dict[str, Check]]) -> None:
    probe = recorded("healthy-310p")
    home = probe.environ["ATB_HOME_PATH"].replace("cxx_abi_1", "cxx_abi_0")
    row = at(replace(probe, environ={**probe.environ, "ATB_HOME_PATH": home}))["ATB"]
    assert (row.found, row.verdict) == ("8.5.0, C++ ABI 0", "warning")
    assert row.advice.endswith("--cxx_abi=1")

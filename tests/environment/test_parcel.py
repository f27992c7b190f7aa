"""The parcel for those who help from afar: what is in it, and what must not be."""

import json
import os
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from recorded import recorded

from telechat_kit.cli import cli
from telechat_kit.environment import write_parcel
from telechat_kit.environment.parcel import redacted
from telechat_kit.environment.probe import Probe
from telechat_kit.errors import ParameterError


@pytest.fixture
def machine(tmp_path: Path) -> Probe:
    """A recorded 310P whose owner is zhangwei on ai-node7.lab.example, with logs of CANN."""
    home = Path("/home/zhangwei")
    logs = tmp_path / "root" / "home" / "zhangwei" / "ascend" / "log" / "debug" / "plog"
    logs.mkdir(parents=True)
    for number in range(5):
        path = logs / f"plog-{number}.log"
        path.write_text("".join(f"[ERROR] {number} line {i} from 10.1.2.3\n" for i in range(1000)))
        os.utime(path, (number, number))
    probe = recorded("healthy-910b")
    environ = {
        **probe.environ,
        "ASCEND_GLOBAL_LOG_LEVEL": "3",
        "API_TOKEN": "secret",
        "PYTHONPATH": "/home/zhangwei/x",
    }
    return replace(
        probe,
        root=tmp_path / "root",
        environ=environ,
        home=home,
        user="zhangwei",
        host="ai-node7.lab.example",
    )


def read(path: Path) -> dict[str, str]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name).decode() for name in archive.namelist()}


def test_the_parcel_holds_what_the_check_knows(machine: Probe, tmp_path: Path) -> None:
    names = write_parcel(tmp_path / "out" / "m.zip", {"check.txt": "the table"}, machine)
    texts = read(tmp_path / "out" / "m.zip")
    assert sorted(texts) == names
    assert texts["check.txt"] == "the table"
    assert "910B4" in texts["npu-smi-info.txt"]
    assert "0xD802" in texts["npu-smi-board-0.txt"]
    assert texts["npu-smi-health-0.txt"].startswith("exit code 127\n")
    assert json.loads(texts["versions.json"])["packages"]["torch_npu"] == "2.12.0"
    assert "ASCEND_GLOBAL_LOG_LEVEL=3\n" in texts["environment.txt"]


def test_version_files_and_the_tail_of_the_newest_logs_are_in_it(machine: Probe, tmp_path: Path) -> None:
    write_parcel(tmp_path / "host.zip", {}, replace(machine, root=recorded("healthy-910b").root))
    assert "package_version=" in read(tmp_path / "host.zip")["files/usr/local/Ascend/driver/version.info.txt"]
    write_parcel(tmp_path / "logs.zip", {}, machine)
    logs = {name: text for name, text in read(tmp_path / "logs.zip").items() if name.startswith("plog/")}
    assert sorted(logs) == [f"plog/debug/plog/plog-{number}.log" for number in (2, 3, 4)]
    lines = logs["plog/debug/plog/plog-4.log"].splitlines()
    assert (lines[0], lines[-1]) == ("[ERROR] 4 line 600 from ADDRESS", "[ERROR] 4 line 999 from ADDRESS")


def test_nothing_of_the_owner_is_in_it(machine: Probe, tmp_path: Path) -> None:
    told = "Serial Number : 2102312ABC\n/home/zhangwei/models /home/li.na/x zhangwei@ai-node7.lab.example ai-node7: up"
    write_parcel(tmp_path / "m.zip", {"run.json": told}, machine)
    texts = read(tmp_path / "m.zip")
    assert texts["run.json"] == "Serial Number : REMOVED\n~/models /home/USER/x USER@HOST HOST: up"
    whole = "".join(texts.values())
    for word in ("zhangwei", "ai-node7", "secret", "10.1.2.3", "2102312"):
        assert word not in whole


@pytest.mark.parametrize(
    "text",
    [
        "npu-smi 25.5.1 Version: 25.5.1",
        "7.8.0.2.212",
        "user root in /root",
        "0000:82:00.0",
        "torch 2.9.0.post6",
    ],
)
def test_versions_and_bus_numbers_stay(text: str, machine: Probe) -> None:
    assert redacted(text, replace(machine, user="root", home=Path("/"), host="localhost")) == text


def test_a_folder_is_refused(machine: Probe, tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="is a folder"):
        write_parcel(tmp_path, {}, machine)


def test_the_command_adds_what_the_run_left(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    monkeypatch.setattr("telechat_kit.environment.setup.Probe", lambda: recorded("healthy-310p"))
    monkeypatch.setattr("telechat_kit.environment.parcel.Probe", lambda: recorded("healthy-310p"))
    run = project / "results" / "demo"
    run.mkdir(parents=True)
    (run / "run.json").write_text('{"steps": "of a failed run"}')
    target = tmp_path / "m.zip"
    done = CliRunner().invoke(cli, ["check", "--bundle", str(target)])
    texts = read(target)
    assert texts["run.json"] == '{"steps": "of a failed run"}'
    assert texts["check.txt"] in done.stdout
    assert json.loads(texts["check.json"])["device"] == "auto"
    assert f"written: {target} ({len(texts)} files)\n" in done.stderr

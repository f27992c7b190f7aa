"""The shell scripts and the container file of environment/: they parse, and hand in what an NPU needs."""

import re
import shutil
import subprocess
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from telechat_kit.environment.releases import ascend_releases

ROOT = Path(__file__).parents[2]
SCRIPTS = [*sorted((ROOT / "environment").glob("*.sh")), ROOT / ".ci" / "run"]
START = ROOT / "environment" / "start-container.sh"
CONTAINERFILE = ROOT / "environment" / "Containerfile"


def bash(*arguments: str | Path, **environ: str) -> "subprocess.CompletedProcess[str]":
    env = {"PATH": "/usr/local/bin:/usr/bin:/bin", **environ}
    return subprocess.run(
        ["bash", *map(str, arguments)], capture_output=True, text=True, env=env, cwd=ROOT, check=False
    )


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_every_shell_script_parses(path: Path) -> None:
    done = bash("-n", path)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_every_shell_script_passes_shellcheck(path: Path) -> None:
    command = ["shellcheck", "-x", "-s", "bash", path]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.stdout == ""


def test_the_container_is_started_with_the_guides_devices() -> None:
    done = bash(START, "--print", "--devices", "0,3", "--models", "/data/models", "telechat-kit", "check")
    words = done.stdout.splitlines()
    assert done.returncode == 0
    devices = [words[i + 1] for i, word in enumerate(words) if word == "--device"]
    names = ("davinci0", "davinci3", "davinci_manager", "devmm_svm", "hisi_hdc")
    assert devices == [f"/dev/{name}" for name in names]
    mounts = [words[i + 1] for i, word in enumerate(words) if word == "--volume"]
    read_only = {mount.split(":")[0] for mount in mounts if mount.endswith(":ro")}
    driver = {"/usr/local/Ascend/driver/lib64", "/usr/local/Ascend/driver/version.info"}
    assert driver | {"/usr/local/dcmi", "/etc/ascend_install.info", "/usr/local/bin/npu-smi"} == read_only
    assert "/data/models:/opt/telechat-kit/models" in mounts
    assert words[-3:] == ["telechat-kit", "telechat-kit", "check"]


def test_the_ascend_runtime_takes_the_place_of_the_mounts() -> None:
    words = bash(START, "--print", "--runtime", "--devices", "0,1", CONTAINER="podman").stdout.splitlines()
    assert words[0] == "podman"
    assert words[words.index("--runtime") + 1] == "ascend"
    assert "ASCEND_VISIBLE_DEVICES=0,1" in words
    assert "--device" not in words
    assert [word for word in words if word.endswith(":ro")] == []


@pytest.mark.parametrize("arguments", [("--devices", "all"), ("--device", "0"), ("--image",)])
def test_wrong_options_are_refused_before_anything_starts(arguments: tuple[str, ...]) -> None:
    done = bash(START, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("Error: ")


def test_the_help_of_the_start_script_names_every_option() -> None:
    options = set(re.findall(r"^ +(--\w+)\)", START.read_text(), re.M))
    shown = bash(START, "--help").stdout
    assert options <= set(re.findall(r"--\w+", shown))
    assert "set -euo" not in shown


def test_env_sh_sets_the_guides_variables_once_and_keeps_the_users() -> None:
    script = ". environment/env.sh; . environment/env.sh; env"
    shown = bash("-euc", script, TASK_QUEUE_ENABLE="2", LD_LIBRARY_PATH="/mine").stdout
    values = dict(line.split("=", 1) for line in shown.splitlines() if "=" in line)
    assert values["TASK_QUEUE_ENABLE"] == "2"
    guide = ("OPERATION_EXECUTE_ASYNC", "USE_TILING_COPY_STREAM", "LAYER_INTERNAL_TENSOR_REUSE")
    assert [values[f"ATB_{name}"] for name in guide] == ["1", "1", "1"]
    folders = values["LD_LIBRARY_PATH"].split(":")
    assert folders[-1] == "/mine"
    assert sorted(folders) == sorted(set(folders))


def test_the_container_file_copies_what_is_there_and_names_no_host() -> None:
    text = CONTAINERFILE.read_text()
    sources = [word for line in re.findall(r"^COPY (.*)$", text, re.M) for word in line.split()[:-1]]
    allowed = (ROOT / "environment" / "Containerfile.dockerignore").read_text().splitlines()
    assert sources
    for source in sources:
        assert (ROOT / source).exists(), source
        assert f"!{source}" in allowed
    assert re.findall(r"https?://|\b[\w-]+\.(?:io|com|cn|org)\b", text) == []


def test_the_images_versions_are_the_recommended_set() -> None:
    best = ascend_releases().recommended
    image = re.search(r"^ARG BASE_IMAGE=(\S+)$", CONTAINERFILE.read_text(), re.M)
    assert image
    assert f"{best.torch_npu}-cann{best.cann}-310p" in image[1]


def test_the_npus_constraints_are_the_recommended_set_and_the_tests_versions() -> None:
    best = ascend_releases().recommended
    npu, cpu = (
        (ROOT / "environment" / f"constraints{kind}.txt").read_text().splitlines() for kind in ("-npu", "")
    )
    assert {f"torch=={best.torch}", f"torch_npu=={best.torch_npu}"} <= set(npu)
    assert "-c constraints-common.txt" in set(npu) & set(cpu)
    common = (ROOT / "environment" / "constraints-common.txt").read_text()
    assert re.findall(r"^(?:torch|torch_npu|numpy)\b.*", common, re.M) == []


def test_the_extra_takes_the_recommended_set_and_all_that_it_names_is_pinned() -> None:
    """What `pip install 'telechat-kit[npu]'` asks for, as the package's own metadata say it."""
    asked = {
        canonicalize_name(one.name): one.specifier
        for one in map(Requirement, requires("telechat-kit") or [])
        if one.marker is None or one.marker.evaluate({"extra": "npu", "sys_platform": "linux"})
    }
    texts = [(ROOT / "environment" / f"constraints-{kind}.txt").read_text() for kind in ("npu", "common")]
    pins = {
        canonicalize_name(pin.name): next(iter(pin.specifier)).version
        for pin in map(Requirement, re.findall(r"^[A-Za-z][^\n#]*==[^\n#]*", "\n".join(texts), re.M))
    }
    best = ascend_releases().recommended
    assert (pins["torch-npu"], pins["torch"]) == (best.torch_npu, best.torch)
    assert {"torch-npu", "torch", "numpy", "decorator", "scipy"} <= asked.keys()
    for name, allowed in asked.items():
        assert allowed.contains(pins[name]), name


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize(
    ("npu", "file", "what"),
    [("/dev/davinci0", "constraints-npu.txt", "'.[npu]'"), ("", "constraints.txt", "'.'")],
)
def test_make_installs_torch_npu_where_there_is_an_npu_and_only_there(
    npu: str, file: str, what: str, tmp_path: Path
) -> None:
    command = ["make", "--dry-run", "report", f"NPU={npu}", f"VENV={tmp_path}"]
    shown = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True).stdout
    assert f"--constraint environment/{file} --editable {what}\n" in shown


def test_the_container_keeps_the_images_torch_and_takes_the_rest_from_the_npus_constraints() -> None:
    """The lines of the container file that write the constraints, run with an image's list of packages."""
    text = CONTAINERFILE.read_text()
    lines = re.search(r"^RUN (grep .*?>> \S+)", text, re.M | re.S)
    assert lines
    image = "printf '%s\\n' torch==2.11.0 torch-npu==2.11.0 numpy==1.26.4 scipy==1.0"
    script = lines[1].replace("python3 -m pip list --format=freeze", image)
    script = script.replace("> environment/constraints-image.txt", "> /dev/stdout")
    shown = bash("-euc", script).stdout.splitlines()
    pins = [line for line in shown if re.match(r"(torch|numpy|scipy|-c)", line)]
    assert pins == ["-c constraints-common.txt", "torch==2.11.0", "torch-npu==2.11.0", "numpy==1.26.4"]

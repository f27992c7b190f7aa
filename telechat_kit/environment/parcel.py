"""A parcel for those who help from afar: everything that the check knows about a machine, and nothing of its owner.

Tables, outputs of npu-smi, version files, the tail of CANN's own log, variables of the stack. No weights, no texts;
home folders, the names of user and host, addresses and serial numbers are replaced.
"""

import importlib.metadata
import json
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from telechat_kit.environment.ascend import TOOLKITS
from telechat_kit.environment.npu_smi import parse
from telechat_kit.environment.probe import DRIVER, Probe
from telechat_kit.errors import ParameterError
from telechat_kit.files import atomic_path

#: Variables of the stack: those that Ascend, torch_npu, the loader and threads read. No other one is taken.
_VARIABLES = re.compile(
    r"(ASCEND|ATB|ACL|HCCL|NPU|CANN|TASK_QUEUE|TOOLCHAIN|PYTORCH|TORCH|OMP|MKL|CUDA|NVIDIA|INF_NAN)\w*"
    r"|LD_LIBRARY_PATH|LD_PRELOAD|PYTHONPATH|PATH|LANG|LC_ALL"
)
_LOG_LINES = 400
#: Newest log files of CANN that are taken, of one process each
_LOG_FILES = 3
_VERSION_FILES = (
    f"{DRIVER}/version.info",
    "/usr/local/Ascend/firmware/version.info",
    "/etc/ascend_install.info",
)
_SERIALS = re.compile(r"((?:serial number|vdie id|die id|elabel\w*|uuid)\s*[:=]\s*)\S.*", re.IGNORECASE)
#: Four numbers with dots are a version in a line that says so
_ADDRESSES = re.compile(
    r"(?<![\d.])\d{1,3}(?:\.\d{1,3}){3}(?![\d.])|\b(?:[0-9A-Fa-f]{2}:){5}[0-9A-Fa-f]{2}\b"
)
_HOMES = re.compile(r"(?<![\w.])/(?:home|Users)/[^/\s:\"']+")


def write_parcel(target: Path, files: Mapping[str, str], probe: Probe | None = None) -> list[str]:
    """Write `files` (name -> text) and what `probe` can tell into the zip archive `target`; gives the names in it.

    Raises:
        ParameterError: `target` is a folder.
        KitError: it cannot be written.
    """
    if target.is_dir():
        raise ParameterError(
            "{target} is a folder. Name the file to write, such as {example}.",
            target=target,
            example=target / "machine.zip",
        )
    probe = probe or Probe()
    texts = {**files, **dict(_machine(probe))}
    with atomic_path(target) as path, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in texts.items():
            archive.writestr(name, redacted(text, probe))
    return sorted(texts)


def redacted(text: str, probe: Probe) -> str:
    """`text` without home folders, user, host, addresses and serial numbers."""
    text = text.replace(str(probe.home), "~") if str(probe.home) != "/" else text
    text = _HOMES.sub("/home/USER", text)
    for name, word in ((probe.user, "USER"), *((host, "HOST") for host in _hosts(probe.host))):
        if len(name) > 2 and name not in ("root", "localhost"):
            text = re.sub(rf"(?<![\w.-]){re.escape(name)}(?![\w-])", word, text)
    lines = _SERIALS.sub(r"\1REMOVED", text).split("\n")
    return "\n".join(line if "version" in line.lower() else _ADDRESSES.sub("ADDRESS", line) for line in lines)


def _hosts(host: str) -> tuple[str, ...]:
    """The longer name first: the shorter one is a part of it."""
    return (host, host.partition(".")[0]) if "." in host else (host,)


def _machine(probe: Probe) -> Iterator[tuple[str, str]]:
    smi = probe.npu_smi(["info"])
    yield "npu-smi-info.txt", _outcome(smi.code, smi.output, smi.error)
    for card in dict.fromkeys(chip.card for chip in parse(smi.output).chips):
        for kind in ("board", "health", "usages"):
            told = probe.npu_smi(["info", "-t", kind, "-i", str(card)])
            yield f"npu-smi-{kind}-{card}.txt", _outcome(told.code, told.output, told.error)
    yield "versions.json", json.dumps(_versions(probe), indent=2)
    yield from _version_files(probe)
    wanted = {name: value for name, value in sorted(probe.environ.items()) if _VARIABLES.fullmatch(name)}
    yield "environment.txt", "".join(f"{name}={value}\n" for name, value in wanted.items())
    yield "dev.txt", "".join(f"{name}\n" for name in probe.names("/dev", "davinci*"))
    yield from _logs(probe)


def _outcome(code: int, output: str, error: str) -> str:
    return f"exit code {code}\n{output}" + (f"\nstderr:\n{error}" if error else "")


def _versions(probe: Probe) -> dict[str, object]:
    installed = {distribution.metadata["Name"] for distribution in importlib.metadata.distributions()}
    names = sorted({*filter(None, installed), "torch", "torch_npu"}, key=str.lower)
    packages = {name: version for name in names if (version := probe.package(name)) is not None}
    return {
        "python": probe.python,
        "machine": probe.arch,
        "container": probe.in_container,
        "packages": packages,
    }


def _version_files(probe: Probe) -> Iterator[tuple[str, str]]:
    for place in (*_VERSION_FILES, "/etc/os-release", "/proc/version"):
        if text := probe.text(place):
            yield f"files{place}.txt", text
    for home in TOOLKITS:
        for name in (
            "version.cfg",
            "opp_kernel/version.info",
            *(f"{probe.arch}-linux/ascend_{part}_install.info" for part in ("toolkit", "ops")),
        ):
            if text := probe.text(f"{home}/{name}"):
                yield f"files{home}/{name}.txt", text


def _logs(probe: Probe) -> Iterator[tuple[str, str]]:
    """The end of the newest files of CANN's log, which says more than the error that torch_npu raises."""
    folder = Path(probe.environ.get("ASCEND_PROCESS_LOG_PATH") or probe.home / "ascend" / "log")
    below = probe.path(str(folder))
    found = [path for path in below.rglob("plog-*.log") if path.is_file()] if below.is_dir() else []
    newest = sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)[:_LOG_FILES]
    for path in newest:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()[-_LOG_LINES:]
        yield f"plog/{path.relative_to(below)}", "\n".join(lines) + "\n"

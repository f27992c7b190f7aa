"""The Ascend stack of a machine: what is installed, sourced and visible. Facts only; `device_checks`, `stack_checks` and `torch_npu_checks` judge them."""

import json
import re
from dataclasses import dataclass

from telechat_kit.backends.npu.toolkit import toolkit_version
from telechat_kit.environment.npu_smi import Chip, parse
from telechat_kit.environment.probe import DRIVER, Outcome, Probe, parent, parse_values
from telechat_kit.messages import Message, marked

FIRMWARE = "/usr/local/Ascend/firmware"
#: The page that the advice of many rows points to
PAGE = "docs/ascend-setup.md"
#: The advice for a container that lacks devices or driver
START = marked("start the container with environment/start-container.sh, which hands in devices and driver")
#: Where CANN lies: from 8.5 on, and before
TOOLKITS = ("/usr/local/Ascend/cann", "/usr/local/Ascend/ascend-toolkit/latest")
#: Where ATB lies: in the nnal package, and in the guide
_ATB = ("/usr/local/Ascend/nnal/atb/latest", "/usr/local/Ascend/atb/latest")
_KERNELS = "opp/built-in/op_impl/ai_core/tbe/kernel"
#: Besides /dev/davinciN, one a chip
CONTROL_NODES = ("davinci_manager", "devmm_svm", "hisi_hdc")


@dataclass(frozen=True)
class Toolkit:
    """A CANN toolkit: its folder, its version, and whether this shell has sourced its set_env.sh."""

    home: str
    version: str
    sourced: bool

    @property
    def script(self) -> str:
        # the older installations keep the script beside the `latest` link, not in it
        return f"{self.home.removesuffix('/latest')}/set_env.sh"


@dataclass(frozen=True)
class Atb:
    """An Ascend Transformer Boost: version, and the C++ ABI (0 or 1) that this shell has sourced, if any."""

    version: str
    abi: int | None


@dataclass(frozen=True)
class ImportTest:
    """What importing torch_npu in a process of its own gave; `failure` is empty if it worked."""

    failure: str
    devices: int = 0
    cxx11_abi: bool = False
    operators: frozenset[str] = frozenset()


@dataclass(frozen=True)
class AscendStack:
    """Everything that `telechat-kit check` knows about an NPU and its software."""

    chips: tuple[Chip, ...]
    smi_failure: str
    nodes: tuple[str, ...]
    driver: str | None
    driver_firmware: tuple[tuple[str, str], ...]
    firmware: str | None
    toolkit: Toolkit | None
    kernels: str | None
    kernel_folders: tuple[str, ...]
    atb: Atb | None
    torch: str | None
    torch_npu: str | None
    imported: ImportTest | None


def has_ascend(probe: Probe) -> bool:
    """Whether anything here points to an NPU: a device, the driver, CANN or torch_npu."""
    places = (DRIVER, *TOOLKITS)
    seen = probe.names("/dev", "davinci*") or any(probe.exists(place) for place in places)
    return bool(seen) or probe.package("torch_npu") is not None


def read_stack(probe: Probe) -> AscendStack:
    """Ask the machine for its whole Ascend stack; a part that cannot be had is None, and never an error."""
    outcome = probe.npu_smi(["info"])
    smi = parse(outcome.output)
    driver = probe.values(f"{DRIVER}/version.info")
    toolkit = _toolkit(probe)
    torch_npu = probe.package("torch_npu")
    return AscendStack(
        chips=smi.chips,
        smi_failure="" if smi.chips else _smi_failure(outcome),
        nodes=tuple(_nodes(probe)),
        driver=driver.get("package_version") or driver.get("version") or smi.version or None,
        driver_firmware=_ranges(driver.get("compatible_version_fw", "")),
        firmware=_firmware(probe, smi.chips),
        toolkit=toolkit,
        kernels=_kernels(probe, toolkit) if toolkit else None,
        kernel_folders=tuple(probe.names(f"{toolkit.home}/{_KERNELS}", "ascend*")) if toolkit else (),
        atb=_atb(probe),
        torch=probe.package("torch"),
        torch_npu=torch_npu,
        imported=_imported(probe.import_torch_npu()) if torch_npu else None,
    )


def _smi_failure(outcome: Outcome) -> str:
    if outcome.code == 127 and "shared libraries" not in outcome.error:
        return marked("there is no npu-smi")
    return Message("npu-smi says: {last_line}", last_line=_last_line(outcome) or Message("nothing"))


def _nodes(probe: Probe) -> list[str]:
    chips = [name for name in probe.names("/dev", "davinci*") if re.fullmatch(r"davinci\d+", name)]
    return chips + [name for name in CONTROL_NODES if probe.exists(f"/dev/{name}")]


def _firmware(probe: Probe, chips: tuple[Chip, ...]) -> str | None:
    """From the version file on a host; a container sees only the driver, but npu-smi knows."""
    found = probe.values(f"{FIRMWARE}/version.info").get("version")
    if found or not chips:
        return found
    board = probe.npu_smi(["info", "-t", "board", "-i", str(chips[0].card)])
    return parse_values(board.output).get("firmware version")


def _ranges(text: str) -> tuple[tuple[str, str], ...]:
    """`[7.0.0,7.5.99],[8.0.0,8.9.9]` as pairs."""
    return tuple(re.findall(r"\[([^,\]]+),([^,\]]+)\]", text))


def _toolkit(probe: Probe) -> Toolkit | None:
    sourced = probe.environ.get("ASCEND_HOME_PATH") or probe.environ.get("ASCEND_TOOLKIT_HOME")
    for home in filter(None, (sourced, *TOOLKITS)):
        version = toolkit_version(home.rstrip("/"), probe.arch, probe.values)
        if version:
            return Toolkit(home.rstrip("/"), version, home == sourced)
    return None


def _kernels(probe: Probe, toolkit: Toolkit) -> str | None:
    """Version of the operator package: `ops` from CANN 8.5 on, `opp_kernel` before."""
    ops = probe.values(f"{toolkit.home}/{probe.arch}-linux/ascend_ops_install.info")
    older = probe.values(f"{toolkit.home}/opp_kernel/version.info")
    return ops.get("version") or older.get("version_dir") or older.get("version")


def _atb(probe: Probe) -> Atb | None:
    sourced = probe.environ.get("ATB_HOME_PATH", "").rstrip("/")
    abi = re.search(r"cxx_abi_([01])$", sourced)
    for home in filter(None, (parent(sourced, 2) if abi else "", *_ATB)):
        version = probe.values(f"{home}/version.info").get("ascend-cann-atb")
        if version:
            return Atb(version, int(abi[1]) if abi else None)
    return None


def _imported(outcome: Outcome) -> ImportTest:
    try:
        found = json.loads(outcome.output.strip().splitlines()[-1])
        operators = frozenset(found["operators"])
        return ImportTest("", found["devices"], found["cxx11_abi"], operators)
    except (IndexError, KeyError, TypeError, json.JSONDecodeError):
        return ImportTest(_last_line(outcome) or Message("the process ended with {code}", code=outcome.code))


def _last_line(outcome: Outcome) -> str:
    """The last line that a failed command wrote: where Python and npu-smi name the cause."""
    lines = [line.strip() for line in (outcome.output + "\n" + outcome.error).splitlines() if line.strip()]
    return lines[-1] if lines else ""

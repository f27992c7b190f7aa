"""The rows of what Ascend installs: driver, firmware, CANN toolkit, kernels, ATB, environment variables."""

from collections.abc import Iterator

from telechat_kit.environment.ascend import PAGE, START, AscendStack, Toolkit
from telechat_kit.environment.check import Check
from telechat_kit.environment.probe import Probe
from telechat_kit.environment.releases import AscendReleases, allows, listed, release_key


def stack_checks(
    stack: AscendStack, probe: Probe, releases: AscendReleases, lowest_torch: str
) -> Iterator[Check]:
    """Driver to environment variables; what a missing toolkit would have to hold is not asked for."""
    install = START if probe.in_container else f"install it: {PAGE}, step 1"
    yield _driver(stack, releases, install)
    yield _firmware(stack, install)
    yield _toolkit(stack, releases, lowest_torch)
    if stack.toolkit is not None:
        yield _kernels(stack, stack.toolkit, releases)
        yield _atb(stack)
        yield _variables(stack.toolkit, probe)


def _driver(stack: AscendStack, releases: AscendReleases, install: str) -> Check:
    row = releases.release(stack.toolkit.version) if stack.toolkit else None
    wanted = row[1].drivers or tuple(filter(None, (row[1].driver,))) if row else ()
    if row and not wanted:
        required = f"not known for CANN {row[0]}"
    else:
        required = f"{listed(wanted)} (CANN {row[0]})" if row else "as CANN requires"
    if stack.driver is None:
        return Check("driver", "not found", required, "missing", install)
    if row is None or not wanted or any(allows(pattern, stack.driver) for pattern in wanted):
        return Check("driver", stack.driver, required, "ok")
    # only a list of all that are allowed can say that one is not
    if row[1].drivers and release_key(stack.driver) < release_key(wanted[0].removesuffix(".X")):
        advice = f"too old for CANN {row[0]}: install driver {row[1].driver} on the host, {PAGE}, step 1"
        return Check("driver", stack.driver, required, "wrong", advice)
    advice = f"not among the drivers published for CANN {row[0]}: if a run fails, try {row[1].driver}"
    return Check("driver", stack.driver, required, "warning", advice)


def _firmware(stack: AscendStack, install: str) -> Check:
    ranges = [f"{low} to {high}" for low, high in stack.driver_firmware]
    required = f"{listed(ranges)} (driver)" if ranges else "as the driver requires"
    if stack.firmware is None:
        if stack.driver is None:
            return Check("firmware", "not found", required, "missing", install)
        advice = "ask on the host: npu-smi info -t board -i 0"
        return Check("firmware", "not visible here", required, "warning", advice)
    found = release_key(stack.firmware)[:3]
    inside = [low for low, high in stack.driver_firmware if release_key(low) <= found <= release_key(high)]
    if inside or not ranges:
        return Check("firmware", stack.firmware, required, "ok")
    advice = f"install the firmware of driver {stack.driver} and reboot: {PAGE}, step 1"
    return Check("firmware", stack.firmware, required, "wrong", advice)


def _toolkit(stack: AscendStack, releases: AscendReleases, lowest_torch: str) -> Check:
    first = releases.first_usable(lowest_torch)
    required = f"{first} or newer"
    if stack.toolkit is None:
        advice = f"install it and the operators of the chip: {PAGE}, steps 2 and 3"
        return Check("CANN toolkit", "not found", required, "missing", advice)
    found = f"{stack.toolkit.version} in {stack.toolkit.home}"
    if release_key(stack.toolkit.version) >= release_key(first):
        return Check("CANN toolkit", found, required, "ok")
    advice = f"no torch_npu of it goes with the kit's torch: install CANN {releases.recommended.cann}, {PAGE}, step 2"
    return Check("CANN toolkit", found, required, "wrong", advice)


def _kernels(stack: AscendStack, toolkit: Toolkit, releases: AscendReleases) -> Check:
    name = releases.family(stack.chips[0].name) if stack.chips else None
    chip = releases.chips[name].package if name else None
    required = f"{toolkit.version} for {chip}" if chip else toolkit.version
    advice = f"install the {chip or 'chip'} operator package of CANN {toolkit.version}: {PAGE}, step 3"
    if stack.kernels is None:
        return Check("kernels", "not found", required, "missing", advice)
    folders = [folder.removeprefix("ascend") for folder in stack.kernel_folders]
    found = f"{stack.kernels} for {listed(folders, 'and')}" if folders else stack.kernels
    fits = name is None or releases.chips[name].kernels in stack.kernel_folders
    if fits and (
        release_key(stack.kernels)[:3] == release_key(toolkit.version)[:3]
        or {stack.kernels, toolkit.version} <= set(releases.interchangeable_ops)
    ):
        return Check("kernels", found, required, "ok")
    return Check("kernels", found, required, "wrong", advice)


def _atb(stack: AscendStack) -> Check:
    required = "not needed by the kit"
    if stack.atb is None:
        return Check("ATB", "not found", required, "ok")
    sourced = "not sourced" if stack.atb.abi is None else f"C++ ABI {stack.atb.abi}"
    found, built = f"{stack.atb.version}, {sourced}", stack.imported
    if built is None or built.failure or stack.atb.abi in (None, int(built.cxx11_abi)):
        return Check("ATB", found, required, "ok")
    advice = f"torch has ABI {int(built.cxx11_abi)}: source the set_env.sh of ATB with --cxx_abi={int(built.cxx11_abi)}"
    return Check("ATB", found, required, "warning", advice)


def _variables(toolkit: Toolkit, probe: Probe) -> Check:
    component, required, environ = "environment", "set_env.sh of CANN sourced", probe.environ
    if not toolkit.sourced:
        return Check(component, "CANN is not sourced", required, "missing", f"source {toolkit.script}")
    found = f"ASCEND_HOME_PATH={toolkit.home}"
    if f"{toolkit.home}/lib64" not in environ.get("LD_LIBRARY_PATH", ""):
        advice = f"LD_LIBRARY_PATH lacks {toolkit.home}/lib64: source {toolkit.script}"
        return Check(component, found, required, "wrong", advice)
    if {"PYTORCH_ALLOC_CONF", "PYTORCH_NPU_ALLOC_CONF"} <= environ.keys():
        advice = "unset PYTORCH_ALLOC_CONF or PYTORCH_NPU_ALLOC_CONF: torch_npu 26.2.0 refuses both at once"
        return Check(component, found, required, "wrong", advice)
    if environ.get("ASCEND_LAUNCH_BLOCKING") == "1":
        advice = "unset ASCEND_LAUNCH_BLOCKING: every operator waits, speeds mean nothing"
        return Check(component, found, required, "warning", advice)
    return Check(component, found, required, "ok")

"""The rows of what Ascend installs: driver, firmware, CANN toolkit, kernels, ATB, environment variables."""

from collections.abc import Iterator

from telechat_kit.environment.ascend import PAGE, START, AscendStack, Toolkit
from telechat_kit.environment.check import Check
from telechat_kit.environment.probe import Probe
from telechat_kit.environment.releases import AscendReleases, allows, listed, release_key
from telechat_kit.messages import Message, joined, marked


def stack_checks(
    stack: AscendStack, probe: Probe, releases: AscendReleases, lowest_torch: str
) -> Iterator[Check]:
    """Driver to environment variables; what a missing toolkit would have to hold is not asked for."""
    install = START if probe.in_container else Message("install it: {page}, step 1", page=PAGE)
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
        required: str = Message("not known for CANN {row}", row=row[0])
    else:
        required = (
            Message("{listed} (CANN {row})", listed=listed(wanted), row=row[0])
            if row
            else marked("as CANN requires")
        )
    if stack.driver is None:
        return Check(marked("driver"), marked("not found"), required, "missing", install)
    if row is None or not wanted or any(allows(pattern, stack.driver) for pattern in wanted):
        return Check(marked("driver"), stack.driver, required, "ok")
    # only a list of all that are allowed can say that one is not
    if row[1].drivers and release_key(stack.driver) < release_key(wanted[0].removesuffix(".X")):
        advice = Message(
            "too old for CANN {row}: install driver {driver} on the host, {page}, step 1",
            row=row[0],
            driver=row[1].driver,
            page=PAGE,
        )
        return Check(marked("driver"), stack.driver, required, "wrong", advice)
    advice = Message(
        "not among the drivers published for CANN {row}: if a run fails, try {driver}",
        row=row[0],
        driver=row[1].driver,
    )
    return Check(marked("driver"), stack.driver, required, "warning", advice)


def _firmware(stack: AscendStack, install: str) -> Check:
    ranges = [Message("{low} to {high}", low=low, high=high) for low, high in stack.driver_firmware]
    required = (
        Message("{listed} (driver)", listed=listed(ranges)) if ranges else marked("as the driver requires")
    )
    if stack.firmware is None:
        if stack.driver is None:
            return Check(marked("firmware"), marked("not found"), required, "missing", install)
        advice = marked("ask on the host: npu-smi info -t board -i 0")
        return Check(marked("firmware"), marked("not visible here"), required, "warning", advice)
    found = release_key(stack.firmware)[:3]
    inside = [low for low, high in stack.driver_firmware if release_key(low) <= found <= release_key(high)]
    if inside or not ranges:
        return Check(marked("firmware"), stack.firmware, required, "ok")
    advice = Message(
        "install the firmware of driver {driver} and reboot: {page}, step 1", driver=stack.driver, page=PAGE
    )
    return Check(marked("firmware"), stack.firmware, required, "wrong", advice)


def _toolkit(stack: AscendStack, releases: AscendReleases, lowest_torch: str) -> Check:
    first = releases.first_usable(lowest_torch)
    required = Message("{first} or newer", first=first)
    if stack.toolkit is None:
        advice = Message("install it and the operators of the chip: {page}, steps 2 and 3", page=PAGE)
        return Check(marked("CANN toolkit"), marked("not found"), required, "missing", advice)
    found = Message("{version} in {folder}", version=stack.toolkit.version, folder=stack.toolkit.home)
    if release_key(stack.toolkit.version) >= release_key(first):
        return Check(marked("CANN toolkit"), found, required, "ok")
    advice = Message(
        "no torch_npu of it goes with the kit's torch: install CANN {cann}, {page}, step 2",
        cann=releases.recommended.cann,
        page=PAGE,
    )
    return Check(marked("CANN toolkit"), found, required, "wrong", advice)


def _kernels(stack: AscendStack, toolkit: Toolkit, releases: AscendReleases) -> Check:
    name = releases.family(stack.chips[0].name) if stack.chips else None
    chip = releases.chips[name].package if name else None
    required = (
        Message("{version} for {chips}", version=toolkit.version, chips=chip) if chip else toolkit.version
    )
    advice = Message(
        "install the {chip} operator package of CANN {version}: {page}, step 3",
        chip=chip or Message("chip"),
        version=toolkit.version,
        page=PAGE,
    )
    if stack.kernels is None:
        return Check(marked("kernels"), marked("not found"), required, "missing", advice)
    folders = [folder.removeprefix("ascend") for folder in stack.kernel_folders]
    found = stack.kernels
    if folders:
        found = Message("{version} for {chips}", version=stack.kernels, chips=listed(folders, "and"))
    fits = name is None or releases.chips[name].kernels in stack.kernel_folders
    if fits and (
        release_key(stack.kernels)[:3] == release_key(toolkit.version)[:3]
        or {stack.kernels, toolkit.version} <= set(releases.interchangeable_ops)
    ):
        return Check(marked("kernels"), found, required, "ok")
    return Check(marked("kernels"), found, required, "wrong", advice)


def _atb(stack: AscendStack) -> Check:
    required = marked("not needed by the kit")
    if stack.atb is None:
        return Check("ATB", marked("not found"), required, "ok")
    sourced = marked("not sourced") if stack.atb.abi is None else Message("C++ ABI {abi}", abi=stack.atb.abi)
    found, built = joined(", ", (stack.atb.version, sourced)), stack.imported
    if built is None or built.failure or stack.atb.abi in (None, int(built.cxx11_abi)):
        return Check("ATB", found, required, "ok")
    advice = Message(
        "torch has ABI {int}: source the set_env.sh of ATB with --cxx_abi={int}", int=int(built.cxx11_abi)
    )
    return Check("ATB", found, required, "warning", advice)


def _variables(toolkit: Toolkit, probe: Probe) -> Check:
    component, required, environ = marked("environment"), marked("set_env.sh of CANN sourced"), probe.environ
    if not toolkit.sourced:
        return Check(
            component,
            marked("CANN is not sourced"),
            required,
            "missing",
            Message("source {script}", script=toolkit.script),
        )
    found = f"ASCEND_HOME_PATH={toolkit.home}"
    if f"{toolkit.home}/lib64" not in environ.get("LD_LIBRARY_PATH", ""):
        advice: str = Message(
            "LD_LIBRARY_PATH lacks {home}/lib64: source {script}", home=toolkit.home, script=toolkit.script
        )
        return Check(component, found, required, "wrong", advice)
    if {"PYTORCH_ALLOC_CONF", "PYTORCH_NPU_ALLOC_CONF"} <= environ.keys():
        advice = marked(
            "unset PYTORCH_ALLOC_CONF or PYTORCH_NPU_ALLOC_CONF: torch_npu 26.2.0 refuses both at once"
        )
        return Check(component, found, required, "wrong", advice)
    if environ.get("ASCEND_LAUNCH_BLOCKING") == "1":
        advice = marked("unset ASCEND_LAUNCH_BLOCKING: every operator waits, speeds mean nothing")
        return Check(component, found, required, "warning", advice)
    return Check(component, found, required, "ok")

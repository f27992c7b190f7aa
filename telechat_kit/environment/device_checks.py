"""The rows of an NPU itself in the set-up table: chip, device files, memory, other processes."""

from collections.abc import Iterator, Mapping

from telechat_kit.environment.ascend import CONTROL_NODES, PAGE, START, AscendStack
from telechat_kit.environment.check import Check
from telechat_kit.environment.footprint import Footprint
from telechat_kit.environment.npu_smi import Chip
from telechat_kit.environment.probe import DRIVER, Probe
from telechat_kit.environment.releases import AscendReleases, listed

#: What npu-smi says when it fails, and what to do about it
_SMI_REMEDIES = {
    "-8020": f"another container holds the chip, or this one lacks /usr/local/dcmi: stop the other one, or {START}",
    "-8005": "the driver does not run or is not yours to use: reboot after installing it, be root or in its user group",
    "shared libraries": f"export LD_LIBRARY_PATH={DRIVER}/lib64/driver:{DRIVER}/lib64/common:$LD_LIBRARY_PATH",
}


def device_checks(
    stack: AscendStack, probe: Probe, releases: AscendReleases, index: int, footprint: Footprint | None
) -> Iterator[Check]:
    """Chip, device files, memory and processes of the device `npu:index`."""
    yield _chip(stack, probe, releases, index)
    yield _nodes(stack, probe)
    order = _visible(probe.environ, len(stack.chips))
    if index < len(order):
        chip = stack.chips[order[index]]
        yield _memory(chip, footprint)
        yield _processes(chip)


def _visible(environ: Mapping[str, str], count: int) -> list[int]:
    """Chips that torch_npu numbers from 0: all, or those of ASCEND_RT_VISIBLE_DEVICES in its order."""
    wanted = environ.get("ASCEND_RT_VISIBLE_DEVICES", "")
    numbers = [int(part) for part in wanted.split(",") if part.strip().isdigit()] if wanted else range(count)
    return [number for number in numbers if number < count]


def _chip(stack: AscendStack, probe: Probe, releases: AscendReleases, index: int) -> Check:
    required = f"{listed(list(releases.chips))}, healthy"
    if not stack.chips:
        return Check("chip", f"none: {stack.smi_failure}", required, "missing", _no_chip(stack, probe))
    names = [chip.name for chip in stack.chips]
    found = ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names))
    visible = _visible(probe.environ, len(names))
    if index >= len(visible):
        choice = f"choose npu:0 to npu:{len(visible) - 1}" if visible else "no chip is visible"
        advice = f"there is no npu:{index}: {choice}, or correct ASCEND_RT_VISIBLE_DEVICES"
        return Check("chip", f"{found}, {len(visible)} visible", required, "wrong", advice)
    chip = stack.chips[visible[index]]
    if releases.family(chip.name) is None:
        why = releases.outsider(chip.name) or f"the kit does not know which operators {chip.name} has"
        advice = f"{why}: run with -p device cpu, or take a {listed(list(releases.chips))}"
        return Check("chip", found, required, "wrong", advice)
    if chip.health != "OK":
        advice = f"npu:{index} reports {chip.health}: npu-smi info -t health -i {chip.card}"
        return Check("chip", found, required, "warning", advice)
    return Check("chip", found, required, "ok")


def _no_chip(stack: AscendStack, probe: Probe) -> str:
    remedy = next((text for mark, text in _SMI_REMEDIES.items() if mark in stack.smi_failure), None)
    return remedy or (START if probe.in_container else f"install driver and firmware: {PAGE}, step 1")


def _nodes(stack: AscendStack, probe: Probe) -> Check:
    lacking = [name for name in CONTROL_NODES if name not in stack.nodes]
    if set(stack.nodes) <= set(CONTROL_NODES):
        lacking.insert(0, "davinciN")
    place = "in this container" if probe.in_container else "on this host"
    found = f"{', '.join(stack.nodes) or 'none'} {place}"
    required = f"davinciN, {', '.join(CONTROL_NODES)}"
    if not lacking:
        return Check("device files", found, required, "ok")
    advice = START if probe.in_container else f"reboot after installing the driver: {PAGE}, step 1"
    return Check("device files", found, required, "missing", advice)


def _memory(chip: Chip, footprint: Footprint | None) -> Check:
    free, total = (megabytes * 2**20 for megabytes in (chip.free, chip.total))
    found = f"{free / 1e9:.1f} of {total / 1e9:.1f} GB free"
    if footprint is None:
        return Check("device memory", found, "known once the checkpoint is there", "ok")
    required = f"{footprint.w8a8 / 1e9:.1f} GB as W8A8, {footprint.float16 / 1e9:.1f} GB as float16"
    if footprint.float16 <= free:
        return Check("device memory", found, required, "ok")
    reachable = free + sum(process.memory for process in chip.processes) * 2**20
    if footprint.w8a8 <= free and footprint.float16 > reachable:
        advice = "float16 does not fit this card, W8A8 does: run the float steps with -p device cpu"
        return Check("device memory", found, required, "warning", advice)
    if footprint.w8a8 > reachable:
        advice = "the model does not fit this card, not even as W8A8: take a card with more memory"
    else:
        advice = "end the other processes, or choose another device"
    return Check("device memory", found, required, "wrong", advice)


def _processes(chip: Chip) -> Check:
    found = ", ".join(f"{p.pid} {p.name} {p.memory:,} MB" for p in chip.processes)
    if not found:
        return Check("other processes", "none", "none on the device", "ok")
    advice = "speeds measured beside them mean little: end them, or choose another device"
    return Check("other processes", found, "none on the device", "warning", advice)

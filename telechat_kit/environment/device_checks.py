"""The rows of an NPU itself in the set-up table: chip, device files, memory, other processes."""

from collections.abc import Iterator, Mapping

from telechat_kit.environment.ascend import CONTROL_NODES, PAGE, START, AscendStack
from telechat_kit.environment.check import Check
from telechat_kit.environment.footprint import Footprint
from telechat_kit.environment.npu_smi import Chip
from telechat_kit.environment.probe import DRIVER, Probe
from telechat_kit.environment.releases import AscendReleases, listed
from telechat_kit.messages import Message, marked

#: What npu-smi says when it fails, and what to do about it
_SMI_REMEDIES = {
    "-8020": Message(
        "another container holds the chip, or this one lacks /usr/local/dcmi: stop the other one, or {start}",
        start=START,
    ),
    "-8005": marked(
        "the driver does not run or is not yours to use: reboot after installing it, be root or in its user group"
    ),
    "shared libraries": Message(
        "export LD_LIBRARY_PATH={driver}/lib64/driver:{driver}/lib64/common:$LD_LIBRARY_PATH", driver=DRIVER
    ),
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
    required = Message("{listed}, healthy", listed=listed(list(releases.chips)))
    if not stack.chips:
        return Check(
            marked("chip"),
            Message("none: {smi_failure}", smi_failure=stack.smi_failure),
            required,
            "missing",
            _no_chip(stack, probe),
        )
    names = [chip.name for chip in stack.chips]
    found = ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names))
    visible = _visible(probe.environ, len(names))
    if index >= len(visible):
        choice = (
            Message("choose npu:0 to npu:{count}", count=len(visible) - 1)
            if visible
            else marked("no chip is visible")
        )
        advice = Message(
            "there is no npu:{index}: {choice}, or correct ASCEND_RT_VISIBLE_DEVICES",
            index=index,
            choice=choice,
        )
        return Check(
            marked("chip"),
            Message("{found}, {count} visible", found=found, count=len(visible)),
            required,
            "wrong",
            advice,
        )
    chip = stack.chips[visible[index]]
    if releases.family(chip.name) is None:
        why = releases.outsider(chip.name) or Message(
            "the kit does not know which operators {name} has", name=chip.name
        )
        advice = Message(
            "{why}: run with -p device cpu, or take a {listed}", why=why, listed=listed(list(releases.chips))
        )
        return Check(marked("chip"), found, required, "wrong", advice)
    if chip.health != "OK":
        advice = Message(
            "npu:{index} reports {health}: npu-smi info -t health -i {card}",
            index=index,
            health=chip.health,
            card=chip.card,
        )
        return Check(marked("chip"), found, required, "warning", advice)
    return Check(marked("chip"), found, required, "ok")


def _no_chip(stack: AscendStack, probe: Probe) -> str:
    remedy = next((text for mark, text in _SMI_REMEDIES.items() if mark in stack.smi_failure), None)
    return remedy or (
        START if probe.in_container else Message("install driver and firmware: {page}, step 1", page=PAGE)
    )


def _nodes(stack: AscendStack, probe: Probe) -> Check:
    lacking = [name for name in CONTROL_NODES if name not in stack.nodes]
    if set(stack.nodes) <= set(CONTROL_NODES):
        lacking.insert(0, "davinciN")
    nodes = ", ".join(stack.nodes)
    if probe.in_container:
        found = (
            Message("{nodes} in this container", nodes=nodes) if nodes else marked("none in this container")
        )
    else:
        found = Message("{nodes} on this host", nodes=nodes) if nodes else marked("none on this host")
    required = Message("davinciN, {control_nodes}", control_nodes=", ".join(CONTROL_NODES))
    if not lacking:
        return Check(marked("device files"), found, required, "ok")
    advice = (
        START
        if probe.in_container
        else Message("reboot after installing the driver: {page}, step 1", page=PAGE)
    )
    return Check(marked("device files"), found, required, "missing", advice)


def _memory(chip: Chip, footprint: Footprint | None) -> Check:
    free, total = (megabytes * 2**20 for megabytes in (chip.free, chip.total))
    found = Message("{free:.1f} of {total:.1f} GB free", free=free / 1e9, total=total / 1e9)
    if footprint is None:
        return Check(marked("device memory"), found, marked("known once the checkpoint is there"), "ok")
    required = Message(
        "{w8a8:.1f} GB as W8A8, {float16:.1f} GB as float16",
        w8a8=footprint.w8a8 / 1e9,
        float16=footprint.float16 / 1e9,
    )
    if footprint.float16 <= free:
        return Check(marked("device memory"), found, required, "ok")
    reachable = free + sum(process.memory for process in chip.processes) * 2**20
    if footprint.w8a8 <= free and footprint.float16 > reachable:
        advice = marked("float16 does not fit this card, W8A8 does: run the float steps with -p device cpu")
        return Check(marked("device memory"), found, required, "warning", advice)
    if footprint.w8a8 > reachable:
        advice = marked("the model does not fit this card, not even as W8A8: take a card with more memory")
    else:
        advice = marked("end the other processes, or choose another device")
    return Check(marked("device memory"), found, required, "wrong", advice)


def _processes(chip: Chip) -> Check:
    found = ", ".join(f"{p.pid} {p.name} {p.memory:,} MB" for p in chip.processes)
    if not found:
        return Check(marked("other processes"), marked("none"), marked("none on the device"), "ok")
    advice = marked("speeds measured beside them mean little: end them, or choose another device")
    return Check(marked("other processes"), found, marked("none on the device"), "warning", advice)

"""`check`: everything that a run needs, as one table; `check_setup`: that table with the model, as a record."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from packaging.version import Version

from telechat_kit.backends import DEVICES, backend_for, choose_device, resolve_device, split_devices
from telechat_kit.environment.ascend import has_ascend, read_stack
from telechat_kit.environment.check import Check
from telechat_kit.environment.checkpoint_checks import Part, checkpoint_checks, model_parts, weights_bytes
from telechat_kit.environment.device_checks import device_checks
from telechat_kit.environment.footprint import Footprint, footprint
from telechat_kit.environment.operator_results import OperatorTests
from telechat_kit.environment.probe import Probe
from telechat_kit.environment.releases import ascend_releases, base_version, required_versions
from telechat_kit.environment.stack_checks import stack_checks
from telechat_kit.environment.torch_npu_checks import torch_npu_checks
from telechat_kit.errors import CheckpointError, DeviceError
from telechat_kit.files import relative, resolve
from telechat_kit.inference.conditions import conditions
from telechat_kit.messages import Message, marked
from telechat_kit.model.folder import origin, read_config
from telechat_kit.provenance import Conditions

SCHEMA = "telechat-kit/setup/1"


@dataclass(frozen=True)
class SetupRecord:
    """What `01_setup` found."""

    schema: str
    checkpoint_path: str
    checks: list[Check]
    architecture: dict[str, int]
    parts: list[Part]
    checkpoint_bytes: int
    origin: dict[str, Any]
    conditions: Conditions
    #: what was tried on the device; None: nothing
    operators: OperatorTests | None = None


def check(
    checkpoint_path: str | Path,
    run_folder: str | Path,
    device: str = "auto",
    embedded_model: str = "",
    probe: Probe | None = None,
) -> list[Check]:
    """Every row of the set-up table. Nothing is changed, and nothing that is wrong with the machine is raised.

    The rows of an NPU are there when `device` is one, and with "auto" when anything here points to one.

    Raises:
        DeviceError: `device` is no name of a device.

    Example:
        >>> checks = check("models/tiny", "results/tiny", device="cpu")
        >>> [row.verdict for row in checks if row.component == "weights"]
        ['ok']
    """
    probe, folder = probe or Probe(), resolve(checkpoint_path)
    kind, indices = _devices(device)
    if kind == "auto":
        kind = "npu" if has_ascend(probe) else "cpu"
    rows = [*_version_checks(kind, probe)]
    if kind == "npu":
        rows += _npu_checks(probe, indices, _footprint(folder, len(indices)))
        rows += [_chosen_device(npu_is_here=True)] if device == "auto" else []
    else:
        rows += _other_device_checks(probe, device)
    rows += _resource_checks(probe, folder, resolve(run_folder))
    return [*rows, *checkpoint_checks(folder, embedded_model)]


def check_setup(
    checkpoint_path: str | Path,
    run_folder: str | Path,
    device: str = "auto",
    checks: list[Check] | None = None,
    tested: OperatorTests | None = None,
) -> SetupRecord:
    """The record of `01_setup`: the table (taken anew if it is not given), the operators tried, the model, the conditions.

    Raises:
        CheckpointError, DeviceError: there is no checkpoint or no device to describe.

    Example:
        >>> setup = check_setup("models/tiny", "results/tiny", device="cpu")
        >>> setup.architecture["blocks"]
        4
    """
    folder, target = resolve(checkpoint_path), resolve_device(device)
    config, size = read_config(folder), weights_bytes(folder)
    return SetupRecord(
        schema=SCHEMA,
        checkpoint_path=relative(folder),
        checks=check(folder, run_folder, device) if checks is None else checks,
        architecture={
            marked("blocks"): config.n_layer,
            marked("hidden size"): config.hidden_size,
            marked("attention heads"): config.n_head,
            marked("feed-forward size"): config.ffn_hidden_size,
            marked("vocabulary"): config.vocab_size,
            marked("trained length"): config.training_seqlen,
        },
        parts=model_parts(folder),
        checkpoint_bytes=size,
        origin=origin(folder),
        conditions=conditions(target, len(split_devices(device)), float=folder),
        operators=tested,
    )


def _devices(device: str) -> tuple[str, list[int]]:
    kinds, indices = list[str](), list[int]()
    for one in split_devices(device):
        kind, _, index = one.partition(":")
        if (kind not in DEVICES and device != "auto") or (index and not index.isdigit()):
            raise DeviceError(
                'device "{device}" is unknown. Use auto, or one of {devices}, with :N for the Nth, or several '
                "with commas between them.",
                device=device,
                devices=", ".join(DEVICES),
            )
        kinds.append(kind)
        indices.append(int(index or 0))
    if len(set(kinds)) > 1:
        raise DeviceError('device "{device}": only devices of one kind can share a model.', device=device)
    return kinds[0], indices


def _version_checks(device_type: str, probe: Probe) -> Iterator[Check]:
    for name, required in required_versions(device_type).items():
        if name == "python" and device_type == "npu":
            continue  # torch_npu's own list of Python versions decides there
        found = probe.python if name == "python" else probe.package(name)
        remedy: str = Message("install {name} {required} or newer", name=name, required=required)
        lowest = Message("{required} or newer", required=required)
        if name == "torch" and device_type == "npu":
            remedy = marked("install the torch of a published set: see torch_npu and the version set")
        if found is None:
            yield Check(name, marked("not installed"), lowest, "missing", remedy)
        elif Version(base_version(found)) < Version(required):
            yield Check(name, found, lowest, "wrong", remedy)
        else:
            yield Check(name, found, lowest, "ok")


def _npu_checks(probe: Probe, indices: Sequence[int], needed: Footprint | None) -> Iterator[Check]:
    stack, releases, lowest = read_stack(probe), ascend_releases(), required_versions("npu")
    first, *others = indices
    yield from device_checks(stack, probe, releases, first, needed)
    for index in others:
        for row in device_checks(stack, probe, releases, index, needed):
            if row.component != "device files":  # those of the machine
                yield replace(row, component=f"{row.component}, npu:{index}")
    yield from stack_checks(stack, probe, releases, lowest["torch"])
    yield from torch_npu_checks(stack, probe, releases, lowest)


def _other_device_checks(probe: Probe, device: str) -> Iterator[Check]:
    found = marked("one is here and not used") if has_ascend(probe) else marked("no NPU")
    yield Check(marked("chip"), found, Message("none, device is {device}", device=device), "ok")
    if device == "auto":
        yield _chosen_device()
        return
    try:
        target = resolve_device(device)
    except DeviceError as error:
        yield Check(
            marked("device"),
            Message("{device} cannot be used", device=device),
            marked("one that is there"),
            "missing",
            str(error),
        )
        return
    name = f"{target.type}: {backend_for(target.type).device_name()}"
    yield Check(marked("device"), name, marked("cpu, cuda or npu"), "ok")


def _chosen_device(npu_is_here: bool = False) -> Check:
    """What "auto" means here, and why."""
    choice = choose_device()
    found = choice.said(f"{choice.kind}: {backend_for(choice.kind).device_name()}")
    required = marked("auto: npu, else cuda, else cpu")
    if npu_is_here and choice.kind != "npu":
        advice = Message(
            "a run with device: auto would use the {kind}: put right what stands above, or name the device",
            kind=choice.kind,
        )
        return Check(marked("device"), found, required, "warning", advice)
    return Check(marked("device"), found, required, "ok")


def _footprint(folder: Path, devices: int) -> Footprint | None:
    try:
        return footprint(read_config(folder), devices)
    except CheckpointError:
        return None


def _resource_checks(probe: Probe, folder: Path, run_folder: Path) -> Iterator[Check]:
    try:
        size = weights_bytes(folder)
    except CheckpointError:
        size = 0  # its own row says so
    # weights, their int8 form and the calibration's copies: 2.1 GB were measured for the demo model's 0.59 GB
    needed = 3.5 * size + 1e9
    yield _amount(
        marked("free memory"),
        probe.free_memory(),
        needed,
        marked("close other programs, or use a machine with more memory"),
    )
    existing = next(parent for parent in (run_folder, *run_folder.parents) if parent.exists())
    yield _amount(
        marked("free disk"),
        probe.free_disk(existing),
        size,
        marked("free space or choose another run_folder"),
    )


def _amount(component: str, found: float, needed: float, advice: str) -> Check:
    row = (f"{found / 1e9:.1f} GB", f"{needed / 1e9:.1f} GB")
    return Check(component, *row, "ok") if found >= needed else Check(component, *row, "warning", advice)

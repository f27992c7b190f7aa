"""The rows of torch on an NPU: Python, torch_npu, its operators, and whether all of them are a published set."""

import re
from collections.abc import Iterator

from packaging.version import Version

from telechat_kit.environment.ascend import PAGE, AscendStack, Toolkit
from telechat_kit.environment.check import Check, Verdict
from telechat_kit.environment.probe import Probe
from telechat_kit.environment.releases import AscendReleases, base_version, listed, release_key
from telechat_kit.messages import Message, marked

_NEWER = marked("newer than every set that the kit knows, so its operators decide (check --operators)")


def torch_npu_checks(
    stack: AscendStack, probe: Probe, releases: AscendReleases, lowest: dict[str, str]
) -> Iterator[Check]:
    """`lowest`: what the kit itself requires of python and torch, as `required_versions("npu")` says."""
    yield _python(stack, probe, releases, lowest)
    yield _torch_npu(stack, releases, lowest["torch"])
    if stack.imported and not stack.imported.failure:
        yield _operators(stack, releases)
    if stack.toolkit and (stack.torch_npu or stack.toolkit.version == releases.guide.cann):
        yield _version_set(stack, stack.toolkit, releases, lowest["torch"])


def _python(stack: AscendStack, probe: Probe, releases: AscendReleases, lowest: dict[str, str]) -> Check:
    pairs = [p for release in releases.cann.values() for p in releases.usable(release, lowest["torch"])]
    own = next((pair for pair in pairs if pair.torch_npu == stack.torch_npu), None)
    least = Version(lowest["python"])
    if own is None:
        required, best = Message("{least} or newer", least=least), str(least)
        good = Version(probe.python) >= least
    else:
        known = [version for version in own.python if Version(version) >= least]
        required, best = (
            Message("{listed} (torch_npu {torch_npu})", listed=listed(known), torch_npu=own.torch_npu),
            known[-1],
        )
        good = probe.python.rpartition(".")[0] in known
    if good:
        return Check("python", probe.python, required, "ok")
    return Check(
        "python",
        probe.python,
        required,
        "wrong",
        Message("make the environment with Python {best}", best=best),
    )


def _torch_npu(stack: AscendStack, releases: AscendReleases, lowest_torch: str) -> Check:
    required, version = marked("imports, and sees a device"), stack.torch_npu
    if version is None or stack.imported is None:
        advice = _install(stack, releases, lowest_torch)
        return Check("torch_npu", marked("not installed"), required, "missing", advice)
    if stack.imported.failure:
        # without the folders of the file that is named in it: they only push the cause out of sight
        cause = re.sub(r"(?<=\s)/\S+/", "", stack.imported.failure)[:200]
        found = Message("{version}, cannot be imported: {cause}", version=version, cause=cause)
        return Check("torch_npu", found, required, "wrong", _import_remedy(stack, stack.imported.failure))
    if stack.imported.devices == 0:
        advice = marked("put right what stands above, then check again")
        return Check(
            "torch_npu", Message("{version}, sees no device", version=version), required, "wrong", advice
        )
    return Check(
        "torch_npu",
        Message("{version}, sees {devices}", version=version, devices=stack.imported.devices),
        required,
        "ok",
    )


def _import_remedy(stack: AscendStack, failure: str) -> str:
    if stack.toolkit is None:
        return Message("install the CANN toolkit: {page}, step 2", page=PAGE)
    if not stack.toolkit.sourced:
        return Message("source {script}", script=stack.toolkit.script)
    if "undefined symbol" in failure:
        return marked("torch, torch_npu and CANN were not built for each other: see the version set")
    return marked("read the whole message: python -c 'import torch, torch_npu'")


def _operators(stack: AscendStack, releases: AscendReleases) -> Check:
    assert stack.imported is not None
    lacking = [name for name in releases.operators if name not in stack.imported.operators]
    count = len(releases.operators)
    found = Message("{part} of {whole}", part=count - len(lacking), whole=count)
    required = listed(releases.operators, "and")
    if not lacking:
        return Check(marked("int8 operators"), found, required, "ok")
    advice = Message(
        "this torch_npu has no {listed}: take a newer one, see the version set", listed=listed(lacking)
    )
    return Check(marked("int8 operators"), found, required, "wrong", advice)


def _version_set(stack: AscendStack, toolkit: Toolkit, releases: AscendReleases, lowest_torch: str) -> Check:
    cann, torch, torch_npu = toolkit.version, stack.torch or "none", stack.torch_npu or "none"
    found = Message(
        "CANN {cann}, torch {torch}, torch_npu {torch_npu}", cann=cann, torch=torch, torch_npu=torch_npu
    )
    if cann == releases.guide.cann:
        whose = (
            marked("the guide's own set")
            if torch_npu == releases.guide.torch_npu
            else marked("the guide's CANN")
        )
        return _row(
            Message("{set}: {whose}", set=found, whose=whose),
            "wrong",
            _leave_the_guide(releases, lowest_torch),
        )
    way = _install(stack, releases, lowest_torch)
    if base_version(torch_npu) != base_version(torch):
        return _row(
            found,
            "wrong",
            Message(
                "torch_npu {torch_npu} is built for torch {base_version}: {way}",
                torch_npu=torch_npu,
                base_version=base_version(torch_npu),
                way=way,
            ),
        )
    row = releases.release(cann)
    if row is None:
        newer = release_key(cann) > release_key(list(releases.cann)[-1])
        advice = _NEWER if newer else Message("the kit knows no set of CANN {cann}", cann=cann)
        return _row(
            found,
            "warning",
            Message("{advice}; {page} lists the sets that it knows", advice=advice, page=PAGE),
        )
    if releases.runs_on(torch_npu, row[0]):
        too_old = Version(base_version(torch)) < Version(lowest_torch)
        return (
            _row(found, "wrong", Message("too old for the kit: {way}", way=way))
            if too_old
            else _row(found, "ok", "")
        )
    owner = releases.owner(torch_npu)
    if owner:
        return _row(
            found,
            "wrong",
            Message(
                "torch_npu {torch_npu} is built for CANN {owner}: {way}",
                torch_npu=torch_npu,
                owner=owner,
                way=way,
            ),
        )
    why = (
        _NEWER if releases.newer_than_all(torch_npu) else Message("not published for CANN {row}", row=row[0])
    )
    return _row(found, "warning", Message("{why}: if a run fails, {way}", why=why, way=way))


def _row(found: str, verdict: Verdict, advice: str) -> Check:
    return Check(marked("version set"), found, marked("a published set"), verdict, advice)


def _leave_the_guide(releases: AscendReleases, lowest_torch: str) -> str:
    best = releases.recommended
    drivers = releases.cann[best.cann].drivers
    return Message(
        "torch_npu has no int8 operators there, the guide ran int8 through ATB; the kit calls torch_npu "
        "and needs CANN {first_usable} or newer, for example CANN {cann} with torch {torch} and "
        "torch_npu {torch_npu} on driver {drivers} or newer: {page} says how to move",
        first_usable=releases.first_usable(lowest_torch),
        cann=best.cann,
        torch=best.torch,
        torch_npu=best.torch_npu,
        drivers=drivers[0],
        page=PAGE,
    )


def _install(stack: AscendStack, releases: AscendReleases, lowest_torch: str) -> str:
    """The pip line for this CANN: the pair of the torch that is there, else the newest one."""
    row = releases.release(stack.toolkit.version) if stack.toolkit else None
    pairs = releases.usable(row[1], lowest_torch) if row else []
    if not pairs:
        best = releases.recommended
        return Message(
            "move to CANN {cann}, torch {torch}, torch_npu {torch_npu}: {page}",
            cann=best.cann,
            torch=best.torch,
            torch_npu=best.torch_npu,
            page=PAGE,
        )
    same = [pair for pair in pairs if stack.torch and pair.torch == base_version(stack.torch)]
    pair = (same or pairs)[0]
    return Message(
        "pip install torch=={torch} torch_npu=={torch_npu}", torch=pair.torch, torch_npu=pair.torch_npu
    )

"""Which versions belong together: the rows of `environment/versions.yaml`, and how versions are compared."""

import re
from bisect import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import yaml
from packaging.version import InvalidVersion, Version
from pydantic import TypeAdapter, ValidationError

from telechat_kit.errors import KitError
from telechat_kit.faults import yaml_fault
from telechat_kit.files import project_root, shipped_project
from telechat_kit.messages import Message


@dataclass(frozen=True)
class Pair:
    """A torch and the torch_npu built for it, with the Python versions that there are wheels for."""

    torch: str
    torch_npu: str
    python: tuple[str, ...]


@dataclass(frozen=True)
class Release:
    """A CANN version and what was published with it. `drivers`: all that are allowed, where that was published.

    `driver` is empty where the driver that belongs to it was not found.
    """

    note: str
    pairs: tuple[Pair, ...]
    driver: str = ""
    drivers: tuple[str, ...] = ()
    firmware: str = ""


@dataclass(frozen=True)
class Compatible:
    """Releases whose torch_npu builds (`builds_of`) are published as running on all of the others (`run_on`)."""

    builds_of: tuple[str, ...]
    run_on: tuple[str, ...]


@dataclass(frozen=True)
class Family:
    """Chips that take the same operators: their names, folder of compiled operators, word in the package's name."""

    names: tuple[str, ...]
    kernels: str
    package: str


@dataclass(frozen=True)
class Outsider:
    """Chips that are none of the kit's, and what sets them apart from the family they look like."""

    names: tuple[str, ...]
    why: str


@dataclass(frozen=True)
class VersionSet:
    """Three versions that belong together."""

    cann: str
    torch: str
    torch_npu: str


@dataclass(frozen=True)
class AscendReleases:
    """The `ascend` part of `environment/versions.yaml`. `recommended`: where to move when nothing here fits."""

    guide: VersionSet
    recommended: VersionSet
    operators: tuple[str, ...]
    chips: dict[str, Family]
    outside: dict[str, Outsider]
    compatible: tuple[Compatible, ...]
    interchangeable_ops: tuple[str, ...]
    cann: dict[str, Release]

    def family(self, chip_name: str) -> str | None:
        """The family of a chip by the name that npu-smi prints, with or without "Ascend" before it."""
        names = {chip_name, chip_name.removeprefix("Ascend")}
        return next((key for key, family in self.chips.items() if names & set(family.names)), None)

    def outsider(self, chip_name: str) -> str:
        """Why a chip that looks like one of the kit's is none; empty for one that the kit never heard of."""
        name = chip_name.removeprefix("Ascend")
        return next((other.why for other in self.outside.values() if name in other.names), "")

    def owner(self, torch_npu: str) -> str | None:
        """The CANN row that a torch_npu build was published with."""
        rows = self.cann.items()
        return next((name for name, row in rows if torch_npu in [p.torch_npu for p in row.pairs]), None)

    def runs_on(self, torch_npu: str, row: str) -> bool:
        """Whether a torch_npu build is published as running on the releases that the row `row` of CANN judges.

        A build that no row names is taken for one of them if the builds before and behind it, of the same torch, are.
        """
        owner = self.owner(torch_npu)
        if owner is not None:
            return owner == row or any(
                owner in table.builds_of and row in table.run_on for table in self.compatible
            )
        builds = [pair.torch_npu for release in self.cann.values() for pair in release.pairs]
        same = sorted(filter(partial(_same_base, torch_npu), builds), key=Version)
        place = bisect([Version(build) for build in same], Version(torch_npu))
        return 0 < place < len(same) and all(
            self.runs_on(build, row) for build in same[place - 1 : place + 1]
        )

    def newer_than_all(self, torch_npu: str) -> bool:
        """Whether a torch_npu build is newer than every one in the list."""
        builds = [pair.torch_npu for release in self.cann.values() for pair in release.pairs]
        return Version(torch_npu) > max(map(Version, builds))

    def release(self, cann: str) -> tuple[str, Release] | None:
        """The row of a CANN version, or of the nearest version of its series before it (8.5.1 -> 8.5.0)."""
        if cann in self.cann:
            return cann, self.cann[cann]
        series = [name for name in self.cann if release_key(name)[:2] == release_key(cann)[:2]]
        before = [name for name in series if release_key(name) <= release_key(cann)]
        return (before[-1], self.cann[before[-1]]) if before else None

    def usable(self, release: Release, lowest_torch: str) -> list[Pair]:
        """Pairs of a release whose torch is new enough, newest first."""
        return [pair for pair in release.pairs if Version(pair.torch) >= Version(lowest_torch)]

    def first_usable(self, lowest_torch: str) -> str:
        """The oldest CANN in the list that has a torch new enough."""
        return next(name for name, release in self.cann.items() if self.usable(release, lowest_torch))


def required_versions(device_type: str) -> dict[str, str]:
    """Lowest versions for a kind of device, from `environment/versions.yaml`."""
    sets = _read(_path()).values()
    return next(entry["required"] for entry in sets if device_type in entry.get("devices", ()))


def ascend_releases() -> AscendReleases:
    """The published Ascend version sets.

    Raises:
        KitError: `environment/versions.yaml` is missing or damaged.
    """
    path = _path()
    try:
        return TypeAdapter(AscendReleases).validate_python(_read(path).get("ascend"))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise KitError(
            "{path}: ascend.{where}: {first}. Take the file from the project.",
            path=path,
            where=where,
            first=first["msg"],
        ) from error


def _path() -> Path:
    places = [root / "environment" / "versions.yaml" for root in (project_root(), shipped_project())]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise KitError(
            "{places} is missing. Take the file from the project, or `telechat-kit init` another.",
            places=places[0],
        )
    return path


@cache
def _read(path: Path) -> dict[str, Any]:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise KitError(
            "{path} is not valid YAML: {problem}. Take the file from the project.",
            path=path,
            problem=yaml_fault(error),
        ) from error


def release_key(version: str) -> tuple[tuple[int, int], ...]:
    """Sort key of Ascend's version numbers: 24.1.RC3 < 24.1.0 < 24.1.0.1, in any case of letters."""
    parts = []
    for part in re.split(r"[.\-]", version.lower()):
        letters = part[:1].isalpha()
        digits = re.search(r"\d+", part)
        parts.append((0 if letters else 1, int(digits[0]) if digits else 0))
    return tuple(parts)


def allows(pattern: str, version: str) -> bool:
    """Whether `version` is of the series `pattern`: 25.2.X holds 25.2.0 and 25.2.RC1, 26.0.RC1 itself and its patches."""
    wanted = release_key(pattern.removesuffix(".X"))
    return release_key(version)[: len(wanted)] == wanted


def base_version(version: str) -> str:
    """The release that a package version is built on: 2.7.1.post2 and 2.7.1+cpu -> 2.7.1."""
    try:
        return Version(version).base_version
    except InvalidVersion:
        return version


def _same_base(one: str, other: str) -> bool:
    return base_version(one) == base_version(other)


def listed(words: Sequence[str], last: str = "or") -> str:
    """ "a, b or c"."""
    if len(words) < 2:
        return "".join(words)
    names = ", ".join(words[:-1])
    if last == "or":
        return Message("{names} or {last}", names=names, last=words[-1])
    return Message("{names} and {last}", names=names, last=words[-1])

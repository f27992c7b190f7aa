"""Packages that the kit works with: which version is there, which is needed, how to get it."""

import importlib.metadata

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from telechat_kit.errors import KitError

_KIT = "telechat-kit"


def require_version(package: str, extra: str = "") -> str:
    """The installed version of a package that the kit depends on, by itself or with an extra of its own.

    Raises:
        KitError: it is missing, or of a version that the kit cannot use; the message has the command that installs it.
    """
    needed = needed_versions(package, extra)
    wanted = f"{_KIT}[{extra}]" if extra else f"{package}{needed}"
    try:
        found = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError as error:
        raise KitError(
            '{package} is not installed. Install it with: pip install "{wanted}"',
            package=package,
            wanted=wanted,
        ) from error
    if not needed.contains(found, prereleases=True):
        raise KitError(
            '{package} {found} is installed, and the kit needs {needed}. Install it with: pip install --upgrade "{wanted}"',
            package=package,
            found=found,
            needed=needed,
            wanted=f"{package}{needed}",
        )
    return found


def needed_versions(package: str, extra: str = "") -> SpecifierSet:
    """What the kit's own metadata say of `package`; any version where they do not name it, or in a bare checkout."""
    try:
        lines = importlib.metadata.requires(_KIT) or []
    except importlib.metadata.PackageNotFoundError:
        lines = []
    for requirement in map(Requirement, lines):
        applies = requirement.marker is None or requirement.marker.evaluate({"extra": extra})
        if applies and canonicalize_name(requirement.name) == canonicalize_name(package):
            return requirement.specifier
    return SpecifierSet()

"""Which CANN this process was started with: some operators are safe to call from a certain version on only."""

import os
import platform
import re
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path


@cache
def cann_version() -> tuple[int, int] | None:
    """First two numbers of the version of the CANN toolkit that this process was started with; None: not known."""
    for variable in ("ASCEND_HOME_PATH", "ASCEND_TOOLKIT_HOME"):
        if home := os.environ.get(variable):
            told = toolkit_version(home.rstrip("/"), platform.machine(), _values)
            if numbers := re.match(r"(\d+)\.(\d+)", told or ""):
                return int(numbers[1]), int(numbers[2])
    return None


def toolkit_version(home: str, arch: str, values: Callable[[str], Mapping[str, str]]) -> str | None:
    """Version of the CANN toolkit in `home` for processors of `arch`, from its version files, which `values` reads."""
    version = values(f"{home}/{arch}-linux/ascend_toolkit_install.info").get("version")
    if version:
        return version
    running = values(f"{home}/version.cfg").get("toolkit_running_version", "")
    return running.strip("[]").rpartition(":")[2] or None


def _values(path: str) -> dict[str, str]:
    """`key=value` lines of a file; none if it cannot be read."""
    try:
        lines = Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return {}
    return {key.strip(): value.strip() for key, _, value in (line.partition("=") for line in lines) if value}

"""Compiles `kernels.c` for this very processor and keeps the library in the user's cache folder."""

import atexit
import contextlib
import hashlib
import os
import platform
import shutil
import subprocess
from pathlib import Path

from telechat_kit.errors import KitError
from telechat_kit.files import atomic_path
from telechat_kit.messages import Message, marked
from telechat_kit.temporary import temporary_folder

SOURCE = Path(__file__).with_name("kernels.c")
#: No contraction of a * b + c: every step rounds as torch's own operators do
FLAGS = ("-O3", "-std=gnu11", "-ffp-contract=off", "-fopenmp", "-fPIC", "-shared", "-Wno-psabi")


class BuildError(Exception):
    """The library cannot be built here; the message says why in a few words."""


def built_library() -> Path:
    """Path of the compiled library, built now unless the same source, compiler and processor have met before.

    Raises:
        BuildError: there is no compiler, or it refuses the source.
    """
    compiler = os.environ.get("CC") or next(filter(shutil.which, ("cc", "gcc", "clang")), None)
    if compiler is None:
        raise BuildError(marked("no C compiler"))
    target = _cache_folder() / f"{_key(compiler)}.so"
    if not target.is_file():
        _compile(compiler, target)
    return target


def _compile(compiler: str, target: Path) -> None:
    """Written beside `target` first: several processes may build at once."""
    try:
        with atomic_path(target) as path:
            command = [*compiler.split(), *FLAGS, *native_flags(), str(SOURCE), "-o", str(path), "-lm"]
            run = subprocess.run(command, capture_output=True, check=False, text=True, timeout=600)
            if run.returncode:
                raise BuildError(
                    Message(
                        "{compiler} fails: {stderr}",
                        compiler=compiler,
                        stderr=run.stderr.strip().splitlines()[:1],
                    )
                )
    except (KitError, subprocess.TimeoutExpired) as error:
        raise BuildError(Message("{compiler} cannot be run", compiler=compiler)) from error


def native_flags() -> tuple[str, ...]:
    """What makes the compiler use all of this processor."""
    return ("-march=native",) if platform.machine() in ("x86_64", "AMD64") else ("-mcpu=native",)


def _key(compiler: str) -> str:
    """Hash of all that the library depends on; a home folder may be shared by unlike machines."""
    digest = hashlib.sha256(SOURCE.read_bytes())
    flags = " ".join((*FLAGS, *native_flags()))
    for part in (compiler, _version(compiler), flags, platform.machine(), _processor()):
        digest.update(part.encode() + b"\0")
    return digest.hexdigest()[:32]


def _version(compiler: str) -> str:
    try:
        return subprocess.run(
            [*compiler.split(), "--version"], capture_output=True, check=False, text=True, timeout=30
        ).stdout
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(Message("{compiler} cannot be run", compiler=compiler)) from error


def _processor() -> str:
    """Model and instruction sets as Linux tells them; the bare name elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    wanted = ("model name", "flags", "Features", "CPU part")
    return "\n".join(sorted({line for line in lines if line.startswith(wanted)}))


def _cache_folder() -> Path:
    """The user's cache; where it cannot be written, a folder of this process."""
    try:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folder = Path(base) / "telechat-kit" / "kernels"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except (OSError, RuntimeError):  # a user without a home has no cache
        return _folder_of_this_process()
    return folder if os.access(folder, os.W_OK) else _folder_of_this_process()


def _folder_of_this_process() -> Path:
    until_exit = contextlib.ExitStack()
    atexit.register(until_exit.close)
    return until_exit.enter_context(temporary_folder())

"""The kernel of a step: this interpreter, reached through files that only this user can open.

What `python3` means to Jupyter is decided by JUPYTER_PATH, module systems and earlier installations; a run means the
Python that it was started with.
"""

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ipykernel.kernelspec import make_ipkernel_cmd
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from traitlets import default
from traitlets.config import Config

from telechat_kit.temporary import PREFIX, temporary_folder

#: What the system allows for the path of a socket is 104 to 108 bytes; `/kernel-1` and the like go behind the folder
MOST_SOCKET_BYTES = 90
_SHORT_FOLDER = Path("/tmp")


class _OnlyThisInterpreter(KernelSpecManager):
    """Gives one kernel under every name."""

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:  # noqa: ARG002  (Jupyter's signature)
        return KernelSpec(
            argv=make_ipkernel_cmd(), display_name=f"Python ({sys.executable})", language="python"
        )


class ThisInterpreter(AsyncKernelManager):
    """Starts the kernel with `sys.executable`, whatever kernels are installed."""

    @default("kernel_spec_manager")
    def _kernel_spec_manager_default(self) -> KernelSpecManager:
        return _OnlyThisInterpreter()


@contextlib.contextmanager
def kernel_options() -> Iterator[dict[str, Any]]:
    """What `papermill.execute_notebook` is told of the kernel: which one, how it is reached and ended.

    It talks with its client through sockets of this user, not through open TCP ports, in a folder of their own: by
    default they lie in the working directory, where two runs at a time choose the same names. Where the system has no
    room for their names, TCP on this machine it is. The file that tells the kernel of them lies there too: what a
    killed run leaves goes with that folder. A kernel that has done its work is ended at once: asked to end by
    itself, it can take seconds and log an interrupt that was none.
    """
    config = Config({"NotebookClient": {"shutdown_kernel": "immediate"}})
    options = {"kernel_manager_class": ThisInterpreter, "kernel_name": "python3", "config": config}
    if sys.platform == "win32":
        yield options
        return
    with temporary_folder(_room_for_sockets()) as folder:
        config.KernelManager.connection_file = f"{folder}/connection.json"
        if _fits(folder):
            config.KernelManager.transport = "ipc"
            config.KernelManager.ip = f"{folder}/kernel"
        yield options


def _room_for_sockets() -> Path | None:
    """A folder with a short enough name; None for the usual one, TMPDIR."""
    usual = Path(tempfile.gettempdir())
    if _fits(usual / f"{PREFIX}12345678") or not os.access(_SHORT_FOLDER, os.W_OK | os.X_OK):
        return None
    return _SHORT_FOLDER


def _fits(folder: Path) -> bool:
    return len(os.fsencode(folder)) <= MOST_SOCKET_BYTES

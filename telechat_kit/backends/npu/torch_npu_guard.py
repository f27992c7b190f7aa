"""torch_npu, or the reason why it cannot be imported: an installation that is broken must not break the kit.

torch imports an installed torch_npu by itself, and transformers does so again; both stop with its error. So the kit
imports it first, by itself, and hides one that fails.
"""

import importlib.util
import os
import sys

#: Why torch_npu cannot be imported here; empty if it was, or if it is not installed
failure = ""
cause: Exception | None = None


def guard_torch_npu() -> None:
    """Import an installed torch_npu before torch and transformers would; note a failure and hide the package."""
    global failure, cause  # noqa: PLW0603  (one process has one torch_npu)
    os.environ.setdefault("TORCH_DEVICE_BACKEND_AUTOLOAD", "0")
    if sys.modules.get("torch_npu") or importlib.util.find_spec("torch_npu") is None:
        return
    try:
        importlib.import_module("torch_npu")
    except Exception as error:  # whatever it raises, the CPU can still be used
        cause = error
        failure = f"{type(error).__name__}: {error}"
        # an entry of None makes find_spec say "not installed", which is what transformers asks
        sys.modules["torch_npu"] = None  # type: ignore[assignment]

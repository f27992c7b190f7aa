"""telechat-kit: TeleChat W8A8 inference, measured and written down.

The verbs and what they take are here by name. Each is imported when it is first used (PEP 562): `import telechat_kit`
loads neither torch nor transformers, so the command line starts at once.
"""

import importlib
import os
import sys
import warnings
from typing import TYPE_CHECKING, Any

from wrapt import when_imported

if TYPE_CHECKING:
    from telechat_kit.inference.loading import load_model as load_model
    from telechat_kit.model import load_tokenizer as load_tokenizer

# torch would import an installed torch_npu by itself and fail as a whole if CANN is missing
os.environ.setdefault("TORCH_DEVICE_BACKEND_AUTOLOAD", "0")
# transformers asks tqdm for notebook widgets; the kit's bars are text, which also reads well in a log and a page
warnings.filterwarnings("ignore", message="IProgress not found")

__version__ = "0.1.0"

#: Where each name of the face is defined
_HOMES = {
    "load_model": "telechat_kit.inference.loading",
    "load_tokenizer": "telechat_kit.model",
}

__all__ = sorted(_HOMES)  # noqa: PLE0605  (a list of names, sorted)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = found  # the next use does not come here
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})


@when_imported("transformers")
def _register(_: object) -> None:
    """Make transformers' Auto classes load TeleChat as soon as there is a transformers, without remote code."""
    if (
        "telechat_kit.model" not in sys.modules
    ):  # else it is being imported just now, and registers at its end
        importlib.import_module("telechat_kit.model")

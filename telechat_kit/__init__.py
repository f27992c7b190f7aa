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
    from telechat_kit.comparison.alignment import check_alignment as check_alignment
    from telechat_kit.comparison.side_by_side import compare as compare
    from telechat_kit.environment.checkpoint_checks import make_embedded as make_embedded
    from telechat_kit.environment.operator_results import use_tested_operators as use_tested_operators
    from telechat_kit.environment.operator_tests import check_operators as check_operators
    from telechat_kit.environment.setup import check as check
    from telechat_kit.environment.setup import check_setup as check_setup
    from telechat_kit.inference.chat import generate as generate
    from telechat_kit.inference.loading import load_model as load_model
    from telechat_kit.inference.memory import fits as fits
    from telechat_kit.model import load_tokenizer as load_tokenizer
    from telechat_kit.performance.cases import Grid as Grid
    from telechat_kit.performance.measurement import measure_performance as measure_performance
    from telechat_kit.precision.answers import write_answers as write_answers
    from telechat_kit.precision.evaluation import Evaluation as Evaluation
    from telechat_kit.precision.evaluation import PrecisionMeasurement as PrecisionMeasurement
    from telechat_kit.precision.evaluation import measure_precision as measure_precision
    from telechat_kit.quantization.formats.conversion import export as export
    from telechat_kit.quantization.pipeline import quantize as quantize
    from telechat_kit.quantization.request import Calibration as Calibration
    from telechat_kit.quantization.request import Recipe as Recipe
    from telechat_kit.records import write_record as write_record
    from telechat_kit.reports.page import write_report as write_report
    from telechat_kit.runs.verification import verify as verify

# torch would import an installed torch_npu by itself and fail as a whole if CANN is missing
os.environ.setdefault("TORCH_DEVICE_BACKEND_AUTOLOAD", "0")
# Threads that wait for others spin for about 0.1 ms, then sleep. libgomp's own 300,000 turns take 10 ms and more, in
# which a busy machine's other thread cannot run: beside two busy loops on two cores, decode was 9 to 30 times as slow.
# Read when torch is imported, of which this package is not sure to be ahead; an x86 turn is a pause of 20 to 50 ns.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1500" if os.uname().machine == "x86_64" else "50000")
    os.environ.setdefault("KMP_BLOCKTIME", "1")  # Intel's library, in ms
# transformers asks tqdm for notebook widgets; the kit's bars are text, which also reads well in a log and a page
warnings.filterwarnings("ignore", message="IProgress not found")

__version__ = "0.2.0"

#: Where each name of the face is defined
_HOMES = {
    "Calibration": "telechat_kit.quantization.request",
    "Evaluation": "telechat_kit.precision.evaluation",
    "Grid": "telechat_kit.performance.cases",
    "Recipe": "telechat_kit.quantization.request",
    "check": "telechat_kit.environment.setup",
    "check_alignment": "telechat_kit.comparison.alignment",
    "check_operators": "telechat_kit.environment.operator_tests",
    "check_setup": "telechat_kit.environment.setup",
    "compare": "telechat_kit.comparison.side_by_side",
    "export": "telechat_kit.quantization.formats.conversion",
    "fits": "telechat_kit.inference.memory",
    "generate": "telechat_kit.inference.chat",
    "load_model": "telechat_kit.inference.loading",
    "load_tokenizer": "telechat_kit.model",
    "make_embedded": "telechat_kit.environment.checkpoint_checks",
    "measure_performance": "telechat_kit.performance.measurement",
    "PrecisionMeasurement": "telechat_kit.precision.evaluation",
    "measure_precision": "telechat_kit.precision.evaluation",
    "quantize": "telechat_kit.quantization.pipeline",
    "use_tested_operators": "telechat_kit.environment.operator_results",
    "verify": "telechat_kit.runs.verification",
    "write_answers": "telechat_kit.precision.answers",
    "write_record": "telechat_kit.records",
    "write_report": "telechat_kit.reports.page",
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

"""Whether the records of a run folder belong together: one of another profile may have stayed behind."""

from telechat_kit.environment import SetupRecord
from telechat_kit.messages import gettext as _
from telechat_kit.messages import marked
from telechat_kit.performance.measurement import PerformanceRecord
from telechat_kit.precision import PrecisionRecord
from telechat_kit.quantization.pipeline import QuantizeRecord

TOGETHER = marked("All records of this folder are of the same weights and the same machine.")

_OTHER_FLOAT = marked("{record} is of other float weights than {other}: run {step} again.")
_OTHER_W8A8 = marked("{record} is of other W8A8 weights than {other}: run {step} again.")
_OTHER_MACHINE = marked("{record} is of another machine or device than {other}: run {step} again.")


def stale_records(
    setup: SetupRecord, quantize: QuantizeRecord, precision: PrecisionRecord, performance: PerformanceRecord
) -> list[str]:
    """What does not fit, a sentence each with the notebook to run again; empty if all records belong together."""
    found = []
    if quantize.recipe is not None and quantize.recipe.source_weights != setup.conditions.hashes.get(
        "float_weights"
    ):
        found.append(_sentence("quantize.json", _OTHER_FLOAT, "setup.json", "02_quantize"))
    made = quantize.conditions.hashes.get("w8a8_weights")
    for record, name, step in (
        (precision, "precision.json", "03_precision"),
        (performance, "performance.json", "04_performance"),
    ):
        used = record.conditions.hashes
        if used.get("w8a8_weights") != made:
            found.append(_sentence(name, _OTHER_W8A8, "quantize.json", step))
        same_folder = record.model_path == setup.checkpoint_path
        if same_folder and used.get("float_weights") != setup.conditions.hashes.get("float_weights"):
            found.append(_sentence(name, _OTHER_FLOAT, "setup.json", step))
        if record.conditions.device_name != setup.conditions.device_name:
            found.append(_sentence(name, _OTHER_MACHINE, "setup.json", step))
    return found


def _sentence(name: str, message: str, other: str, step: str) -> str:
    return _(message).format(record=name, other=other, step=step)

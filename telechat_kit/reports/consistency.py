"""Whether the records of a run folder belong together: one of another profile may have stayed behind."""

from telechat_kit.environment import SetupRecord
from telechat_kit.performance.measurement import PerformanceRecord
from telechat_kit.precision import PrecisionRecord
from telechat_kit.quantization.pipeline import QuantizeRecord

TOGETHER = "All records of this folder are of the same weights and the same machine."


def stale_records(
    setup: SetupRecord, quantize: QuantizeRecord, precision: PrecisionRecord, performance: PerformanceRecord
) -> list[str]:
    """What does not fit, a sentence each with the notebook to run again; empty if all records belong together."""
    found = []
    if quantize.recipe is not None and quantize.recipe.source_weights != setup.conditions.hashes.get(
        "float_weights"
    ):
        found.append(_sentence("quantize.json", "other float weights", "setup.json", "02_quantize"))
    made = quantize.conditions.hashes.get("w8a8_weights")
    for record, name, step in (
        (precision, "precision.json", "03_precision"),
        (performance, "performance.json", "04_performance"),
    ):
        used = record.conditions.hashes
        if used.get("w8a8_weights") != made:
            found.append(_sentence(name, "other W8A8 weights", "quantize.json", step))
        same_folder = record.model_path == setup.checkpoint_path
        if same_folder and used.get("float_weights") != setup.conditions.hashes.get("float_weights"):
            found.append(_sentence(name, "other float weights", "setup.json", step))
        if record.conditions.device_name != setup.conditions.device_name:
            found.append(_sentence(name, "another machine or device", "setup.json", step))
    return found


def _sentence(name: str, what: str, other: str, step: str) -> str:
    return f"{name} is of {what} than {other}: run {step} again."

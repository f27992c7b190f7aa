"""The conditions of a run as plain text by name: what two runs must share before their figures mean the same."""

from collections.abc import Iterator
from typing import Any

from telechat_kit.comparison.run_data import RunData
from telechat_kit.messages import Message, marked
from telechat_kit.performance.measurement import PerformanceRecord
from telechat_kit.precision import PrecisionRecord
from telechat_kit.provenance import Conditions
from telechat_kit.quantization.recipe import AppliedRecipe


def run_conditions(run: RunData) -> dict[str, str]:
    """Every condition that the records tell, in the order of a reader's interest."""
    found: dict[str, str] = {}
    records = (run.performance, run.precision, run.quantize, run.setup)
    if run.setup is not None:
        found[marked("model")] = str(run.setup.origin.get("name") or run.setup.checkpoint_path)
    for record in reversed([record for record in records if record is not None]):
        found |= dict(_shared(record.conditions))
    if run.quantize is not None:
        found |= (
            dict(_recipe(run.quantize.recipe))
            if run.quantize.recipe
            else {"level": marked("weights as given")}
        )
    if run.precision is not None:
        found |= dict(_text(run.precision))
    if run.performance is not None:
        found |= dict(_timing(run.performance))
    return found | _state(run.state)


def _shared(used: Conditions) -> Iterator[tuple[str, str]]:
    yield marked("device"), f"{used.device}: {used.device_name}"
    yield marked("threads"), str(used.threads)
    yield marked("memory"), f"{used.memory_bytes / 2**30:.1f} GiB"
    yield marked("system"), used.system
    for name, value in used.hashes.items():
        yield Message("SHA-256, {what}", what=name.replace("_", " ")), value[:16]
    for name, version in used.versions.items():
        yield Message("version of {name}", name=name), version
    yield marked("code"), used.code


def _recipe(used: AppliedRecipe) -> Iterator[tuple[str, str]]:
    yield marked("level"), used.level
    yield marked("outlier suppression"), used.anti_outlier
    yield marked("activation range"), str(used.act_method)
    yield (
        marked("calibration"),
        Message(
            "{calibration_source}, {count} samples",
            calibration_source=used.calibration_source,
            count=len(used.calibration_sample_tokens),
        ),
    )
    yield marked("SHA-256, calibration"), used.calibration_sha256[:16]
    yield marked("calibration seed"), str(used.seed)


def _text(record: PrecisionRecord) -> Iterator[tuple[str, str]]:
    tokens = sum(stop - start for start, stop in record.blocks)
    yield (
        marked("evaluation text"),
        Message(
            "{text_source}, {count} sequences, {tokens} tokens",
            text_source=record.text_source,
            count=len(record.blocks),
            tokens=tokens,
        ),
    )
    yield marked("SHA-256, evaluation text"), record.text_sha256[:16]
    yield marked("evaluation seed"), str(record.seed)
    yield (
        marked("answers"),
        Message(
            "at most {max_new_tokens} tokens, repetition penalty {repetition_penalty}",
            max_new_tokens=record.max_new_tokens,
            repetition_penalty=record.repetition_penalty,
        ),
    )


def _timing(record: PerformanceRecord) -> Iterator[tuple[str, str]]:
    cases = sorted({(case.input_tokens, case.output_tokens) for case in record.cases})
    yield (
        marked("batch"),
        ", ".join(map(str, sorted({case.batch for case in record.cases} or {record.batch}))),
    )
    yield marked("cases"), ", ".join(f"{i}/{o}" for i, o in cases)
    yield marked("keys and values"), record.cache_dtype
    yield marked("repeats"), str(min((case.repeats for case in record.cases), default=0))


def _state(state: dict[str, Any]) -> dict[str, str]:
    if not state:
        return {}
    edited = ", ".join(state.get("edited_notebooks") or []) or marked("none")
    return {
        marked("runs at the same time"): str(state.get("runs_at_once", 1)),
        marked("notebooks edited by hand"): edited,
    }

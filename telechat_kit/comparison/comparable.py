"""What compares with what: same model, same text, same cases. A figure that does not is withheld, with the reason."""

from collections.abc import Callable
from math import isfinite

from telechat_kit.comparison.run_data import RunData
from telechat_kit.messages import Message, marked
from telechat_kit.precision import KindLoss
from telechat_kit.provenance import Conditions
from telechat_kit.statistics import Estimate

#: Figures by the start of their names -> the least and the most that they can be
_BOUNDS = {
    "kl_mean": (0.0, float("inf")),
    "top1_agreement": (0.0, 1.0),
    "answer_similarity": (0.0, 1.0),
    "equal_answers": (0.0, 1.0),
}


def impossible(name: str, estimate: Estimate) -> str:
    """Why a figure of that name cannot be true, in words; empty if it can: NaN, a negative divergence or speed."""
    value = estimate.value
    if not all(isfinite(number) for number in (value, estimate.low, estimate.high)):
        return marked("it is no number")
    least, most = _BOUNDS.get(name.split("[", maxsplit=1)[0], (None, float("inf")))
    if least is None and not value > 0:
        return Message("it is {value:g}, which nothing measures", value=value)
    if least is not None and not least <= value <= most:
        return Message("it is {value:g}, outside {least:g} to {most:g}", value=value, least=least, most=most)
    return ""


def why_not(name: str, first: RunData, second: RunData) -> str:
    """Why the figure `name` of two runs does not compare, in a few words; empty if it does."""
    return _other_model(first, second) or _reason(name)(name, first, second)


def _reason(name: str) -> Callable[[str, RunData, RunData], str]:
    kind = name.split("[", maxsplit=1)[0]
    if kind in ("kl_mean", "top1_agreement") or kind.startswith("perplexity"):
        return _other_text
    if kind in ("answer_similarity", "equal_answers"):
        return _other_questions
    if kind == "peak_memory_bytes":
        return _other_cases
    speeds = kind.startswith(("tokens_per_second", "speed_over_float")) and "[" not in name
    return _no_common_case if speeds else _nothing


def _nothing(*_: object) -> str:
    return ""


def _other_model(first: RunData, second: RunData) -> str:
    a, b = float_weights(first), float_weights(second)
    if a and b:
        return "" if a == b else marked("other model")
    return "" if a == b else marked("model not told")


def float_weights(run: RunData) -> str:
    """Hash of the float weights that a run is about; empty where no record tells."""
    for record in (run.precision, run.performance, run.setup, run.quantize):
        if record is not None and (found := record.conditions.hashes.get("float_weights")):
            return found
    return ""


def same_float(first: Conditions, second: Conditions) -> bool:
    """Whether all that decides float's speed was the same in two runs, but for the state of the machine."""

    def decides(used: Conditions) -> tuple[object, ...]:
        return (
            used.device, used.device_name, used.threads, used.system, used.code, used.versions,
            used.hashes.get("float_weights"),
        )  # fmt: skip

    return decides(first) == decides(second)


def _other_text(name: str, first: RunData, second: RunData) -> str:
    a, b = (text_of(name, run) for run in (first, second))
    return "" if a is None or b is None or a[0] == b[0] else marked("other text")


def text_of(name: str, run: RunData) -> tuple[str, list[tuple[int, int]], list[list[float]]] | None:
    """Hash of the text that a figure rests on, the ranges read of it, and the means of each; None: not read."""
    if run.precision is None:
        return None
    if "[" not in name:
        used = run.precision
        return used.text_sha256, used.blocks, used.divergence.by_sequence
    kind = kind_of(name, run)
    return None if kind is None else (kind.sha256, kind.blocks, kind.figures.by_sequence)


def kind_of(name: str, run: RunData) -> KindLoss | None:
    """The kind of text that `kl_mean[zh]` speaks of."""
    wanted = name.partition("[")[2].removesuffix("]")
    kinds = run.precision.kinds if run.precision else []
    return next((kind for kind in kinds if kind.kind == wanted), None)


def _other_questions(_: str, first: RunData, second: RunData) -> str:
    a, b = first.precision, second.precision
    if a is None or b is None:
        return ""
    asked = [
        ([answer.input for answer in record.answers], record.max_new_tokens, record.repetition_penalty)
        for record in (a, b)
    ]
    return "" if asked[0] == asked[1] else marked("other questions")


def _other_cases(_: str, first: RunData, second: RunData) -> str:
    a, b = (_cases(run) for run in (first, second))
    return "" if a == b else marked("other cases")


def _no_common_case(name: str, first: RunData, second: RunData) -> str:
    precision = "float" if name.endswith("float") else "w8a8"
    a, b = (
        {case for case in _cases(run) if case[0] == precision and case[3] == 1} for run in (first, second)
    )
    return "" if not a or not b or a & b else marked("no case in common")


def _cases(run: RunData) -> set[tuple[str, int, int, int]]:
    cases = run.performance.cases if run.performance else []
    return {(case.precision, case.input_tokens, case.output_tokens, case.batch) for case in cases}

"""One row of the set-up table, and what the rows together mean."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from telechat_kit.messages import marked

#: "missing": not there, "wrong": there but unfit; both must be put right. "warning": works, perhaps not as hoped.
Verdict = Literal["ok", "warning", "missing", "wrong"]


#: The verdicts, for the catalog
_WORDS = (marked("ok"), marked("warning"), marked("missing"), marked("wrong"))


@dataclass(frozen=True)
class Check:
    """One row: what was found, what is required, and what to do (empty where nothing is to be done)."""

    component: str
    found: str
    required: str
    verdict: Verdict
    advice: str = ""


def to_do(checks: Iterable[Check]) -> list[Check]:
    """The rows that must be put right before a run."""
    return [check for check in checks if check.verdict in ("missing", "wrong")]

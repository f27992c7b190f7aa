"""A verification as tables and a sentence."""

from collections import Counter

import pandas as pd

from telechat_kit.comparison.findings import CHANGED, LOST, NOTE, SAME, UNCHECKED
from telechat_kit.reports.comparison_page import figure_text
from telechat_kit.runs.signing import PART as SIGNATURE
from telechat_kit.runs.verification import NOTHING, Verification


def parts_frame(found: Verification) -> pd.DataFrame:
    """How many things of each part were compared, and what came of it."""
    counts = Counter((finding.part, finding.verdict) for finding in found.findings)
    parts = list(dict.fromkeys(finding.part for finding in found.findings))
    rows = [
        (
            part,
            counts[part, SAME],
            counts[part, CHANGED],
            counts[part, NOTE],
            counts[part, LOST] + counts[part, UNCHECKED],
        )
        for part in parts
    ]
    return pd.DataFrame(rows, columns=["checked", SAME, "wrong", "other version", UNCHECKED])


def wrong_frame(found: Verification) -> pd.DataFrame:
    """What is otherwise than recorded."""
    rows = [(one.part, one.name, one.recorded, one.found) for one in found.wrong]
    return pd.DataFrame(rows, columns=["checked", "what", "recorded", "found"])


def unchecked_lines(found: Verification) -> list[str]:
    """What was not checked, and why: a line each."""
    return [f"{one.name}: {one.found}" for one in found.unchecked]


def signed_lines(found: Verification) -> list[str]:
    """Who signed, and with which key: a line each."""
    good = [one for one in found.findings if one.part == SIGNATURE and one.verdict == SAME]
    return [f"{one.name} ({one.found})" for one in good]


def verdicts_frame(found: Verification) -> pd.DataFrame:
    """Every figure, as recorded and as it came out again."""
    rows = [
        (v.recorded.label, figure_text(v.recorded), figure_text(v.repeated), v.verdict)
        for v in found.verdicts
    ]
    return pd.DataFrame(rows, columns=["figure", "recorded", "repeated", "verdict"])


def summary(found: Verification) -> str:
    """How many of what, in a line."""
    counts = Counter(finding.verdict for finding in found.findings)
    of_record = " of its record" if found.alone and found.outcome == NOTHING else ""
    parts = [
        f"{counts[SAME]} checks{of_record} passed, {counts[CHANGED]} failed, {len(found.unchecked)} could not be made"
    ]
    repeated = Counter((v.verdict, v.recorded.timed) for v in found.verdicts)
    kinds = {False: "figures", True: "times and speeds"}
    return "; ".join(
        parts + [f"{count} {kinds[timed]} {verdict}" for (verdict, timed), count in sorted(repeated.items())]
    )

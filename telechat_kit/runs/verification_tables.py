"""A verification as tables and a sentence."""

from collections import Counter

import pandas as pd

from telechat_kit.reports.comparison_page import figure_text
from telechat_kit.runs.verification import SAME, Verification


def origins_frame(found: Verification) -> pd.DataFrame:
    """What the run was made from, as recorded and as it is here."""
    rows = [(origin.name, origin.recorded, origin.found, origin.verdict) for origin in found.origins]
    return pd.DataFrame(rows, columns=["made from", "recorded", "here", "verdict"])


def verdicts_frame(found: Verification) -> pd.DataFrame:
    """Every figure, as recorded and as it came out again."""
    rows = [
        (v.recorded.label, figure_text(v.recorded), figure_text(v.repeated), v.verdict)
        for v in found.verdicts
    ]
    return pd.DataFrame(rows, columns=["figure", "recorded", "repeated", "verdict"])


def summary(found: Verification) -> str:
    """How many of what, in a line."""
    same = sum(origin.verdict == SAME for origin in found.origins)
    parts = [f"{same} of {len(found.origins)} hashes are the same"]
    counts = Counter((v.verdict, v.recorded.timed) for v in found.verdicts)
    kinds = {False: "figures", True: "times and speeds"}
    return "; ".join(
        parts + [f"{count} {kinds[timed]} {verdict}" for (verdict, timed), count in sorted(counts.items())]
    )

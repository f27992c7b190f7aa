"""A verification as tables and a sentence."""

from collections import Counter

import pandas as pd

from telechat_kit.comparison.findings import CHANGED, LOST, NOTE, SAME, UNCHECKED
from telechat_kit.messages import gettext as _
from telechat_kit.messages import shown
from telechat_kit.reports.comparison_page import figure_text
from telechat_kit.runs.signing import PART as SIGNATURE
from telechat_kit.runs.verification import NOTHING, Verification


def parts_frame(found: Verification) -> pd.DataFrame:
    """How many things of each part were compared, and what came of it."""
    counts = Counter((finding.part, finding.verdict) for finding in found.findings)
    parts = list(dict.fromkeys(finding.part for finding in found.findings))
    rows = [
        (
            _(part),
            counts[part, SAME],
            counts[part, CHANGED],
            counts[part, NOTE],
            counts[part, LOST] + counts[part, UNCHECKED],
        )
        for part in parts
    ]
    return pd.DataFrame(rows, columns=[_("checked"), _(SAME), _("wrong"), _("other version"), _(UNCHECKED)])


def wrong_frame(found: Verification) -> pd.DataFrame:
    """What is otherwise than recorded."""
    rows = [tuple(map(shown, (one.part, one.name, one.recorded, one.found))) for one in found.wrong]
    return pd.DataFrame(rows, columns=[_("checked"), _("what"), _("recorded"), _("found")])


def unchecked_lines(found: Verification) -> list[str]:
    """What was not checked, and why: a line each."""
    return [f"{shown(one.name)}: {shown(one.found)}" for one in found.unchecked]


def signed_lines(found: Verification) -> list[str]:
    """Who signed, and with which key: a line each."""
    good = [one for one in found.findings if one.part == SIGNATURE and one.verdict == SAME]
    return [f"{shown(one.name)} ({shown(one.found)})" for one in good]


def verdicts_frame(found: Verification) -> pd.DataFrame:
    """Every figure, as recorded and as it came out again."""
    rows = [
        (shown(v.recorded.label), figure_text(v.recorded), figure_text(v.repeated), _(v.verdict))
        for v in found.verdicts
    ]
    return pd.DataFrame(rows, columns=[_("figure"), _("recorded"), _("repeated"), _("verdict")])


def summary(found: Verification) -> str:
    """How many of what, in a line."""
    counts = Counter(finding.verdict for finding in found.findings)
    told = _("{passed} checks passed, {failed} failed, {open} could not be made")
    if found.alone and found.outcome == NOTHING:
        told = _("{passed} checks of its record passed, {failed} failed, {open} could not be made")
    parts = [told.format(passed=counts[SAME], failed=counts[CHANGED], open=len(found.unchecked))]
    repeated = Counter((v.verdict, v.recorded.timed) for v in found.verdicts)
    kinds = {False: _("{count} figures {verdict}"), True: _("{count} times and speeds {verdict}")}
    for (verdict, timed), count in sorted(repeated.items()):
        parts.append(kinds[timed].format(count=count, verdict=_(verdict)))
    return "; ".join(parts)

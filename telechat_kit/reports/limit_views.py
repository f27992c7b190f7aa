"""May this be shipped: the limits of a profile as a table of lights."""

from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from telechat_kit.comparison.limits import FAIL, LOOK, PASS, Light, answer, judge_limits
from telechat_kit.comparison.run_data import read_run_data
from telechat_kit.messages import gettext as _
from telechat_kit.messages import marked, shown
from telechat_kit.reports.html import plain_table
from telechat_kit.reports.precision_tables import Page

HOW_TO_READ = marked(
    "Pass: the whole interval keeps the limit. Fail: the whole interval is beyond it. Look: the interval holds the limit, "
    "or there is no figure to hold against it; measure more, or decide by other means. A limit on every text is judged on "
    "the one that keeps it least."
)
#: Told apart by form as well as by color
_MARKS = {PASS: "✔", LOOK: "?", FAIL: "✘"}
_HEADINGS = (marked("limit"), marked("state"), marked("figure"), marked("where"))


def limits(run_folder: str | Path, limits: Sequence[str]) -> Page:
    """The answer, and a light for each limit.

    Raises:
        DataError: the run has no precision record.
        ParameterError: a text is no limit.
    """
    lights = judge_limits(read_run_data(run_folder), limits)
    said = Markup('<p class="verdict">{}</p>').format(answer(lights))
    return Page(said + table(lights) + Markup("<p>{}</p>").format(_(HOW_TO_READ)))


def table(lights: Sequence[Light]) -> Markup:
    """One row a limit; nothing where there is none."""
    if not lights:
        return Markup("")
    rows = [(light.asked, _shown(light), light.figure, shown(light.where)) for light in lights]
    return plain_table(map(_, _HEADINGS), rows)


def _shown(light: Light) -> Markup:
    mark = _MARKS[light.state]
    return Markup('<span class="light {}">{} <span>{}</span></span>').format(
        light.state, mark, _(light.state)
    )


def listed(lights: Sequence[Light]) -> str:
    """The answer and the lights for a terminal."""
    lines = [
        f"  {_MARKS[light.state]} {_(light.state)}  {light.asked}: {light.figure} ({shown(light.where)})"
        for light in lights
    ]
    return "\n".join([answer(lights), *lines])

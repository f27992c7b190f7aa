"""The table of `telechat-kit check --operators` as text: a line for each way, a column for each number of rows."""

from typing import TYPE_CHECKING

from telechat_kit.messages import gettext as _
from telechat_kit.messages import marked, shown
from telechat_kit.widths import padded, width

if TYPE_CHECKING:
    from telechat_kit.environment import OperatorTest, OperatorTests

#: What stands in place of the milliseconds
_WORDS = {"timed out": marked("silent"), "no memory": marked("memory"), "not called": "-", "not tried": "?"}
_WIDTH = 8


def operator_table(found: "OperatorTests") -> str:
    """Milliseconds of every way at every number of rows, what failed in words, and what follows from it."""
    from telechat_kit.environment import sentences

    rows = list(dict.fromkeys(test.rows for test in found.tests))
    by_way: dict[tuple[str, str], list[OperatorTest]] = {}
    for test in found.tests:
        by_way.setdefault((test.operation, test.way), []).append(test)
    first, second = (max([len(key[i]) for key in by_way] + [9]) for i in (0, 1))
    head = padded(_("operation"), first) + "  " + padded(_("way"), second)
    head += "".join(f"{count:>{_WIDTH},}" for count in rows)
    lines = [
        _(
            "On {device}, {dtype}, milliseconds for so many rows (positions, in attention); every result"
        ).format(device=found.device_name, dtype=found.dtype),
        _(
            "was compared with plain torch. In place of a time: why there is none (- is not called by this model)."
        ),
        "",
        head + "  " + _("largest error"),
    ]
    before = ""
    for (operation, way), tests in by_way.items():
        cells = "".join(_right(_cell(test)) for test in tests)
        name = operation if operation != before else ""
        lines.append(f"{name:{first}}  {way:{second}}{cells}  {_error(tests)}".rstrip())
        before = operation
    return "\n".join([*lines, "", *map(shown, sentences(found))])


def _cell(test: "OperatorTest") -> str:
    if test.milliseconds is None:
        return _(_WORDS.get(test.verdict, test.verdict))
    return f"{test.milliseconds:.0f}" if test.milliseconds >= 100 else f"{test.milliseconds:.2g}"


def _right(cell: str) -> str:
    return " " * (_WIDTH - width(cell)) + cell


def _error(tests: "list[OperatorTest]") -> str:
    errors = [test.error for test in tests if test.error is not None]
    return f"{max(errors):.1g}" if errors else ""

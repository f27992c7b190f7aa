"""Charts, tables and self-contained HTML pages from the records of a run.

The names are here for notebooks. Each is imported when it is first used: what runs notebooks and shows their pages needs
no charts, and with them no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

from telechat_kit.files import written as written

if TYPE_CHECKING:
    from telechat_kit.reports import charts as charts
    from telechat_kit.reports import limit_views as limit_views
    from telechat_kit.reports import performance_charts as performance_charts
    from telechat_kit.reports import performance_tables as performance_tables
    from telechat_kit.reports import precision_charts as precision_charts
    from telechat_kit.reports import precision_tables as precision_tables
    from telechat_kit.reports import quantization_charts as quantization_charts
    from telechat_kit.reports import quantization_tables as quantization_tables
    from telechat_kit.reports import recipe_tables as recipe_tables
    from telechat_kit.reports import setup_views as setup_views
    from telechat_kit.reports import tables as tables
    from telechat_kit.reports import thread_views as thread_views
    from telechat_kit.reports.page import consistency_note as consistency_note
    from telechat_kit.reports.page import read_run as read_run
    from telechat_kit.reports.page import verdict as verdict
    from telechat_kit.reports.page import write_report as write_report

_MODULES = (
    "charts",
    "limit_views",
    "performance_charts",
    "performance_tables",
    "precision_charts",
    "precision_tables",
    "quantization_charts",
    "quantization_tables",
    "recipe_tables",
    "setup_views",
    "tables",
    "thread_views",
)
#: Of `reports.page`
_NAMES = ("consistency_note", "read_run", "verdict", "write_report")

__all__ = ["written", *_MODULES, *_NAMES]  # noqa: PLE0604  (all are texts)


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name in _NAMES:
        return getattr(importlib.import_module(f"{__name__}.page"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)

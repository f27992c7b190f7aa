"""Charts, tables and self-contained HTML pages from the records of a run."""

from telechat_kit.files import written
from telechat_kit.reports import (
    charts,
    limit_views,
    performance_charts,
    performance_tables,
    precision_charts,
    precision_tables,
    quantization_charts,
    quantization_tables,
    setup_views,
    tables,
    thread_views,
)
from telechat_kit.reports.page import PAGES, consistency_note, read_run, verdict, write_report

__all__ = [
    "PAGES",
    "charts",
    "consistency_note",
    "limit_views",
    "performance_charts",
    "performance_tables",
    "precision_charts",
    "precision_tables",
    "quantization_charts",
    "quantization_tables",
    "read_run",
    "setup_views",
    "tables",
    "thread_views",
    "verdict",
    "write_report",
    "written",
]

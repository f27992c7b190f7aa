"""Pages, tables and summaries made again from the records, and held against those that lie in a run folder.

The same records, code and packages give the same bytes. Where code or packages are others, a difference says nothing:
the page is then told as not checked.
"""

import ast
import contextlib
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import nbformat
from IPython.core.formatters import DisplayFormatter
from nbformat import NotebookNode

import telechat_kit
from telechat_kit import reports
from telechat_kit.comparison.findings import CHANGED, SAME, Finding, compared, short, unchecked
from telechat_kit.comparison.rules import FLOAT, parse_limits
from telechat_kit.comparison.run_data import RunData, carried_run, collect_run, without_record
from telechat_kit.files import resolve, write_json, write_jsonl
from telechat_kit.messages import LANGUAGES, Message, marked
from telechat_kit.provenance import code_hash, file_hash, versions
from telechat_kit.records import RECORDS
from telechat_kit.reports.notebook_page import export_notebook
from telechat_kit.reports.page import page_origin, write_report
from telechat_kit.reports.single_page import report_alone
from telechat_kit.runs.notebook_language import cell_in_language, language_of
from telechat_kit.runs.origins import recorded_code
from telechat_kit.runs.profile import default_values, notebook_path
from telechat_kit.runs.publishing import page_links
from telechat_kit.runs.state import STEPS, Step
from telechat_kit.temporary import temporary_folder
from telechat_kit.translation import speaking

PAGES, NOTEBOOKS = marked("pages"), marked("notebooks")
_REPORT, _SUMMARY, _TABLES = "report.html", "report.md", "tables"
#: What notebooks call the record that they show
_RECORD_NAMES = {
    "01_setup": "setup",
    "02_quantize": "quantized",
    "03_precision": "measured",
    "04_performance": "measured",
}
#: Ids that pandas draws anew for each table, and those of charts, made of more digits than are shown
_IDS = re.compile(r"(?<=T_)[0-9a-f]{5}|\b[0-9a-f]{8}-(?=[mphi]?[0-9a-z])")
_ELEMENT = re.compile(r"<[^>]*>")
_TABLE, _CHART = "text/html", "image/svg+xml"


def check_pages(run: RunData, page: Path | None = None) -> Iterator[Finding]:
    """`report.html`, `report.md` and `tables/` of a run, or a `page` alone, against what its records give."""
    path = page or (run.folder / _REPORT if run.folder else None)
    if path is None or not path.is_file():
        yield unchecked(PAGES, _REPORT, marked("there is none"))
        return
    carried = carried_run(path)
    if run.folder is not None:
        yield from _carried_records(carried, collect_run(run.folder))
    if not all(name in carried.get("records", {}) for name in RECORDS):
        yield unchecked(PAGES, _REPORT, marked("it does not carry all four records"))
        return
    origin = _origin(carried, run)
    why_not = _other_origin(carried, origin, run)
    name = Path(str(run.parameters.get("run_folder") or (run.folder or path.parent).name)).name
    try:
        again = _written(
            name, json.dumps([carried["records"], carried.get("samples"), carried.get("state"), origin])
        )
    except Exception as error:  # whatever a record that nothing measured does to tables and charts
        reason = Message("it cannot be made again: {short}", short=short(error))
        yield (
            unchecked(PAGES, _REPORT, reason)
            if why_not
            else Finding(_REPORT, marked("a page"), reason, CHANGED, PAGES)
        )
        return
    shown, with_others = report_alone(_text_of(path))
    yield _same(_REPORT, without_record(shown), without_record(again[_REPORT]), why_not)
    if with_others:
        yield unchecked(
            PAGES,
            marked("pages of the notebooks"),
            marked("they lie in the same file; the run folder's are checked"),
        )
    if page is None:
        yield from _same_files(path.parent, again, why_not)


def _carried_records(carried: Mapping[str, Any], here: Mapping[str, Any]) -> Iterator[Finding]:
    """The record in the page is that of the folder; its state is that of the moment at which the page was made."""
    for part in ("records", "samples"):
        yield from compared(
            PAGES,
            Message("{report}, {part} that it carries", report=_REPORT, part=part),
            carried.get(part),
            here[part],
        )
    parameters = [(values.get("state") or {}).get("parameters") for values in (carried, here)]
    yield from compared(PAGES, Message("{report}, parameters that it carries", report=_REPORT), *parameters)


def _origin(carried: Mapping[str, Any], run: RunData) -> Mapping[str, Any]:
    """Language and limits of the page; of an older one those of the run, or the defaults."""
    told = carried.get("page")
    values = default_values("05_report") | run.parameters
    return told if isinstance(told, dict) else {"language": values["language"], "limits": values["limits"]}


@lru_cache(maxsize=2)
def _written(name: str, carried: str) -> dict[str, str]:
    """Report, summary and tables of a record by their names; asked again for the same, this process remembers."""
    records, samples, state, origin = json.loads(carried)
    with temporary_folder() as place:
        folder = place / name
        folder.mkdir()
        for key, record in records.items():
            write_json(folder / f"{key}.json", record)
        if samples:
            write_jsonl(folder / "samples.jsonl", samples)
        if state:
            write_json(folder / "run.json", state)
        write_report(folder, str(origin.get("language")), [str(text) for text in origin.get("limits") or ()])
        paths = [folder / _REPORT, folder / _SUMMARY, *(folder / _TABLES).glob("*")]
        return {path.relative_to(folder).as_posix(): _text_of(path) for path in paths}


def _text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


def _other_origin(carried: Mapping[str, Any], origin: Mapping[str, Any], run: RunData) -> str:
    """Why a page that differs may be as honest; empty if it must be equal."""
    told, here = carried.get("page"), page_origin("", ())["made_with"]
    if not isinstance(told, dict):
        made_here = recorded_code(run) == [code_hash()]
        return "" if made_here else marked("made by an older version of the kit")
    other = [name for name, version in here.items() if (told.get("made_with") or {}).get(name) != version]
    if other:
        return Message("made with another version of {other}", other=", ".join(other))
    against = [limit.against for limit in parse_limits(origin["limits"]) if limit.against not in ("", FLOAT)]
    return (
        Message("a limit of it looks at {against}, which may be another now", against=against[0])
        if against
        else ""
    )


def _same_files(folder: Path, again: Mapping[str, str], why_not: str) -> Iterator[Finding]:
    """Summary and tables, both ways."""
    here = {path.relative_to(folder).as_posix() for path in (folder / _TABLES).glob("*")}
    for name in sorted({*here, *again} - {_REPORT}):
        path = folder / name
        if path.is_file() and name in again:
            yield _same(name, _text_of(path), again[name], why_not)
        else:
            what = (
                ("there", marked("not of this report"))
                if path.is_file()
                else ("missing", marked("made by this report"))
            )
            yield unchecked(PAGES, name, why_not) if why_not else Finding(name, *what, CHANGED, PAGES)


def _same(name: str, recorded: str, again: str, why_not: str, part: str = PAGES) -> Finding:
    recorded, again = _IDS.sub("", recorded), _IDS.sub("", again)
    if recorded == again:
        return Finding(name, "", "", SAME, part)
    if why_not:
        return unchecked(
            part, name, Message("it is not what its records give here: {why_not}", why_not=why_not)
        )
    return Finding(name, *_first_difference(recorded, again), CHANGED, part)


def _first_difference(a: str, b: str) -> tuple[str, str]:
    """The texts of both from a little before the first place where they part."""
    place = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    begin = max(0, place - 20)
    return short(a[begin : place + 40]), short(b[begin : place + 40])


def check_notebooks(run: RunData) -> Iterator[Finding]:
    """Executed notebooks: what they show against the records, and their pages against them."""
    if run.folder is None:
        return
    states = {step["name"]: step for step in run.state.get("steps", [])}
    for step in STEPS:
        path, state = run.folder / f"{step.name}.ipynb", states.get(step.name, {})
        if not path.is_file() or state.get("status") not in (None, "completed", "skipped"):
            continue
        why_not = _other_code(state.get("parts") or {}, step, run)
        cells = [cell for cell in nbformat.read(path, as_version=4).cells if not _injected(cell)]
        own = nbformat.read(notebook_path(step.name), as_version=4)
        # a step that was kept keeps the language in which it ran
        language = language_of([cell.source for cell in cells], own, LANGUAGES)
        with speaking(language or LANGUAGES[0]):
            yield from _shown(cells, own.cells, path, step, run, why_not)
            yield from _exported(path, step, why_not)


def _other_code(parts: Mapping[str, str], step: Step, run: RunData) -> str:
    """Why the outputs of a notebook may be others than this kit's; empty if they must be equal."""
    if not parts:
        return marked("run by hand: by which code is not told")
    if parts.get("the kit's code") != code_hash():
        return marked("made by another version of the kit")
    if parts.get("the notebook") != file_hash(notebook_path(step.name)):
        return marked("made by another notebook")
    told, here = run.state.get("versions") or {}, versions()
    other = [name for name in ("nbconvert", "numpy") if told.get(name) != here.get(name)]
    return Message("made with another version of {other}", other=", ".join(other)) if other else ""


def _exported(path: Path, step: Step, why_not: str) -> Iterator[Finding]:
    page = path.with_suffix(".html")
    if not page.is_file():
        return
    with temporary_folder() as folder:
        again = export_notebook(path, folder / page.name, links=page_links(page.name, step))
        texts = _text_of(page), _text_of(again)
    yield _same(page.name, *texts, why_not, NOTEBOOKS)


def _shown(
    cells: Sequence[NotebookNode],
    own: Sequence[NotebookNode],
    path: Path,
    step: Step,
    run: RunData,
    why_not: str,
) -> Iterator[Finding]:
    """Code and outputs of an executed notebook against the project's own, whose cells show the records again."""
    sources = [[cell_in_language(cell) for cell in own], [cell.source for cell in cells]]
    if sources[0] != sources[1]:
        yield _same(
            Message("{name}, cells", name=path.name),
            "\n".join(sources[1]),
            "\n".join(sources[0]),
            why_not,
            NOTEBOOKS,
        )
        return
    names = _names(step, run)
    for number, cell in enumerate(cells, start=1):
        call = _shows(cell.source, names) if cell.cell_type == "code" else None
        if call is not None:
            shown, again = _outputs(cell), _evaluated(call, names)
            if len(ast.parse(cell.source).body) > 1:  # what it printed while it measured comes first
                shown = shown[-len(again) :]
            yield _same(
                Message("{name}, cell {number}", name=path.name, number=number),
                shown,
                again,
                why_not,
                NOTEBOOKS,
            )


def _injected(cell: NotebookNode) -> bool:
    return "injected-parameters" in cell.metadata.get("tags", [])


def _names(step: Step, run: RunData) -> dict[str, Any]:
    """What the cells of a step may name: its record, and what shows it."""
    names: dict[str, Any] = {"reports": reports, "print": print}
    record = getattr(run, step.name[3:], None)
    if record is not None:
        names[_RECORD_NAMES[step.name]] = record
    if step.name == "01_setup" and run.setup is not None:
        names |= {"checks": run.setup.checks, "tested": run.setup.operators, "fits": telechat_kit.fits}
    if step.name == "05_report" and None not in (run.setup, run.quantize, run.precision, run.performance):
        values = default_values(step.name) | run.parameters
        names |= {"run": reports.read_run(resolve(run.folder or "")), "limits": values["limits"]}
        names["run_folder"] = run.folder
    return names


def _shows(source: str, names: Mapping[str, Any]) -> ast.Expression | None:
    """The last statement of a cell, if it shows nothing but what `names` has."""
    statement = ast.parse(source).body[-1:]
    if not statement or not isinstance(statement[0], ast.Expr):
        return None
    used = {node.id for node in ast.walk(statement[0]) if isinstance(node, ast.Name)}
    return ast.Expression(statement[0].value) if "reports" in used and used <= set(names) else None


def _evaluated(call: ast.Expression, names: Mapping[str, Any]) -> str:
    """What a cell of the project's own notebook shows of the record."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        value = eval(compile(call, "cell", "eval"), {}, dict(names))  # the project's own source
        data = {} if value is None else DisplayFormatter().format(value)[0]
    return _text(printed.getvalue(), [data])


def _outputs(cell: NotebookNode) -> str:
    printed = "".join(output.text for output in cell.outputs if output.get("name") == "stdout")
    return _text(printed, [output.data for output in cell.outputs if "data" in output])


def _text(printed: str, shown: list[Any]) -> str:
    """What was printed, tables as they are, and of charts their words and values: a kernel may lay them out otherwise."""
    parts = [str(data[_TABLE]) for data in shown if _TABLE in data]
    parts += [_ELEMENT.sub(" ", str(data[_CHART])) for data in shown if _CHART in data]
    return "\n".join([printed, *parts])

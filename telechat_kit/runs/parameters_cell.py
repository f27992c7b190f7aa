"""The parameters cell of a notebook, read as Python reads it.

papermill looks at each line with a regular expression: a default that holds "=" or "#" is then lost without a word,
and with it the value that a profile gives. Here every line counts, or is named.
"""

import ast
import io
import tokenize
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from telechat_kit.errors import DataError, ParameterError
from telechat_kit.files import read_json, relative
from telechat_kit.messages import Message, marked
from telechat_kit.widths import width, wrapped

#: Annotations that a parameters cell may use
TYPES: dict[str, Any] = {
    "str": str,
    "int": int,
    "float": float,
    "bool": bool,
    "list[int]": list[int],
    "list[str]": list[str],
}
_TAG = "parameters"
#: What a code cell of JupyterLab shows in a window of 1280 px with the list of files beside it
COLUMNS = 84
_STRICT = ConfigDict(strict=True, allow_inf_nan=False)


@dataclass(frozen=True)
class Declaration:
    """`name: type = default  # help`: a parameter as its notebook declares it; `written` is the default's text."""

    name: str
    type_name: str
    default: Any
    written: str
    help: str


def has_type(value: Any, type_name: str) -> bool:
    """Whether `value` is of a type of `TYPES`, as it stands: true is no int, "1" is none, and a float is finite."""
    try:
        TypeAdapter(TYPES[type_name], config=_STRICT).validate_python(value)
    except ValidationError:
        return False
    return True


def read_declarations(notebook: Path) -> dict[str, Declaration]:
    """The parameters of a notebook by name, in their order; empty if no cell is tagged `parameters`.

    Raises:
        ParameterError: no such notebook, or a line of the cell that is no declaration; the line is named.
    """
    source = _source(notebook)
    where = Message("{notebook}, parameters cell", notebook=relative(notebook))
    try:
        statements = ast.parse(source).body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = getattr(error, "lineno", None) or 1
        raise ParameterError(
            "{where}, line {line}: no Python ({what}). Correct the line.",
            where=where,
            line=line,
            what=_what(error),
        ) from error
    found: dict[str, Declaration] = {}
    for statement in statements:
        for one in _declared(statement, source, where):
            if one.name in found:
                raise ParameterError(
                    '{where}, line {lineno}: "{name}" is declared twice. Keep one of the lines.',
                    where=where,
                    lineno=statement.lineno,
                    name=one.name,
                )
            found[one.name] = one
    return found


def filled_in(source: str, values: Mapping[str, Any]) -> str:
    """A parameters cell with `values` in the place of its defaults, comments as they were.

    Args:
        source: text of the cell, such as `read_declarations` reads.
        values: by name of the parameter; those that the cell does not declare are left out.
    """
    lines = source.splitlines(keepends=True)
    for statement in reversed(ast.parse(source).body):  # from the end: what stands before keeps its place
        if not isinstance(statement, ast.AnnAssign | ast.Assign) or statement.value is None:
            continue
        target = statement.target if isinstance(statement, ast.AnnAssign) else statement.targets[0]
        if not isinstance(target, ast.Name) or target.id not in values:
            continue
        value = statement.value
        first, last = value.lineno - 1, (value.end_lineno or value.lineno) - 1
        # columns of ast are bytes of UTF-8
        before = lines[first].encode()[: value.col_offset].decode()
        after = lines[last].encode()[value.end_col_offset :].decode()
        lines[first : last + 1] = [f"{before}{values[target.id]!r}{after}"]
    return "".join(lines)


def comments_in_sight(source: str, columns: int = COLUMNS) -> str:
    """The cell with each comment that would end beyond `columns` on lines of its own, above its declaration."""
    found = {
        token.start[0] - 1: token
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    lines = []
    for number, line in enumerate(source.splitlines()):
        comment = found.get(number)
        if comment is None or comment.start[1] == 0 or width(line) <= columns:
            lines.append(line)
            continue
        text = comment.string.lstrip("#").strip()
        lines += [*(f"# {part}" for part in wrapped(text, columns - 2)), line[: comment.start[1]].rstrip()]
    return "\n".join(lines)


def is_parameters_cell(cell: Mapping[str, Any]) -> bool:
    """Whether papermill takes a cell of a notebook for the one of the parameters."""
    return _TAG in cell.get("metadata", {}).get("tags", [])


def _source(notebook: Path) -> str:
    """The text of the cell that is tagged; that of papermill's first choice if several are."""
    try:
        content = read_json(notebook, marked("Get it from the project again."))
    except DataError as error:
        raise ParameterError(str(error)) from error
    cells = content.get("cells") if isinstance(content, dict) else None
    for cell in cells if isinstance(cells, list) else ():
        metadata = cell.get("metadata") if isinstance(cell, dict) else None
        tags = metadata.get("tags") if isinstance(metadata, dict) else None
        if isinstance(tags, list) and _TAG in tags:
            source = cell.get("source", "")
            return "".join(map(str, source)) if isinstance(source, list) else str(source)
    return ""


def _declared(statement: ast.stmt, source: str, where: str) -> Iterator[Declaration]:
    """The declaration in one statement; none in an import or a text."""
    place = Message("{path}, line {number}", path=where, number=statement.lineno)
    if isinstance(statement, ast.Import | ast.ImportFrom | ast.Pass):
        return
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
        return
    if isinstance(statement, ast.AnnAssign):
        target: ast.expr = statement.target
        value, annotation = statement.value, ast.unparse(statement.annotation)
    elif isinstance(statement, ast.Assign) and len(statement.targets) == 1:
        target, value, annotation = statement.targets[0], statement.value, ""
    else:
        raise _undeclared(place)
    if not isinstance(target, ast.Name) or value is None:
        raise _undeclared(place)
    try:
        default = ast.literal_eval(value)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError) as error:
        raise ParameterError(
            '{place}: the default of "{id}" is no plain value ({what}). Give a text, a number, True, False '
            "or a list of those.",
            place=place,
            id=target.id,
            what=_what(error),
        ) from error
    type_name = annotation.strip("'\"") or next((name for name in TYPES if has_type(default, name)), "")
    if type_name not in TYPES:
        raise ParameterError(
            '{place}: "{id}" is declared as "{type_name}". Types of parameters: {types}.',
            place=place,
            id=target.id,
            type_name=type_name,
            types=", ".join(TYPES),
        )
    if not has_type(default, type_name):
        raise ParameterError(
            '{place}: the default of "{id}" is no {type_name}.',
            place=place,
            id=target.id,
            type_name=type_name,
        )
    written = ast.get_source_segment(source, value) or repr(default)
    yield Declaration(target.id, type_name, default, written, _comment(source, statement))


def _undeclared(place: str) -> ParameterError:
    return ParameterError(
        "{place}: no parameter can be read from it. Write `name: type = default  # help`, and keep other "
        "code in cells of its own.",
        place=place,
    )


def _comment(source: str, statement: ast.stmt) -> str:
    """The comment at the end of a statement."""
    last = statement.end_lineno or statement.lineno
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT and token.start[0] == last:
            return token.string.lstrip("#").strip()
    return ""


def _what(error: BaseException) -> str:
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    return " ".join(text.split())[:100] or type(error).__name__

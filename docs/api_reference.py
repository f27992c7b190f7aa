"""docs/api.md from the docstrings of the face, for cog: signature, meaning and example of every name.

cog -r docs/api.md          writes the page anew
cog --check docs/api.md     fails if the page is not what the docstrings say
"""

import ast
import inspect
import re
from collections.abc import Iterator
from typing import Any

import telechat_kit

#: The names of the face in the order of a run, in which the examples are one session
SECTIONS = {
    "Set-up": ("make_embedded", "check", "check_operators", "check_setup", "use_tested_operators", "fits"),
    "Quantization": ("Recipe", "Calibration", "quantize", "export"),
    "A model": ("load_model", "load_tokenizer", "generate"),
    "Precision": ("Evaluation", "measure_precision", "PrecisionMeasurement", "write_answers", "check_alignment"),
    "Performance": ("Grid", "measure_performance"),
    "Records and runs": ("write_record", "write_report", "compare", "verify"),
}
LINE = 100
#: What a docstring may hold beside its text
_HEADS = re.compile(r"^(Args|Attributes|Raises|Example):\n", re.MULTILINE)
_ENTRY = re.compile(r"^    (\w[\w, ]*): ", re.MULTILINE)


def page() -> str:
    """Everything below the introduction of docs/api.md."""
    return "\n".join(
        line for title, names in SECTIONS.items() for line in (f"## {title}\n", *map(entry, names))
    )


def entry(name: str) -> str:
    """One name of the face as Markdown."""
    parts = _parts(inspect.getdoc(getattr(telechat_kit, name)) or "")
    listed = [_list(parts[head]) for head in ("Args", "Attributes") if head in parts]
    raised = [f"Raises:\n\n{_list(parts['Raises'])}"] if "Raises" in parts else []
    example = f"```python\n{inspect.cleandoc(parts['Example'])}\n```"
    signature = f"```python\n{_signature(getattr(telechat_kit, name))}\n```"
    return "\n\n".join([f"### {name}", signature, parts[""], *listed, *raised, example]) + "\n"


def examples() -> Iterator[tuple[str, str]]:
    """Name and example of every entry, in the order of the page."""
    for name in (name for names in SECTIONS.values() for name in names):
        yield name, inspect.cleandoc(_parts(inspect.getdoc(getattr(telechat_kit, name)) or "")["Example"])


def _parts(doc: str) -> dict[str, str]:
    """The sections of a docstring by their heads; its text by ""."""
    text, *rest = _HEADS.split(doc)
    paragraphs = "\n\n".join(" ".join(part.split()) for part in text.strip().split("\n\n"))
    return {"": paragraphs, **dict(zip(rest[::2], rest[1::2], strict=True))}


def _list(section: str) -> str:
    """`    name: meaning` entries, whose meanings may run over lines, as a Markdown list."""
    _, *rest = _ENTRY.split(section)
    pairs = zip(rest[::2], rest[1::2], strict=True)
    return "\n".join(
        f"- {', '.join(f'`{name}`' for name in names.split(', '))}: {' '.join(meaning.split())}"
        for names, meaning in pairs
    )


def _signature(found: Any) -> str:
    """The call as the source has it, types and defaults included."""
    (node,) = ast.parse(inspect.getsource(found)).body
    if isinstance(node, ast.ClassDef):
        return _call(node.name, [ast.unparse(part) for part in node.body if isinstance(part, ast.AnnAssign)])
    assert isinstance(node, ast.FunctionDef)
    return _call(
        node.name, list(_parameters(node.args)), f" -> {ast.unparse(node.returns)}" if node.returns else ""
    )


def _parameters(found: ast.arguments) -> Iterator[str]:
    defaults = [*[None] * (len(found.args) - len(found.defaults)), *found.defaults]
    yield from map(_parameter, found.args, defaults)
    if found.kwonlyargs:
        yield "*"
        yield from map(_parameter, found.kwonlyargs, found.kw_defaults)


def _parameter(argument: ast.arg, default: ast.expr | None) -> str:
    return ast.unparse(argument) + (f" = {ast.unparse(default)}" if default else "")


def _call(name: str, parts: list[str], returned: str = "") -> str:
    """On one line, or one part a line where that would be too long; quotes as in the source."""
    line = f"{name}({', '.join(parts)}){returned}"
    if len(line) > LINE:
        line = "\n".join([f"{name}(", *(f"    {part}," for part in parts), f"){returned}"])
    return line.replace("'", '"')

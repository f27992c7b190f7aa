"""CI runs no benchmark, whose engines it does not have; what each takes from the kit must be there all the same."""

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def taken(source: str) -> Iterator[tuple[str, str]]:
    """Module and name of all that is imported from the kit, in functions and strings of programs too."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "telechat_kit":
            yield from ((node.module or "", alias.name) for alias in node.names)
        elif (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and "from telechat_kit" in node.value
        ):
            try:
                yield from taken(node.value)
            except SyntaxError:  # prose
                continue


def missing(source: str) -> list[str]:
    """What of that is not there."""
    found = []
    for module, name in taken(source):
        try:
            there = hasattr(importlib.import_module(module), name)
            there = there or bool(importlib.import_module(f"{module}.{name}"))
        except ImportError:
            there = False
        if not there:
            found.append(f"{module}.{name}")
    return found


@pytest.mark.parametrize("path", sorted(BENCHMARKS.glob("*.py")), ids=lambda path: path.stem)
def test_benchmarks_take_from_the_kit_what_is_there(path: Path) -> None:
    assert missing(path.read_text(encoding="utf-8")) == []


def test_what_is_not_there_is_found() -> None:
    source = "from telechat_kit.texts import Block, load_text\nX = 'from telechat_kit.nothing import all'\n"
    assert missing(source) == ["telechat_kit.texts.Block", "telechat_kit.nothing.all"]

"""Profiles: one flat YAML file of parameters, checked against what the notebooks declare."""

import ast
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import papermill
import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError

from telechat_kit.comparison.rules import parse_limits
from telechat_kit.errors import ParameterError
from telechat_kit.files import project_root, relative

#: Annotations that a parameters cell may use
TYPES: dict[str, Any] = {
    "str": str,
    "int": int,
    "float": float,
    "bool": bool,
    "list[int]": list[int],
    "list[str]": list[str],
}


@dataclass(frozen=True)
class Parameter:
    """A parameter as a notebook declares it: `name: type = default  # help`."""

    name: str
    type_name: str
    default: str
    help: str
    notebooks: tuple[str, ...]


@dataclass(frozen=True)
class Profile:
    """Checked parameters and where they come from."""

    path: Path
    values: dict[str, Any]

    @property
    def run_folder(self) -> str:
        """Folder of the run: as the profile says, else `results/` and its name."""
        return str(self.values["run_folder"])

    def for_notebook(self, name: str) -> dict[str, Any]:
        """The parameters that one notebook declares."""
        known = declared_parameters(notebook_path(name))
        return {key: value for key, value in self.values.items() if key in known}


def notebook_path(name: str) -> Path:
    """The notebook of a step, `01_setup` ..."""
    return project_root() / "notebooks" / f"{name}.ipynb"


def load_profile(path: Path, overrides: Sequence[tuple[str, str]] = ()) -> Profile:
    """Read a profile, apply `(key, YAML value)` overrides, and check keys and types against the notebooks.

    Raises:
        ParameterError: no such file, not flat YAML, a key that no notebook declares (the nearest is named), a
            value of the wrong type, or a limit that cannot be read; each with file and line.
    """
    values, lines = _read_yaml(path)
    places = {key: f"{relative(path)}, line {line}" for key, line in lines.items()}
    for key, text in overrides:
        values[key] = _read_override(key, text)
        places[key] = f"-p {key}"
    known = all_parameters()
    for key, value in values.items():
        _check(places[key], key, value, known)
    _check_limits(places.get("limits", ""), values.get("limits", []))
    values.setdefault("run_folder", f"results/{path.stem}")
    return Profile(path, values)


def all_parameters() -> dict[str, Parameter]:
    """Every parameter that a notebook of the project declares, with the notebooks that take it."""
    found: dict[str, Parameter] = {}
    for path in sorted((project_root() / "notebooks").glob("*.ipynb")):
        for name, entry in declared_parameters(path).items():
            takers = (*found[name].notebooks, path.stem) if name in found else (path.stem,)
            found[name] = Parameter(
                name, entry["inferred_type_name"], entry["default"], entry["help"], takers
            )
    return found


def default_values(name: str) -> dict[str, Any]:
    """What a notebook takes for the parameters that a profile leaves out."""
    declared = declared_parameters(notebook_path(name))
    return {key: ast.literal_eval(entry["default"]) for key, entry in declared.items()}


@cache
def declared_parameters(path: Path) -> Mapping[str, Mapping[str, str]]:
    """Parameters of one notebook as papermill reads them from its parameters cell."""
    return papermill.inspect_notebook(str(path))


def _read_yaml(path: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """Values and line numbers of a flat YAML mapping, under its keys as written."""
    try:
        loader = yaml.SafeLoader(path.read_text(encoding="utf-8-sig"))
        node = loader.get_single_node()
        entries = node.value if isinstance(node, yaml.MappingNode) else None
        found = [(key, loader.construct_object(value, deep=True)) for key, value in entries or ()]
    except FileNotFoundError as error:
        known = ", ".join(sorted(relative(file) for file in (project_root() / "params").glob("*.yaml")))
        raise ParameterError(f"profile {path} does not exist. Profiles here: {known}.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ParameterError(f"profile {path} cannot be read: {error}. Give a UTF-8 text file.") from error
    except (yaml.YAMLError, ValueError) as error:
        raise ParameterError(f"{path} is not valid YAML: {_one_line(error)}. Correct the line.") from error
    if entries is None:
        raise ParameterError(f"{path} is no flat list of `key: value` lines.")
    return {str(key.value): value for key, value in found}, _line_numbers(path, [key for key, _ in found])


def _line_numbers(path: Path, keys: Sequence[yaml.Node]) -> dict[str, int]:
    lines: dict[str, int] = {}
    for key in keys:
        name, line = str(key.value), key.start_mark.line + 1
        if name in lines:
            where = f"{relative(path)}, line {line}"
            raise ParameterError(f'{where}: "{name}" stands in line {lines[name]} already. Keep one of them.')
        lines[name] = line
    return lines


def _read_override(key: str, text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:
        raise ParameterError(f'-p {key}: "{text}" is not valid YAML: {_one_line(error)}.') from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _check_limits(place: str, limits: Sequence[str]) -> None:
    """Refuse limits that the report could not read, before anything runs."""
    try:
        parse_limits(limits)
    except ParameterError as error:
        raise ParameterError(f"{place}: {error}") from error


def _check(place: str, key: str, value: Any, known: Mapping[str, Parameter]) -> None:
    if key not in known:
        near = difflib.get_close_matches(str(key), known, n=1)
        remedy = f'Did you mean "{near[0]}"?' if near else "`telechat-kit params` lists all parameters."
        raise ParameterError(f'{place}: no notebook has a parameter "{key}". {remedy}')
    type_name = known[key].type_name
    try:
        TypeAdapter(TYPES[type_name], config=ConfigDict(strict=True)).validate_python(value)
    except ValidationError as error:
        raise ParameterError(
            f'{place}: "{key}" must be {type_name} ({known[key].help}), got {type(value).__name__} {value!r}.'
        ) from error

"""Profiles: one flat YAML file of parameters, checked against what the notebooks declare."""

import difflib
import re
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from telechat_kit.comparison.rules import parse_limits
from telechat_kit.errors import ParameterError
from telechat_kit.faults import yaml_fault
from telechat_kit.files import project_root, relative, resolve
from telechat_kit.messages import Message, marked
from telechat_kit.records import MOST_NUMBER
from telechat_kit.runs.parameters_cell import Declaration, has_type, read_declarations

#: Most bytes of a profile
MOST_BYTES = 1 << 20
#: Numbers with an exponent that YAML 1.1 calls text: it wants a point, and a sign in the exponent
_EXPONENT = re.compile(r"[-+]?\d+(?:\.\d*)?[eE][-+]?\d+")
#: Numbers of base 60 (1:30), and of base 8 (0777), which begin with a zero that no decimal one has
_OTHER_BASE = re.compile(r"[-+]?(?:[\d_]+:|0[0-7_]+$)")
_NO_TEXT = re.compile(r"[\x00-\x08\x0b-\x1f\ud800-\udfff]")


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

    @property
    def language(self) -> str:
        """The language of the notebooks and pages."""
        return str(self.values.get("language", default_values("05_report").get("language", "en")))

    def speaking(self, wanted: str) -> "Profile":
        """The profile, its notebooks and pages in `wanted` if it names no language itself."""
        return self if self.language == wanted else replace(self, values={"language": wanted} | self.values)

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
    values, lines = read_mapping(path)
    places = {key: f"{relative(path)}, line {line}" for key, line in lines.items()}
    for key, text in overrides:
        values[key] = _read_override(key, text)
        places[key] = f"-p {key}"
    known = all_parameters()
    for key, value in values.items():
        values[key] = _checked(places[key], key, value, known)
    _check_limits(places.get("limits", ""), values.get("limits", []))
    values.setdefault("run_folder", f"results/{path.stem}")
    _require_own_folder(places.get("run_folder", relative(path)), values["run_folder"])
    return Profile(path, values)


def all_parameters() -> dict[str, Parameter]:
    """Every parameter that a notebook of the project declares, with the notebooks that take it."""
    found: dict[str, Parameter] = {}
    for path in _notebooks():
        for name, entry in declared_parameters(path).items():
            takers = (*found[name].notebooks, path.stem) if name in found else (path.stem,)
            found[name] = Parameter(name, entry.type_name, entry.written, entry.help, takers)
    return found


def _notebooks() -> list[Path]:
    """The notebooks of the project; a `ParameterError` where there is no project."""
    paths = sorted((project_root() / "notebooks").glob("*.ipynb"))
    if not paths:
        raise ParameterError(
            "no project in {cwd} or above it: start in the folder that holds notebooks/ and params/, or make "
            "one with `telechat-kit init FOLDER`.",
            cwd=Path.cwd(),
        )
    return paths


def default_values(name: str) -> dict[str, Any]:
    """What a notebook takes for the parameters that a profile leaves out."""
    _notebooks()
    return {key: entry.default for key, entry in declared_parameters(notebook_path(name)).items()}


@cache
def declared_parameters(path: Path) -> Mapping[str, Declaration]:
    """Parameters of one notebook by name."""
    return read_declarations(path)


def read_mapping(
    path: Path, kind: str = marked("profile"), folder: str = "params"
) -> tuple[dict[str, Any], dict[str, int]]:
    """Values and line numbers of a YAML mapping, under its keys as written.

    Args:
        kind, folder: what the file is, and where the project keeps such: for errors.

    Raises:
        ParameterError: no such file, no YAML of reasonable size, no mapping, or a key twice.
    """
    try:
        if path.exists() and not path.is_file():  # a device never ends, a pipe may never begin
            raise ParameterError(
                "{kind} {path} is a folder, a pipe or a device. Give a UTF-8 text file.",
                kind=Message(kind),
                path=path,
            )
        if path.stat().st_size > MOST_BYTES:
            raise ParameterError(
                "{kind} {path} has more than {most_bytes:,} bytes. Give `key: value` lines.",
                kind=Message(kind),
                path=path,
                most_bytes=MOST_BYTES,
            )
        loader = yaml.SafeLoader(path.read_text(encoding="utf-8-sig"))
        node = loader.get_single_node()
        entries = node.value if isinstance(node, yaml.MappingNode) else None
        for key, value in entries or ():
            _require_decimal(f"{path}, line {key.start_mark.line + 1}", value)
        found = [(key, loader.construct_object(value, deep=True)) for key, value in entries or ()]
    except FileNotFoundError as error:
        known = ", ".join(sorted(relative(file) for file in (project_root() / folder).glob("*.yaml")))
        raise ParameterError(
            "{kind} {path} does not exist. {title}s here: {known}.",
            kind=Message(kind),
            path=path,
            title=Message(kind.title()),
            known=known,
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise ParameterError(
            "{kind} {path} cannot be read: {error}. Give a UTF-8 text file.",
            kind=Message(kind),
            path=path,
            error=error,
        ) from error
    except _UNREADABLE as error:
        raise ParameterError(
            "{path} is not valid YAML: {problem}. Correct the line.", path=path, problem=yaml_fault(error)
        ) from error
    if entries is None:
        raise ParameterError("{path} is no flat list of `key: value` lines.", path=path)
    return {str(key.value): value for key, value in found}, _line_numbers(path, [key for key, _ in found])


def _require_decimal(place: str, node: yaml.Node) -> None:
    """Refuse the numbers that YAML 1.1 reads in other bases than people: 1:30 as 90, 0777 as 511."""
    for part in node.value if isinstance(node, yaml.SequenceNode) else [node]:
        numeric = part.tag in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
        if numeric and _OTHER_BASE.match(str(part.value)):
            raise ParameterError(
                "{place}: {value} is no decimal number, and YAML would take another one for it. Write the number "
                "in decimals, or a text in quotes.",
                place=place,
                value=str(part.value)[:40],
            )


def _line_numbers(path: Path, keys: Sequence[yaml.Node]) -> dict[str, int]:
    lines: dict[str, int] = {}
    for key in keys:
        name, line = str(key.value), key.start_mark.line + 1
        if name in lines:
            where = Message("{path}, line {number}", path=relative(path), number=line)
            raise ParameterError(
                '{where}: "{name}" stands in line {lines} already. Keep one of them.',
                where=where,
                name=name,
                lines=lines[name],
            )
        lines[name] = line
    return lines


#: What such files are called at the beginning of a sentence, for the catalog
_TITLES = (marked("Profile"), marked("Sweep"))
#: What PyYAML raises for texts that are none of its own: a date of month 13, 5,000 digits, 10,000 brackets
_UNREADABLE = (yaml.YAMLError, ValueError, TypeError, AttributeError, RecursionError)


def _read_override(key: str, text: str) -> Any:
    try:
        value = yaml.safe_load(text)
    except _UNREADABLE as error:
        raise ParameterError(
            '-p {key}: "{text}" is not valid YAML: {problem}.',
            key=key,
            text=text[:80],
            problem=yaml_fault(error),
        ) from error
    bare = isinstance(value, str) and text.strip()[:1] not in ("'", '"', "|", ">", "!", "&", "*")
    return text.strip() if bare else value  # a name may hold " #", where YAML sees a comment


def _check_limits(place: str, limits: Sequence[str]) -> None:
    """Refuse limits that the report could not read, before anything runs."""
    try:
        parse_limits(limits)
    except ParameterError as error:
        raise ParameterError("{place}: {error}", place=place, error=error) from error


def _checked(place: str, key: str, value: Any, known: Mapping[str, Parameter]) -> Any:
    """`value` as its parameter takes it."""
    if key not in known:
        near = difflib.get_close_matches(key[:80], known, n=1)
        remedy = marked("`telechat-kit params` lists all parameters.")
        if near:
            remedy = Message('Did you mean "{near}"?', near=near[0])
        raise ParameterError(
            '{place}: no notebook has a parameter "{key}". {remedy}', place=place, key=key[:80], remedy=remedy
        )
    parameter = known[key]
    if parameter.type_name == "float" and isinstance(value, str) and _EXPONENT.fullmatch(value):
        value = float(value)
    if not has_type(value, parameter.type_name):
        raise ParameterError(
            '{place}: "{key}" must be {type_name} ({help}), got {name} {repr}.',
            place=place,
            key=key,
            type_name=parameter.type_name,
            help=parameter.help,
            name=type(value).__name__,
            repr=_shown.repr(value),
        )
    for part in value if isinstance(value, list) else [value]:
        if isinstance(part, str) and _NO_TEXT.search(part):
            raise ParameterError(
                '{place}: "{key}" holds a character that no text has. Correct it.', place=place, key=key
            )
        if isinstance(part, int) and abs(part) > MOST_NUMBER:
            raise ParameterError(
                '{place}: "{key}" is beyond {most_number:,}. Give a smaller number.',
                place=place,
                key=key,
                most_number=MOST_NUMBER,
            )
    return value


#: Values in messages: anchors of YAML may make one that is written as gigabytes
_shown = reprlib.Repr()
_shown.maxlevel = _shown.maxlist = _shown.maxdict = 2
_shown.maxstring = _shown.maxother = _shown.maxlong = 80


def _require_own_folder(place: str, run_folder: str) -> None:
    """Refuse a run folder that is the project itself or holds it, where records would lie among its files, or a file."""
    folder = resolve(run_folder).resolve() if run_folder.strip() else project_root()
    if project_root().resolve().is_relative_to(folder):
        raise ParameterError(
            '{place}: run_folder "{run_folder}" is the project folder or one above it. Give the run a folder '
            "of its own, such as results/mine.",
            place=place,
            run_folder=run_folder,
        )
    if file := next((path for path in (folder, *folder.parents) if path.is_file()), None):
        raise ParameterError(
            '{place}: run_folder "{run_folder}": {file} is a file. Give a folder.',
            place=place,
            run_folder=run_folder,
            file=relative(file),
        )

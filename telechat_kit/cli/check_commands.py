"""Commands on the environment: check the machine before a run, hash what a run reads."""

import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from telechat_kit.cli.operator_table import operator_table
from telechat_kit.cli.terminal import say
from telechat_kit.errors import CheckpointError, DataError, DeviceError
from telechat_kit.files import resolve
from telechat_kit.messages import LANGUAGES, marked, ngettext, shown
from telechat_kit.messages import gettext as _
from telechat_kit.translation import speaking
from telechat_kit.widths import padded, width, wrapped

if TYPE_CHECKING:
    from telechat_kit.environment import Check, OperatorTests
    from telechat_kit.model.hashes import FolderHashes

CHECK_SCHEMA = "telechat-kit/check/1"
HASH_SCHEMA = "telechat-kit/hash/1"
_TITLES = (marked("component"), marked("found"), marked("required"), marked("verdict"))
#: Of the columns, where there is room for them; in a narrow terminal the two in the middle share what is left
_WIDTHS = (16, 42, 40, 8)
#: Where the lines of advice begin: under `found`
_INDENT = " " * (_WIDTHS[0] + 2)
_GAPS = 2 * (len(_WIDTHS) - 1)
#: Most columns of a line of advice
_ADVICE = 98
#: Below this many columns of the terminal lines break wherever it likes
_NARROWEST = 60


@click.command(short_help="Say what is missing or wrong before a run does.")
@click.option(
    "--profile",
    type=click.Path(path_type=Path),
    help="Check for this profile of params/: its device, checkpoint, run folder. Default: those of 01_setup.",
)
@click.option("--device", help="auto, cpu, cuda:0, npu:0 or npu:0,npu:1, in place of the profile's.")
@click.option(
    "--operators",
    is_flag=True,
    help="Also try every operator that a run will call, each in a process of its own, against plain torch.",
)
@click.option(
    "--bundle",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write all of it into this .zip file as well, for somebody who helps from afar.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object in place of the table.")
def check(
    profile: Path | None, device: str | None, operators: bool, bundle: Path | None, as_json: bool
) -> None:
    """Say what is wrong before a run does: chip, driver, CANN, torch_npu, versions, memory, weights.

    Works without an NPU and with a broken installation. Exit codes: 0 all is fine, 1 something must be done,
    2 wrong input. A `warning` is no reason for 1.

    With `--operators` a second table says for each operator, at a token and at prompts of 10 to 2000: right (with the
    milliseconds), wrong, refused, crashed or silent. A run takes the slower way for what is not right; only where there
    is none the exit code is 1. It takes some minutes on a card, and needs the checkpoint's config.json.

    The file of `--bundle` holds the tables, npu-smi's outputs, version files, the end of CANN's log, variables of the
    stack, and run.json and setup.json of the run folder. No weights, no texts; home folders, the names of user and
    host, addresses and serial numbers are replaced.

    \b
    Examples:
      telechat-kit check
      telechat-kit check --profile params/telechat-7b-310p.yaml
      telechat-kit check --profile params/telechat-7b-310p.yaml --operators --bundle machine.zip
      telechat-kit check --device npu:0 --json
    """
    from telechat_kit import environment
    from telechat_kit.runs.profile import default_values, load_profile

    values = default_values("01_setup")
    if profile is not None:
        values |= load_profile(profile).for_notebook("01_setup")
    if device is not None:
        values["device"] = device
    values.pop("operators")  # the notebook's own wish
    rows = environment.check(**values)
    tested = _tested(values["checkpoint_path"], values["device"]) if operators else None
    report = as_json_object(rows, values["device"], tested)
    columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    say(report if as_json else as_table(rows, tested, columns))
    if bundle is not None:
        with speaking(LANGUAGES[0]):  # for somebody who helps from afar
            tables = {"check.txt": as_table(rows, tested), "check.json": report}
        names = environment.write_parcel(bundle, tables | _records(resolve(values["run_folder"])))
        told = _("written: {bundle} ({count} files)").format(bundle=bundle, count=len(names))
        say(told, err=True)
    sys.exit(1 if environment.to_do(rows) or (tested and tested.dead_ends()) else 0)


def _tested(checkpoint_path: str, device: str) -> "OperatorTests | None":
    """The operators tried, each named on the way; a device or a config.json that cannot be had is told and is no result."""
    from telechat_kit.environment import check_operators

    try:
        return check_operators(
            checkpoint_path,
            device,
            "always",
            progress=lambda name: say(_("trying {name}").format(name=name), err=True),
        )
    except (DeviceError, CheckpointError) as error:
        say(_("operators were not tried: {error}").format(error=error.shown()), err=True)
        return None


def _records(run_folder: Path) -> dict[str, str]:
    """What earlier runs left of the machine and of their failures."""
    paths = [run_folder / name for name in ("run.json", "setup.json")]
    return {path.name: path.read_text(encoding="utf-8", errors="replace") for path in paths if path.is_file()}


def as_table(
    checks: Sequence["Check"], tested: "OperatorTests | None" = None, columns: int | None = None
) -> str:
    """The table as text: a row a check, what to do on a line below it, a sentence at the end, and the operators.

    Args:
        columns: of the terminal that it has to fit; as wide as it likes by default.
    """
    widths = _widths(columns)
    lines = [*_cells(_TITLES, widths), *_cells(["-" * columns for columns in widths], widths)]
    for row in checks:
        lines += _cells((row.component, row.found, row.required, row.verdict), widths)
        if row.advice:
            room = _ADVICE if columns is None else min(_ADVICE, columns - len(_INDENT) - 3)
            advice = wrapped(shown(row.advice), room, break_long_words=False)
            lines += [f"{_INDENT}{'-> ' if i == 0 else '   '}{line}" for i, line in enumerate(advice)]
    count = _to_do(checks)
    told = ngettext("{count} row must be put right.", "{count} rows must be put right.", count)
    end = told.format(count=count) if count else _("Nothing must be done.")
    return "\n".join([*lines, "", end, *(["", operator_table(tested)] if tested else [])])


def _to_do(checks: Sequence["Check"]) -> int:
    from telechat_kit.environment import to_do

    return len(to_do(checks))


def _widths(columns: int | None) -> tuple[int, ...]:
    if columns is None or columns >= sum(_WIDTHS) + _GAPS:
        return _WIDTHS
    room = max(columns, _NARROWEST) - _WIDTHS[0] - _WIDTHS[3] - _GAPS
    return _WIDTHS[0], room - room // 2, room // 2, _WIDTHS[3]


def _cells(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    """The lines of one row in the language in force, each cell wrapped to the width of its column."""
    cells = [wrapped(shown(cell), columns) for cell, columns in zip(row, widths, strict=True)]
    lines = []
    for i in range(max(map(len, cells))):
        parts = [cell[i] if i < len(cell) else "" for cell in cells]
        lines.append("  ".join(padded(*pair) for pair in zip(parts, widths, strict=True)).rstrip())
    return lines


def as_json_object(checks: Sequence["Check"], device: str, tested: "OperatorTests | None" = None) -> str:
    """The rows for machines: `schema`, `device` as asked for, `to_do` (how many rows), `checks`, `operators` if tried."""
    rows = [asdict(row) for row in checks]
    count = _to_do(checks)
    report = {"schema": CHECK_SCHEMA, "device": device, "to_do": count, "checks": rows}
    if tested:
        report["operators"] = asdict(tested)
    return json.dumps(report, ensure_ascii=False, indent=2)


@click.command("hash", short_help="Hashes of a checkpoint folder and its files.")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object in place of the table.")
def hash_folder(folder: Path, as_json: bool) -> None:
    """Size and SHA-256 of every file of FOLDER, and the hashes of weights and tokenizer that records carry.

    \b
    Examples:
      telechat-kit hash models/telechat-7b
      telechat-kit hash models/telechat-7b --json
    """
    from telechat_kit.model.hashes import folder_hashes

    target = folder if folder.is_dir() else resolve(folder)
    if not target.is_dir():
        raise DataError("folder {folder} does not exist. Correct the path.", folder=folder)
    found = folder_hashes(target.absolute())
    if as_json:
        say(json.dumps({"schema": HASH_SCHEMA, **asdict(found)}, ensure_ascii=False, indent=2))
    else:
        say(_hash_table(found))


def _hash_table(found: "FolderHashes") -> str:
    head = _("bytes")
    name = _("file")
    lines = [f"{' ' * (15 - width(head))}{head}  {'sha256':64}  {name}"]
    lines += [f"{file.bytes:15,}  {file.sha256}  {file.name}" for file in found.files]
    problem = _("no whole checkpoint: {problem}").format(problem=shown(found.problem))
    hashes = (
        (_("weights"), found.weights or problem),
        (_("tokenizer"), found.tokenizer or _("no tokenizer files")),
    )
    lines += [f"{' ' * (15 - width(name))}{name}  {value}" for name, value in hashes]
    return "\n".join(lines)

"""The command line as a user meets it: help with examples, and wrong input told in one line."""

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path

import click
import nbformat
import pytest
from click.testing import CliRunner
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

import telechat_kit
from telechat_kit.cli import cli, main, result_commands, weight_commands
from telechat_kit.cli.check_commands import as_table
from telechat_kit.comparison.alignment import Tolerances
from telechat_kit.environment import Check
from telechat_kit.files import sha256
from telechat_kit.model.hashes import tokenizer_hash, weights_hash
from telechat_kit.quantization.formats import conversion
from telechat_kit.runs.profile import all_parameters

ROOT = Path(__file__).resolve().parents[1]
TINY = str(ROOT / "params" / "tiny.yaml")


def call(
    *arguments: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `telechat-kit` with these arguments."""
    monkeypatch.setattr(sys, "argv", ["telechat-kit", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr()
    return int(ended.value.code or 0), said.out, said.err


#: Seconds each, or hundreds of MB: a command imports them when it calls what needs them
HEAVY = {"torch", "transformers", "numpy", "pandas", "matplotlib", "papermill", "nbconvert"}
LOADED = """
import sys
from telechat_kit.cli import main
sys.argv[0] = "telechat-kit"
try:
    main()
finally:
    print("\\nloaded:", *sorted(set(sys.modules) & set("{}".split())), file=sys.stderr)
"""


def loaded_by(*arguments: str, environment: dict[str, str] | None = None) -> list[str]:
    """Which of the heavy packages a command has imported when it ends."""
    command = [sys.executable, "-c", LOADED.format(" ".join(HEAVY)), *arguments]
    ended = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env=os.environ | (environment or {}), check=False
    )
    return ended.stderr.rsplit("loaded:", 1)[1].split()


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["compare", "--help"], ["runn"], ["run"]])
def test_help_and_typing_errors_load_nothing_heavy(arguments: list[str]) -> None:
    assert loaded_by(*arguments) == []


def test_a_terminal_without_emoji_shows_their_codes(tmp_path: Path) -> None:
    profile = tmp_path / "测试😀.yaml"
    profile.write_text("run_folder: results/a😀\n", encoding="utf-8")
    ended = subprocess.run(
        [sys.executable, "-m", "telechat_kit", "run", str(profile), "--dry-run"],
        capture_output=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONIOENCODING": "gbk"},
        check=False,
    )
    assert ended.returncode == 0
    assert "测试\\U0001f600.yaml -> results/a\\U0001f600" in ended.stdout.decode("gbk")


def test_what_runs_notebooks_loads_neither_torch_nor_charts() -> None:
    """A process for each of several runs at a time: what it holds is missing to the kernels."""
    program = "import sys, telechat_kit.runs.execution; print(*sorted(set(sys.modules) & set(sys.argv[1:])))"
    ended = subprocess.run(
        [sys.executable, "-c", program, *sorted(HEAVY)], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert ended.stdout.split() == ["nbconvert", "papermill"]


def test_completion_loads_nothing_heavy() -> None:
    asked = {"_TELECHAT_KIT_COMPLETE": "bash_complete", "COMP_WORDS": "telechat-kit ex", "COMP_CWORD": "1"}
    assert loaded_by(environment=asked) == []


def test_a_command_that_works_loads_what_it_needs() -> None:
    """Else the tests above would show nothing."""
    assert "papermill" in loaded_by("params")


def test_choices_and_defaults_of_the_commands_are_those_of_the_verbs() -> None:
    assert (*conversion.FORMATS, conversion.UNQUANTIZED) == weight_commands.FORMATS
    assert weight_commands.NAMES == conversion.NAMES
    tolerances = (result_commands.KL_TOLERANCE, result_commands.AGREEMENT_TOLERANCE)
    assert tolerances == (Tolerances.kl_mean, Tolerances.top1_agreement)


@pytest.mark.parametrize("name", sorted(cli.commands))
def test_the_help_of_every_command_says_what_it_does_and_shows_an_example(name: str) -> None:
    shown = CliRunner().invoke(cli, [name, "--help"])
    assert shown.exit_code == 0
    assert f"telechat-kit {name}" in shown.output.split("Example", 1)[1]
    command = cli.commands[name]
    assert command.help
    assert all(option.help for option in command.params if isinstance(option, click.Option))


def test_the_help_lists_the_commands_and_the_exit_codes() -> None:
    shown = CliRunner().invoke(cli, ["--help"]).output
    assert all(f"  {name} " in shown for name in cli.commands)
    assert "Exit codes: 0 done, 1 a step failed, 2 wrong input, 4 folder in use, 130 interrupted" in shown
    assert CliRunner().invoke(cli, ["-h"]).output == shown


def test_the_version_is_that_of_the_package() -> None:
    assert (
        CliRunner().invoke(cli, ["--version"]).output == f"telechat-kit, version {telechat_kit.__version__}\n"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "no.yaml"], "profile no.yaml does not exist. Profiles here: "),
        (
            ["run", TINY, "-p", "quant_pth", "x"],
            'no notebook has a parameter "quant_pth". Did you mean "quant_path"?',
        ),
        (["run", TINY, "-p", "repeats", "many"], '-p repeats: "repeats" must be int'),
        (["run", TINY, "-p", "repeats", "[1"], '-p repeats: "[1" is not valid YAML'),
        (
            ["run", TINY, "-p", "run_folder", f"{__file__}/below"],
            "tests/test_cli.py is a file. Give a folder",
        ),
        (["run", TINY, "--only", "6"], 'no step is called "6". Steps: 01_setup, '),
        (["run", TINY, "--timeout", "4=soon"], '"soon" is no number of seconds above 0'),
        (["run", TINY, TINY], "two profiles have the same name"),
        (["hash", "no/folder"], "folder no/folder does not exist. Correct the path."),
        (["check", "--profile", "no.yaml"], "profile no.yaml does not exist. Profiles here: "),
        (["check", "--device", "tpu"], 'device "tpu" is unknown. Use auto, or one of cpu, cuda, npu'),
        (["html", "no.ipynb"], "no.ipynb cannot be read as a notebook"),
    ],
)
def test_wrong_input_is_one_line_on_stderr_and_exit_code_2(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = call(*arguments, monkeypatch=monkeypatch, capsys=capsys)
    assert code == 2
    assert out == ""
    assert err.startswith("Error: ")
    assert message in err
    assert err.count("\n") == 1


def test_a_missing_argument_is_told_with_the_usage(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = call("run", monkeypatch=monkeypatch, capsys=capsys)
    assert code == 2
    assert "Missing argument 'PROFILE...'" in err


def test_the_installed_command_says_a_wrong_path_without_a_traceback(tmp_path: Path) -> None:
    command = Path(sys.executable).with_name("telechat-kit")
    done = subprocess.run(
        [command, "run", "no.yaml"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("Error: profile no.yaml does not exist. Profiles here: ")
    assert "params/tiny.yaml" in done.stderr
    assert done.stderr.count("\n") == 1


def test_params_lists_every_parameter_with_type_default_help_and_notebooks() -> None:
    shown = CliRunner().invoke(cli, ["params"])
    assert shown.exit_code == 0
    for parameter in all_parameters().values():
        assert f"{parameter.name}: {parameter.type_name} = {parameter.default}\n" in shown.output
        assert f"    {parameter.help}  [{', '.join(parameter.notebooks)}]\n" in shown.output


@pytest.mark.parametrize("page", [None, "elsewhere/page.html"])
def test_html_turns_a_notebook_into_a_page(tmp_path: Path, page: str | None) -> None:
    output = new_output("execute_result", {"text/plain": "42"}, execution_count=1)
    cells = [new_markdown_cell("# The answer"), new_code_cell("6 * 7", execution_count=1, outputs=[output])]
    nbformat.write(new_notebook(cells=cells), tmp_path / "out.ipynb")
    target = tmp_path / (page or "out.html")
    arguments = ["html", str(tmp_path / "out.ipynb"), *([str(target)] if page else [])]
    shown = CliRunner().invoke(cli, arguments)
    assert shown.exit_code == 0
    assert shown.output == f"{target}\n"
    text = target.read_text(encoding="utf-8")
    assert "<title>The answer" in text
    assert "42" in text


def test_hash_lists_every_file_and_the_hashes_that_records_carry(tiny_folder: Path) -> None:
    shown = CliRunner().invoke(cli, ["hash", str(tiny_folder)])
    assert shown.exit_code == 0
    rows = {line.split()[-1]: line.split()[:-1] for line in shown.output.splitlines()}
    for path in tiny_folder.iterdir():
        assert rows[path.name] == [f"{path.stat().st_size:,}", sha256(path)]
    assert rows[weights_hash(tiny_folder)] == ["weights"]
    assert rows[tokenizer_hash(tiny_folder)] == ["tokenizer"]


def test_hash_in_json_holds_the_same(tiny_folder: Path) -> None:
    report = json.loads(CliRunner().invoke(cli, ["hash", str(tiny_folder), "--json"]).output)
    assert set(report) == {"schema", "files", "weights", "tokenizer", "problem"}
    assert report["weights"] == weights_hash(tiny_folder)
    assert {file["name"] for file in report["files"]} == {path.name for path in tiny_folder.iterdir()}
    assert all(set(file) == {"name", "bytes", "sha256"} for file in report["files"])


def test_hash_says_why_a_folder_has_no_hash_of_weights(tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((tiny_folder / "config.json").read_bytes())
    shown = CliRunner().invoke(cli, ["hash", str(tmp_path)])
    assert shown.exit_code == 0
    assert "no whole checkpoint: " in shown.output
    assert "holds no weights" in shown.output
    assert "no tokenizer files" in shown.output


HARNESS = """
import sys
from transformers import AutoConfig
def cli_evaluate():
    print(sys.argv, AutoConfig.for_model("telechat").model_type)
"""


def test_lm_eval_gets_every_argument_with_the_kit_registered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "lm_eval").mkdir()
    (tmp_path / "lm_eval" / "__init__.py").touch()
    (tmp_path / "lm_eval" / "__main__.py").write_text(HARNESS)
    (tmp_path / "lm_eval-0.4.13.dist-info").mkdir()
    (tmp_path / "lm_eval-0.4.13.dist-info" / "METADATA").write_text("Name: lm_eval\nVersion: 0.4.13\n")
    monkeypatch.syspath_prepend(tmp_path)
    arguments = ["--model", "hf", "--tasks=a,b", "--limit", "3", "--help", "-h", "--", "x"]
    code, out, _ = call("lm-eval", *arguments, monkeypatch=monkeypatch, capsys=capsys)
    assert (code, out) == (0, f"{['lm_eval', *arguments]} telechat\n")


def test_lm_eval_says_how_to_get_the_harness(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.version", missing)
    code, _, error = call("lm-eval", "-h", monkeypatch=monkeypatch, capsys=capsys)
    assert code == 2 and 'pip install "telechat-kit[tasks]"' in error


@pytest.mark.parametrize(
    "words", [["-p", "level", "L1"], ["-p", "level=L1"], ["-plevel=L1"], ["--parameter=level=L1"]]
)
def test_a_parameter_is_two_words_or_one_with_an_equals_sign(words: list[str], tmp_path: Path) -> None:
    folder = f"run_folder={tmp_path / 'a=b'}"
    ended = CliRunner().invoke(cli, ["run", TINY, *words, "-p", folder, "--dry-run"])
    assert ended.exit_code == 0, ended.output
    assert f"-> {tmp_path / 'a=b'}" in ended.output
    wrong = CliRunner().invoke(cli, ["run", TINY, "-p", "levle=L1", "--dry-run"])
    assert 'Did you mean "level"' in str(wrong.exception)


def test_list_and_open_find_runs_by_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    listed = CliRunner().invoke(cli, ["list", "results/reference"])
    assert listed.exit_code == 0
    head, row = listed.output.splitlines()
    assert head.split() == ["run", "state", "started", "(UTC)", "limits"]
    assert row.split()[:2] == ["results/reference", "complete"]
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda address: bool(opened.append(address)))
    ended = CliRunner().invoke(cli, ["open", "reference"])
    assert ended.exit_code == 0
    assert "results/reference/report.html" in ended.output
    assert "No browser can be started here" in ended.output
    assert opened == [(ROOT / "results" / "reference" / "report.html").as_uri()]
    missing = CliRunner().invoke(cli, ["open", "nowhere"])
    assert "nowhere does not exist, nor results/nowhere" in str(missing.exception)


def test_check_fits_a_terminal_of_80_columns() -> None:
    rows = [
        Check("device", "cpu: " + "a processor " * 8, "auto: npu, else cuda, else cpu", "wrong", "Do " * 60)
    ]
    assert max(map(len, as_table(rows, columns=80).splitlines())) <= 80
    assert max(map(len, as_table(rows).splitlines())) > 80

"""Profiles: what is wrong with one is said before anything runs, with file, line and the remedy."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from telechat_kit.errors import ParameterError
from telechat_kit.runs.parameters_cell import TYPES
from telechat_kit.runs.profile import all_parameters, declared_parameters, default_values, load_profile
from telechat_kit.runs.state import STEPS
from telechat_kit.texts import text_names

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PROFILES = sorted((ROOT / "params").glob("*.yaml"))


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Write a profile outside the project and give its path."""
    monkeypatch.chdir(tmp_path)

    def write_profile(text: str) -> Path:
        path = tmp_path / "mine.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write_profile


def refusal(path: Path, *overrides: tuple[str, str]) -> str:
    with pytest.raises(ParameterError) as caught:
        load_profile(path, overrides)
    return str(caught.value)


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.stem)
def test_every_shipped_profile_loads(path: Path) -> None:
    profile = load_profile(path)
    assert profile.values == yaml.safe_load(path.read_text(encoding="utf-8"))
    assert profile.run_folder == f"results/{path.stem}"


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.stem)
def test_the_data_files_of_a_shipped_profile_are_there(path: Path) -> None:
    values = load_profile(path).values
    for key in ("jsonl_path", "calibration_path", "text_path"):
        for name in text_names(values.get(key) or "pydoc_data.topics"):
            if name not in ("kit", "pydoc_data.topics"):
                assert (ROOT / name).is_file(), f"{path.name}: {key}"


def test_values_come_with_their_types(write: Any) -> None:
    values = load_profile(write("seed: 3\nrepetition_penalty: 1\ninput_lengths: [4, 5]\nlevel: L0\n")).values
    assert values == {
        "seed": 3,
        "repetition_penalty": 1,
        "input_lengths": [4, 5],
        "level": "L0",
        "run_folder": "results/mine",
    }


def test_a_run_folder_in_the_profile_is_kept(write: Any) -> None:
    assert load_profile(write("run_folder: /data/out\n")).run_folder == "/data/out"


def test_an_unknown_key_names_the_nearest_one_with_file_and_line(write: Any) -> None:
    path = write("# comment\nseed: 1\n\nquant_pth: models/x\n")
    assert refusal(path) == (
        f'{path}, line 4: no notebook has a parameter "quant_pth". Did you mean "quant_path"?'
    )


def test_an_unknown_key_without_a_near_one_says_where_all_are_listed(write: Any) -> None:
    message = refusal(write("zzzzzz: 1\n"))
    assert 'no notebook has a parameter "zzzzzz". `telechat-kit params` lists all parameters.' in message


@pytest.mark.parametrize("key", ["1", "on", "~", "2024-01-01", "1.5"])
def test_a_key_that_yaml_reads_as_no_text_is_named_with_its_line(write: Any, key: str) -> None:
    assert "mine.yaml, line 2: no notebook has a parameter" in refusal(write(f"seed: 1\n{key}: 2\n"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "seed: one",
            "\"seed\" must be int (draws calibration samples and evaluation sequences), got str 'one'",
        ),
        ("seed: 1.5", '"seed" must be int'),
        ("seed: true", '"seed" must be int'),
        ('seed: "1"', '"seed" must be int'),
        ("level: 5", '"level" must be str'),
        ("level:", '"level" must be str'),
        ("group_fallback: 1", '"group_fallback" must be bool'),
        ("repetition_penalty: 1e-3x", '"repetition_penalty" must be float'),
        ("input_lengths: 10", '"input_lengths" must be list[int]'),
        ("input_lengths: [10, ten]", '"input_lengths" must be list[int]'),
        ("level: {a: 1}", '"level" must be str'),
    ],
)
def test_a_value_of_the_wrong_type_says_what_is_expected(write: Any, line: str, message: str) -> None:
    path = write(f"device: cpu\n{line}\n")
    found = refusal(path)
    assert found.startswith(f"{path}, line 2: ")
    assert message in found


def test_a_key_given_twice_is_refused_with_both_lines(write: Any) -> None:
    message = refusal(write("seed: 1\nlevel: L0\nseed: 2\n"))
    assert 'mine.yaml, line 3: "seed" stands in line 1 already' in message


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("level: " + "[" * 2000, "not valid YAML: nested too deep"),
        ("level: 2024-13-45", "not valid YAML: month must be in 1..12"),
        ("seed: " + "9" * 5000, "not valid YAML: Exceeds the limit"),
        ("seed: 99999999999999999999", '"seed" is beyond 9,223,372,036,854,775,807'),
        ('level: "\\ud83d"', '"level" holds a character that no text has'),
        ('run_folder: "a\\0b"', '"run_folder" holds a character that no text has'),
        ("repetition_penalty: .nan", '"repetition_penalty" must be float'),
        ("level: !!python/object:os.system x", "not valid YAML: could not determine a constructor"),
        ("run_folder: .", 'run_folder "." is the project folder or one above it'),
        ("run_folder: ''", 'run_folder "" is the project folder or one above it'),
        ("run_folder: /", 'run_folder "/" is the project folder or one above it'),
        ("run_folder: results/../..", "is the project folder or one above it"),
    ],
)
def test_values_that_no_run_can_use_are_refused_by_line(write: Any, line: str, message: str) -> None:
    found = refusal(write(f"{line}\n"))
    assert message in found
    assert len(found) < 600


def test_anchors_that_explode_do_so_nowhere_not_even_in_the_message(write: Any) -> None:
    bomb = "&a [x, x, x, x, x, x, x, x, x]"
    for old, new in zip("abcdefg", "bcdefgh", strict=True):
        bomb = f"&{new} [{bomb}{f', *{old}' * 8}]"
    message = refusal(write(f"level: {bomb}\n"))
    assert '"level" must be str' in message
    assert len(message) < 600


def test_numbers_with_an_exponent_are_floats_and_names_keep_their_number_sign(write: Any) -> None:
    path = write("repetition_penalty: 1e-3\n")
    assert load_profile(path).values["repetition_penalty"] == 1e-3
    values = load_profile(
        path, [("repetition_penalty", "2E0"), ("run_folder", "out #1"), ("level", "'L0' # why")]
    ).values
    assert (values["repetition_penalty"], values["run_folder"], values["level"]) == (2.0, "out #1", "L0")


def test_without_notebooks_in_sight_the_message_says_where_to_start(
    write: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write("seed: 1\n")
    for module in ("telechat_kit.runs.profile", "telechat_kit.files"):
        monkeypatch.setattr(f"{module}.project_root", lambda: tmp_path)
    for ask in (lambda: load_profile(path), lambda: default_values("01_setup")):
        with pytest.raises(
            ParameterError,
            match="start in the folder that holds notebooks/ and params/, or make one with `telechat-kit init",
        ):
            ask()


def test_an_unknown_profile_lists_the_profiles(tmp_path: Path) -> None:
    message = refusal(tmp_path / "no.yaml")
    assert f"profile {tmp_path / 'no.yaml'} does not exist. Profiles here: " in message
    assert all(f"params/{path.name}" in message for path in PROFILES)


@pytest.mark.parametrize(
    "text", ["seed: [1, 2\nlevel: L0\n", "seed: 1\n  level: L0\n", "a: b: c\n", "\tseed: 1\n"]
)
def test_broken_yaml_names_the_line(write: Any, text: str) -> None:
    message = refusal(write(text))
    assert "mine.yaml is not valid YAML" in message
    assert "line" in message
    assert "\n" not in message


@pytest.mark.parametrize("text", ["", "# only a comment\n", "- seed\n- level\n", "just text\n"])
def test_a_file_that_is_no_list_of_keys_is_refused(write: Any, text: str) -> None:
    assert "mine.yaml is no flat list of `key: value` lines." in refusal(write(text))


def test_a_profile_that_is_not_utf8_or_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "gb.yaml").write_bytes("level: 电信\n".encode("gb18030"))
    assert "gb.yaml cannot be read" in refusal(tmp_path / "gb.yaml")
    assert "cannot be read" in refusal(tmp_path)


def test_overrides_are_read_as_yaml_and_win_over_the_file(write: Any) -> None:
    path = write("seed: 1\nlevel: L5\n")
    overrides = [
        ("seed", "7"),
        ("input_lengths", "[1, 2]"),
        ("group_fallback", "false"),
        ("run_folder", "results/other"),
    ]
    assert load_profile(path, overrides).values == {
        "seed": 7,
        "level": "L5",
        "input_lengths": [1, 2],
        "group_fallback": False,
        "run_folder": "results/other",
    }


def test_an_override_can_mend_what_the_file_has_wrong(write: Any) -> None:
    assert load_profile(write("seed: one\n"), [("seed", "1")]).values["seed"] == 1


def test_a_wrong_override_is_named_as_one(write: Any) -> None:
    path = write("seed: 1\n")
    assert refusal(path, ("sed", "1")) == '-p sed: no notebook has a parameter "sed". Did you mean "seed"?'
    assert refusal(path, ("seed", "x")).startswith('-p seed: "seed" must be int')
    message = refusal(path, ("input_lengths", "[1, 2"))
    assert message.startswith('-p input_lengths: "[1, 2" is not valid YAML')
    assert "\n" not in message


def test_a_limit_that_cannot_be_read_is_told_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text("level: L0\nlimits:\n  - kl_mean < 0.03\n  - perplexity < 20\n")
    with pytest.raises(ParameterError, match=r'own\.yaml, line 2: .*no limit can be set on "perplexity"'):
        load_profile(path)
    path.write_text("limits: [kl_mean < 0.03]\n")
    assert load_profile(path).values["limits"] == ["kl_mean < 0.03"]


def test_a_notebook_gets_just_what_it_declares() -> None:
    profile = load_profile(ROOT / "params" / "demo.yaml")
    assert set(profile.for_notebook("05_report")) == {"run_folder", "limits"}
    assert set(profile.for_notebook("01_setup")) == {
        "checkpoint_path",
        "embedded_model",
        "device",
        "run_folder",
    }
    for step in STEPS:
        declared = declared_parameters(ROOT / "notebooks" / f"{step.name}.ipynb")
        for key, value in profile.for_notebook(step.name).items():
            assert key in declared
            assert value == profile.values[key]
    passed = {key for step in STEPS for key in profile.for_notebook(step.name)}
    assert passed == set(profile.values)


def test_every_parameter_has_a_type_a_default_and_a_help_text() -> None:
    for path in NOTEBOOKS:
        for name, entry in declared_parameters(path).items():
            where = f"{path.stem}: {name}"
            assert entry.type_name in TYPES, where
            assert entry.help, where
            assert type(entry.default).__name__ == entry.type_name.split("[")[0], where


def test_a_parameter_means_the_same_in_every_notebook() -> None:
    seen: dict[str, tuple[str, str]] = {}
    for path in NOTEBOOKS:
        for name, entry in declared_parameters(path).items():
            meaning = (entry.type_name, entry.written, entry.help)
            assert seen.setdefault(name, meaning) == meaning, f"{path.stem}: {name}"


def test_all_parameters_names_the_notebooks_that_take_each() -> None:
    parameters = all_parameters()
    assert parameters["run_folder"].notebooks == tuple(path.stem for path in NOTEBOOKS)
    assert parameters["level"].notebooks == ("02_quantize",)
    assert parameters["jsonl_path"].notebooks == ("02_quantize", "03_precision")


def test_the_names_that_users_of_the_guide_know_are_there() -> None:
    names = {"level", "jsonl_path", "checkpoint_path", "model_path", "quant_path"}
    assert names <= set(all_parameters())


def test_a_notebook_added_to_the_project_brings_its_parameters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks")
    (tmp_path / "params").mkdir()
    source = (ROOT / "notebooks" / "05_report.ipynb").read_text().replace("run_folder: str", "colour: str")
    (tmp_path / "notebooks" / "06_more.ipynb").write_text(source)
    monkeypatch.chdir(tmp_path)
    assert all_parameters()["colour"].notebooks == ("06_more",)

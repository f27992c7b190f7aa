"""Sweeps: which runs a file means, that each has a place of its own, and the page of loss against speed."""

import shutil
import sys
from pathlib import Path

import pytest

from telechat_kit.errors import ParameterError
from telechat_kit.reports.sweep_page import sweep_rows, write_sweep
from telechat_kit.runs.state import load_state
from telechat_kit.runs.sweep import folders, load_sweep, run_sweep, sweep_jobs

SWEEP = """
profiles: [params/small.yaml]
parameters:
  repeats: [3, 5]
  title: ["a b", "c"]
results: swept
"""


@pytest.fixture
def sweep_file(project: Path) -> Path:
    path = project / "sweep.yaml"
    path.write_text(SWEEP)
    return path


def test_every_combination_is_a_run_with_folder_and_weights_of_its_own(sweep_file: Path) -> None:
    jobs = sweep_jobs(load_sweep(sweep_file))
    assert [job.label for job in jobs] == [
        "small_repeats-3_title-a-b",
        "small_repeats-3_title-c",
        "small_repeats-5_title-a-b",
        "small_repeats-5_title-c",
    ]
    values = jobs[0].load().values
    assert (values["repeats"], values["title"]) == (3, "a b")
    assert values["run_folder"] == "swept/small_repeats-3_title-a-b"
    assert len({job.load().values["quant_path"] for job in jobs}) == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", "is no flat list of `key: value` lines"),
        ("a: " + "[" * 3000, "not valid YAML: nested too deep"),
        (SWEEP.replace("[3, 5]", "[[[1]]]"), r"parameters\.repeats\.0"),
        (SWEEP + "jobs: 3", "jobs: a sweep has"),
        (SWEEP.replace("[3, 5]", "3"), r"parameters\.repeats: "),
        (SWEEP.replace("[3, 5]", "[]"), "repeats is an empty list"),
        (SWEEP.replace("repeats", "repeat"), 'Did you mean "repeats"'),
        (SWEEP.replace("[3, 5]", "[many]"), '"repeats" must be int'),
        (SWEEP.replace("repeats: [3, 5]", "run_folder: [a, b]"), "cannot vary run_folder"),
    ],
)
def test_a_wrong_sweep_is_refused_before_anything_runs(sweep_file: Path, text: str, message: str) -> None:
    sweep_file.write_text(text)
    with pytest.raises(ParameterError, match=message):
        sweep_jobs(load_sweep(sweep_file))


def test_a_sweep_runs_and_is_resumed(sweep_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep_file.write_text(SWEEP.replace("[3, 5]", "[3]").replace('["a b", "c"]', "[c]"))
    sweep = load_sweep(sweep_file)
    (label,) = folders(sweep)
    assert run_sweep(sweep) == {label: 0}
    capsys.readouterr()
    state = load_state(folders(sweep)[label])
    assert state is not None
    assert {step.status for step in state.steps} == {"completed"}


def test_without_ray_its_option_says_what_to_install(
    sweep_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ParameterError, match=r"pip install 'telechat-kit\[ray\]'.*leave out --ray"):
        run_sweep(load_sweep(sweep_file), ray=True)


def test_the_front_holds_what_no_other_run_beats_in_both(tiny_run: Path, tmp_path: Path) -> None:
    places = {}
    for name in ("one", "same"):
        places[name] = Path(shutil.copytree(tiny_run, tmp_path / name))
    rows = sweep_rows({**places, "gone": tmp_path / "gone"})
    assert [found.best for found in rows] == [True, True, False]
    assert rows[2].point is None


def test_the_page_shows_every_run_and_names_the_unfinished(tiny_run: Path, tmp_path: Path) -> None:
    page = write_sweep({"done": tiny_run, "gone": tmp_path / "gone"}, tmp_path / "sweep")
    assert "Not finished: gone." in page.read_text()
    assert "<figure><svg" in page.read_text()
    assert (page.parent / "sweep.csv").read_text().count("\n") == 3
    assert "| done" in (page.parent / "sweep.md").read_text()


def test_the_sweeps_that_come_with_the_kit_mean_six_runs_each() -> None:
    for path in (Path(__file__).resolve().parents[2] / "params" / "sweeps").glob("*.yaml"):
        assert len(sweep_jobs(load_sweep(path))) == 6

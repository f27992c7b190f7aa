"""Sweeps: which runs a file means, that each has a place of its own, and the page of loss against speed."""

import csv
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from bs4 import BeautifulSoup

from telechat_kit.comparison.changes import figures, worst_loss
from telechat_kit.comparison.run_data import read_run_data
from telechat_kit.errors import ParameterError
from telechat_kit.reports.sweep_page import sweep_result, write_sweep
from telechat_kit.runs.state import SCHEMA, RunState, load_state
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


def like(
    run: Path, target: Path, kl: float, speed: float, wobble: float = 0.001, machine: float = 1.0
) -> Path:
    """A copy of a run whose KL on every text and whose W8A8 speed are multiplied, its repeats apart by `wobble`.

    `machine`: how many times as fast all was, float too.
    """
    shutil.copytree(run, target)
    record = json.loads((target / "precision.json").read_text())
    for found in (record["divergence"], *(kind["figures"] for kind in record["kinds"])):
        found["kl_mean"] = {key: value * kl for key, value in found["kl_mean"].items()} | {"coverage": 0.95}
        for row in found["by_sequence"]:
            row[2] *= kl
    (target / "precision.json").write_text(json.dumps(record))
    rows = [json.loads(line) for line in (target / "samples.jsonl").read_text().splitlines()]
    for row in rows:
        row["seconds"] = (1 + wobble * row["repeat"]) / (speed if row["precision"] == "w8a8" else 1) / machine
    (target / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    timed = json.loads((target / "performance.json").read_text())
    for case in timed["cases"]:
        tokens = case["output_tokens"] * (speed if case["precision"] == "w8a8" else 1) * machine
        ends = {"low": tokens / (1 + 2 * wobble), "high": tokens}
        case["tokens_per_second"] = {"value": tokens / (1 + wobble), "coverage": 0.75, **ends}
    (target / "performance.json").write_text(json.dumps(timed))
    return target


def test_a_run_is_beaten_only_beyond_the_intervals(tiny_run: Path, tmp_path: Path) -> None:
    folders = {
        name: like(tiny_run, tmp_path / name, *how)
        for name, how in {
            "base": (1.0, 1.0),
            "same": (1.0, 1.0005),  # faster by less than its repeats differ
            "better": (0.5, 2.0),
            "trade": (0.25, 1.0),
        }.items()
    }
    result = sweep_result({**folders, "gone": tmp_path / "gone"})
    beaten = {row.label: row.beaten_by for row in result.rows}
    assert beaten == {
        "base": ["better", "trade"],
        "same": ["better", "trade"],
        "better": [],
        "trade": [],
        "gone": [],
    }
    assert [row.label for row in result.unbeaten] == ["better", "trade"]
    assert result.title.startswith("2 of 4 runs are beaten by none")


def test_a_run_of_a_quieter_hour_is_not_better(tiny_run: Path, tmp_path: Path) -> None:
    """All of it was twice as fast, float too: W8A8 over float is what it was."""
    folders = {
        "busy": like(tiny_run, tmp_path / "busy", 1.0, 2.0),
        "quiet": like(tiny_run, tmp_path / "quiet", 1.0, 2.0, machine=2.0),
        "faster": like(tiny_run, tmp_path / "faster", 1.0, 3.0, machine=0.25),
    }
    result = sweep_result(folders)
    assert result.speed == "speed_over_float"
    assert {row.label: row.beaten_by for row in result.rows} == {
        "busy": ["faster"],
        "quiet": ["faster"],
        "faster": [],
    }
    page = write_sweep(folders, tmp_path / "sweep").read_text()
    assert "the state of the machine while a run was timed cancels out" in page
    # on two machines the ratio says nothing of which is faster: there tokens per second decide
    record = json.loads((folders["faster"] / "performance.json").read_text())
    record["conditions"]["device_name"] = "another"
    (folders["faster"] / "performance.json").write_text(json.dumps(record))
    result = sweep_result(folders)
    assert result.speed == "tokens_per_second"
    assert result.rows[2].beaten_by == ["busy", "quiet"]


def test_runs_that_cannot_be_told_apart_are_not_called_best(tiny_run: Path, tmp_path: Path) -> None:
    folders = {name: like(tiny_run, tmp_path / name, 1.0, 1.0, 0.3) for name in ("one", "two")}
    assert sweep_result(folders).title == "None of 2 runs is shown to be better than another"
    page = write_sweep(folders, tmp_path / "sweep").read_text()
    assert "is shown to be better than another" in page
    assert '<figure tabindex="0"><svg' in page
    assert "best trade" not in page


def test_runs_of_other_models_are_not_set_against_each_other(tiny_run: Path, tmp_path: Path) -> None:
    one, two = like(tiny_run, tmp_path / "one", 1.0, 1.0), like(tiny_run, tmp_path / "two", 0.1, 9.0)
    record = json.loads((two / "precision.json").read_text())
    record["conditions"]["hashes"]["float_weights"] = "f" * 64
    (two / "precision.json").write_text(json.dumps(record))
    result = sweep_result({"one": one, "two": two})
    assert [row.beaten_by for row in result.rows] == [[], []]
    assert set(result.apart.values()) == {"other model"}
    page = write_sweep({"one": one, "two": two}, tmp_path / "sweep")
    assert "1 of the pairs of runs do not compare: other model." in page.read_text()


def test_the_loss_is_that_of_the_text_that_costs_most(tiny_run: Path) -> None:
    found = figures(read_run_data(tiny_run))
    means = {name: row.estimate.value for name, row in found.items() if name.startswith("kl_mean")}
    assert len(means) == 6
    assert worst_loss([found, found]) == max(means, key=lambda name: means[name])
    own_text_only = {name: row for name, row in found.items() if "[" not in name}
    assert worst_loss([found, own_text_only]) == "kl_mean"


def test_the_page_shows_state_parameters_and_a_link_for_each_run(tiny_run: Path, tmp_path: Path) -> None:
    results = tmp_path / "sweep"
    for name, level in (("a", "L0"), ("=b", "L2")):
        folder = Path(shutil.copytree(tiny_run, results / name))
        state = RunState(SCHEMA, "params/tiny.yaml", {"level": level, "seed": 0}, {})
        for step in state.steps:
            step.status, step.key = "completed", "0"
        state.save(folder)
    page = write_sweep({"a": results / "a", "=b": results / "=b", "gone": results / "gone"}, results)
    soup = BeautifulSoup(page.read_text(), "html.parser")
    assert "Not finished: gone." in soup.get_text()
    rows = [[cell.get_text() for cell in row.find_all(["th", "td"])] for row in soup.find_all("tr")]
    assert rows[0][:3] == ["run", "level", "state"]
    assert [row[:3] for row in rows[1:]] == [
        ["a", "L0", "complete"],
        ["=b", "L2", "complete"],
        [
            "gone",
            "–",
            "not begun",
        ],
    ]
    assert [str(a["href"]) for a in soup.select("td a")] == ["a/report.html", "%3Db/report.html"]
    data = list(csv.DictReader((results / "sweep.csv").read_text().splitlines()))
    assert [row["run"] for row in data] == ["a", "'=b", "gone"]
    assert float(data[0]["kl_mean_low"]) <= float(data[0]["kl_mean"]) <= float(data[0]["kl_mean_high"])
    assert "| a " in (results / "sweep.md").read_text()


def test_the_sweeps_that_come_with_the_kit_mean_six_runs_each() -> None:
    for path in (Path(__file__).resolve().parents[2] / "params" / "sweeps").glob("*.yaml"):
        assert len(sweep_jobs(load_sweep(path))) == 6


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"seed": list(range(2000)), "repeats": list(range(1, 1000))}, "a sweep of 1,998,000 runs: at most 1,000"),
        ({"level": ["L0", "L2", "L0"]}, r"parameters\.level: one value stands there twice"),
    ],
)  # fmt: skip
def test_a_sweep_without_end_or_of_the_same_run_twice_is_refused(
    values: dict[str, list[Any]], told: str, tmp_path: Path
) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text(
        json.dumps({"profiles": ["params/tiny.yaml"], "parameters": values, "results": "results/s"})
    )
    with pytest.raises(ParameterError, match=told):
        sweep_jobs(load_sweep(path))

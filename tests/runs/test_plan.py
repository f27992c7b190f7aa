"""What a run would do and why, and runs of a part of the steps."""

import json
from pathlib import Path

import pytest
from small_project import PARAMETERS, run, started

from telechat_kit.errors import ParameterError
from telechat_kit.runs.plan import Selection, content_parts, find_step, plan
from telechat_kit.runs.profile import load_profile
from telechat_kit.runs.state import load_state

ROOT = Path(__file__).resolve().parents[2]
ALL = list(PARAMETERS)


def planned(root: Path, *overrides: tuple[str, str], **selection: object) -> dict[str, tuple[str, str]]:
    profile = load_profile(root / "params" / "small.yaml", overrides)
    found = plan(profile, root / "out", load_state(root / "out"), Selection(**selection))  # type: ignore[arg-type]
    return {decision.step.name: (decision.action, decision.reason) for decision in found}


def test_nothing_changed_means_everything_is_kept(project: Path) -> None:
    assert planned(project) == dict.fromkeys(ALL, ("keep", "unchanged"))


def test_a_changed_parameter_is_named_with_both_values_and_what_follows_may_run(project: Path) -> None:
    found = planned(project, ("calibration_path", "other.txt"))
    assert found["01_setup"] == ("keep", "unchanged")
    action, reason = found["02_quantize"]
    assert action == "run"
    assert "parameter calibration_path 'params/data/lines.txt' -> 'other.txt'" in reason
    assert found["03_precision"] == ("perhaps", "reads quantized, which may change")
    assert found["04_performance"][0] == "keep"
    assert found["05_report"][0] == "perhaps"


def test_a_changed_notebook_a_lost_file_and_a_broken_step_are_told_apart(project: Path) -> None:
    path = project / "notebooks" / "01_setup.ipynb"
    path.write_text(path.read_text().replace("set-up broken", "broken set-up"))
    (project / "out" / "answers.jsonl").unlink()
    state = load_state(project / "out")
    assert state is not None
    state.step("04_performance").status = "running"
    state.save(project / "out")
    found = planned(project)
    assert found["01_setup"] == ("run", "changed: the notebook")
    assert found["03_precision"] == ("run", "answers.jsonl is missing")
    assert found["04_performance"] == ("run", "the last run left it running")


def test_a_report_whose_limits_look_at_another_run_is_out_of_date_when_that_changes(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "performance.json").write_text("{}")
    limits = json.dumps([f"tokens_per_second > 0.9x {other}", "tokens_per_second > 1x float"])
    profile = load_profile(ROOT / "params" / "tiny.yaml", [("limits", limits)])
    before = content_parts(find_step("5"), profile, tmp_path)
    assert before == content_parts(find_step("5"), profile, tmp_path)
    (other / "performance.json").write_text('{"faster": true}')
    after = content_parts(find_step("5"), profile, tmp_path)
    assert [name for name in after if before[name] != after[name]] == [f"content of limits {other}"]


def test_a_folder_copied_from_another_machine_is_run_again(project: Path) -> None:
    """Its speeds are not those of this machine."""
    path = project / "out" / "run.json"
    state = load_state(project / "out")
    assert state is not None
    here = state.steps[0].parts["the machine"]
    path.write_text(path.read_text().replace(here, "Another machine"))
    for step in state.steps:  # keys are those of the other machine
        path.write_text(path.read_text().replace(str(step.key), "0" * 64))
    assert planned(project)["04_performance"] == ("run", "changed: the machine")


def test_a_plan_runs_nothing(project: Path) -> None:
    before = (project / "out" / "run.json").read_bytes()
    assert planned(project, fresh=True) == dict.fromkeys(ALL, ("run", "asked for afresh"))
    assert started(project) == []
    assert (project / "out" / "run.json").read_bytes() == before


@pytest.mark.parametrize("name", ["3", "03", "precision", "03_precision"])
def test_a_step_answers_to_its_number_and_its_word(name: str) -> None:
    assert find_step(name).name == "03_precision"


def test_an_unknown_step_is_named_before_anything_runs(project: Path) -> None:
    with pytest.raises(ParameterError, match=r'no step is called "quant".*02_quantize'):
        run(only=("quant",))
    assert started(project) == []


def test_only_and_from_leave_the_other_steps_as_they_are(project: Path) -> None:
    assert run(("repeats", "9"), only=("3", "report"), fresh=True).exit_code == 0
    assert started(project) == ["03_precision", "05_report"]
    found = planned(project, ("repeats", "9"), start="5")
    assert found["04_performance"] == (
        "leave",
        "not asked for; out of date: changed: parameter repeats 3 -> 9",
    )
    assert run(("repeats", "9"), start="4").exit_code == 0
    assert started(project) == ["04_performance"]  # which measured the same, so the report is as it was
    assert planned(project, ("repeats", "9")) == dict.fromkeys(ALL, ("keep", "unchanged"))


def test_one_step_alone_runs_in_an_empty_folder(project: Path) -> None:
    outcome = run(("run_folder", "other"), only=("1",))
    assert outcome.exit_code == 0
    state = load_state(project / "other")
    assert state is not None
    assert [step.status for step in state.steps] == ["completed", *["skipped"] * 4]


def test_a_changed_text_of_the_kit_is_noticed(project: Path) -> None:
    """`kit` names no file by itself, so its content has to be looked for."""
    texts = project / "params" / "data" / "texts" / "calibration"
    texts.mkdir(parents=True)
    (texts / "zh.jsonl").write_text('{"input": "甲"}\n')
    profile = load_profile(
        project / "params" / "small.yaml", [("calibration_path", "kit, params/data/lines.txt")]
    )
    step = find_step("02")
    before = content_parts(step, profile, project / "out")
    assert content_parts(step, profile, project / "out") == before
    (texts / "zh.jsonl").write_text('{"input": "乙"}\n')
    after = content_parts(step, profile, project / "out")
    assert [name for name in after if after[name] != before[name]] == [
        "content of calibration_path kit, params/data/lines.txt"
    ]

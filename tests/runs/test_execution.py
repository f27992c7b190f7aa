"""Runs of a small project: what is run, what is kept, and what a failure leaves behind."""

import _thread
import json
import sys
import threading
import time
from pathlib import Path

import nbformat
import pytest
import yaml
from small_project import PARAMETERS, run, started

from telechat_kit.cli import main
from telechat_kit.errors import DataError, KitError
from telechat_kit.files import sha256
from telechat_kit.manifest import read_manifest, run_files
from telechat_kit.runs.execution import run_profile
from telechat_kit.runs.plan import content_key
from telechat_kit.runs.profile import load_profile
from telechat_kit.runs.state import STEPS, load_state

ALL = list(PARAMETERS)
SLOW = "04_performance"


def statuses(root: Path) -> dict[str, str]:
    steps = json.loads((root / "out" / "run.json").read_text())["steps"]
    return {step["name"]: step["status"] for step in steps}


def results(root: Path) -> dict[str, str]:
    """Hashes of what a good run leaves, without the state, the manifest and the pages of failures."""
    left_out = ("run.json", "params.yaml", "manifest.json", "started.log")
    return {
        path.name: sha256(path)
        for path in (root / "out").iterdir()
        if ".failed." not in path.name and path.name not in left_out
    }


def keys(root: Path) -> dict[str, str]:
    """Content keys of all steps, computed anew from what is on disk."""
    path = root / "params" / "small.yaml"
    return {step.name: content_key(step, load_profile(path), root / "out") for step in STEPS}


def changed(before: dict[str, str], after: dict[str, str]) -> list[str]:
    return [name for name in before if before[name] != after[name]]


def test_all_steps_run_in_order_and_leave_notebook_page_and_record(finished_project: Path) -> None:
    out = finished_project / "out"
    assert (out / "started.log").read_text().split() == ALL
    assert statuses(finished_project) == dict.fromkeys(ALL, "completed")
    for step in STEPS:
        assert {f"{step.name}.ipynb", f"{step.name}.html", *step.writes} <= {p.name for p in out.iterdir()}
    assert not list(out.glob(".*"))
    assert not list(finished_project.glob("kernel*"))


def test_executed_notebooks_do_not_name_the_folder_of_the_machine(finished_project: Path) -> None:
    for step in STEPS:
        text = (finished_project / "out" / f"{step.name}.ipynb").read_text(encoding="utf-8")
        assert str(finished_project) not in text
        assert (
            nbformat.reads(text, as_version=4).metadata["papermill"]["input_path"]
            == f"notebooks/{step.name}.ipynb"
        )


def test_the_state_tells_times_keys_versions_and_parameters(finished_project: Path) -> None:
    state = load_state(finished_project / "out")
    assert state is not None
    assert all(step.key and step.started and step.seconds and step.failure is None for step in state.steps)
    assert state.parameters == {"run_folder": "out", "quant_path": "quantized"}
    assert state.profile == str(Path("params", "small.yaml"))
    assert "papermill" in state.versions
    assert yaml.safe_load((finished_project / "out" / "params.yaml").read_text()) == state.parameters


def test_a_second_run_keeps_every_step(project: Path) -> None:
    before = results(project)
    assert run().exit_code == 0
    assert started(project) == []
    assert results(project) == before
    assert statuses(project) == dict.fromkeys(ALL, "completed")


def test_a_run_ends_with_a_manifest_and_keeps_its_signature_where_nothing_changed(project: Path) -> None:
    assert run().exit_code == 0  # the copy lacks a log that the first run left
    before = (project / "out" / "manifest.json").read_bytes()
    signature = project / "out" / "manifest.json.sig"
    signature.write_text("signed")
    assert run().exit_code == 0
    assert (project / "out" / "manifest.json").read_bytes() == before
    assert signature.exists()
    manifest = read_manifest(project / "out")
    assert manifest is not None
    assert set(manifest.files) == {name for name, _ in run_files(project / "out")}
    assert json.loads((project / "out" / "run.json").read_text())["manifest"] is True


def test_just_the_changed_steps_run_again(project: Path) -> None:
    """A parameter of step 4 and a record that step 5 reads; steps 1 to 3 have nothing new."""
    (project / "out" / "setup.json").write_text("another set-up")
    assert run(("repeats", "5")).exit_code == 0
    assert started(project) == [SLOW, "05_report"]
    assert statuses(project) == dict.fromkeys(ALL, "completed")
    executed = nbformat.read(project / "out" / f"{SLOW}.ipynb", as_version=4)
    assert "repeats = 5" in "".join(cell.source for cell in executed.cells)


def test_the_keys_on_disk_are_those_of_the_run(project: Path) -> None:
    state = load_state(project / "out")
    assert state is not None
    assert {step.name: step.key for step in state.steps} == keys(project)


def test_a_changed_notebook_changes_its_step_alone(project: Path) -> None:
    before = keys(project)
    path = project / "notebooks" / "05_report.ipynb"
    path.write_text(path.read_text().replace('"title"', '"title.upper()"'))
    assert changed(before, keys(project)) == ["05_report"]


def test_a_changed_input_file_changes_the_steps_that_read_it_also_when_its_path_is_a_default(
    project: Path,
) -> None:
    before = keys(project)
    (project / "params" / "data" / "lines.txt").write_text("another text")
    assert changed(before, keys(project)) == ["02_quantize", "03_precision"]


def test_weights_that_another_run_put_in_place_change_the_step_that_made_them(project: Path) -> None:
    before = keys(project)
    (project / "quantized" / "weights").write_text("of another level")
    assert changed(before, keys(project)) == ["02_quantize", "03_precision"]


def test_a_changed_parameter_changes_the_steps_that_declare_it(project: Path) -> None:
    before = keys(project)
    with (project / "params" / "small.yaml").open("a") as file:
        file.write("repeats: 4\n")
    assert changed(before, keys(project)) == [SLOW]


def test_a_default_written_out_changes_nothing(project: Path) -> None:
    before = keys(project)
    with (project / "params" / "small.yaml").open("a") as file:
        file.write("repeats: 3\n")
    assert changed(before, keys(project)) == []


@pytest.mark.parametrize("name", ["report.html", "05_report.ipynb"])
def test_a_step_that_lost_a_file_runs_again(project: Path, name: str) -> None:
    (project / "out" / name).unlink()
    assert run().exit_code == 0
    assert started(project) == ["05_report"]
    assert (project / "out" / name).exists()


def test_fresh_runs_steps_that_did_not_change(project: Path) -> None:
    (project / "break-the-setup").touch()  # no input of the step, so only a real run can see it
    assert run().exit_code == 0
    outcome = run(fresh=True)
    assert outcome.stopped is not None
    assert outcome.stopped.name == "01_setup"
    assert outcome.stopped.failure is not None
    assert outcome.stopped.failure.message == "set-up broken"


def test_a_raising_cell_fails_the_run_and_keeps_what_was_there(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = results(project)
    outcome = run(("ending", "raise"))
    assert outcome.exit_code == 1
    assert statuses(project) == {
        **dict.fromkeys(ALL[:3], "completed"),
        SLOW: "failed",
        "05_report": "skipped",
    }
    assert results(project) == before
    assert outcome.stopped is not None
    failure = outcome.stopped.failure
    assert failure is not None
    assert (failure.notebook, failure.error) == (f"{SLOW}.ipynb", "ValueError")
    assert failure.message == "no speed <b>today</b>"
    assert failure.cell == 7  # heading, parameters, injected parameters, heading, code, heading, this one
    assert "cell 7/8" in capsys.readouterr().err
    failed = nbformat.read(project / "out" / f"{SLOW}.failed.ipynb", as_version=4)
    assert any(
        output.get("evalue") == failure.message for cell in failed.cells for output in cell.get("outputs", ())
    )
    page = (project / "out" / f"{SLOW}.failed.html").read_text(encoding="utf-8")
    assert 'role="alert"' in page
    assert "no speed &lt;b&gt;today&lt;/b&gt;" in page
    assert "<b>today</b>" not in page


def test_the_command_says_where_it_failed_and_which_page_shows_it(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["telechat-kit", "run", "params/small.yaml", "-p", "ending", "raise"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines()[-3:] == [
        f"failed: {SLOW}.ipynb, cell 7",
        "ValueError: no speed <b>today</b>",
        f"The page that shows it: {Path('out', SLOW)}.failed.html",
    ]


def test_the_command_ends_with_the_path_of_the_report(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["telechat-kit", "run", "params/small.yaml"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"{Path('out', 'report.html')}\n"


def test_a_mended_step_runs_alone_and_removes_the_page_of_its_failure(project: Path) -> None:
    state = load_state(project / "out")
    assert state is not None
    state.step(SLOW).status, state.step(SLOW).key = "failed", None
    state.step("05_report").status = "skipped"
    state.save(project / "out")
    for suffix in ("ipynb", "html"):
        (project / "out" / f"{SLOW}.failed.{suffix}").touch()
    assert run().exit_code == 0
    assert started(project) == [SLOW]  # what the skipped step had made before is still right
    assert not list((project / "out").glob("*.failed.*"))


def test_a_run_that_was_killed_goes_on_where_it_was(project: Path) -> None:
    """What a run leaves that had no time to say goodbye: a step running, the later ones pending."""
    state = load_state(project / "out")
    assert state is not None
    state.step("05_report").status, state.step("05_report").key = "running", None
    state.save(project / "out")
    (project / "out" / ".05_report.running.ipynb").write_text("half a note")
    assert run().exit_code == 0
    assert started(project) == ["05_report"]
    assert not list((project / "out").glob(".*"))


def test_a_killed_kernel_is_a_failure_that_says_so(project: Path) -> None:
    before = results(project)
    outcome = run(("ending", "kill"))
    assert outcome.exit_code == 1
    assert statuses(project)[SLOW] == "failed"
    assert statuses(project)["05_report"] == "skipped"
    assert results(project) == before
    assert outcome.stopped is not None
    failure = outcome.stopped.failure
    assert failure is not None
    assert (failure.error, failure.cell) == ("DeadKernelError", 7)
    assert "the kernel died: it was killed, or the machine ran out of memory." in failure.message
    page = (project / "out" / f"{SLOW}.failed.html").read_text(encoding="utf-8")
    assert 'role="alert"' in page
    assert "the kernel died" in page
    assert not list(project.glob("kernel*"))


def interrupt_when(path: Path) -> None:
    """What Ctrl-C does, once `path` is there; nothing if it does not come."""
    for _ in range(600):
        if path.exists():
            _thread.interrupt_main()
            return
        time.sleep(0.05)


def test_an_interrupt_ends_the_run_at_once_and_is_told_apart_from_a_failure(project: Path) -> None:
    before = results(project)
    watcher = threading.Thread(target=interrupt_when, args=(project / "out" / "waiting",), daemon=True)
    watcher.start()
    start = time.monotonic()
    outcome = run(("ending", "wait"))
    assert time.monotonic() - start < 400  # the cell itself would sleep for 600 seconds
    watcher.join()
    assert outcome.exit_code == 130
    assert outcome.stopped is not None
    assert outcome.stopped.failure is not None
    assert outcome.stopped.failure.cell == 7
    assert statuses(project) == {
        **dict.fromkeys(ALL[:3], "completed"),
        SLOW: "interrupted",
        "05_report": "skipped",
    }
    (project / "out" / "waiting").unlink()
    assert results(project) == before
    assert (project / "out" / f"{SLOW}.failed.html").exists()


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '{"schema": "telechat-kit/run/0"}',
        '{"schema": "telechat-kit/run/1"}',
        '{"schema": "telechat-kit/run/1", "profile": "x", "parameters": {}, "versions": {}, "steps": []}',
    ],
)
def test_a_damaged_state_is_one_clear_error_and_touches_nothing(project: Path, content: str) -> None:
    (project / "out" / "run.json").write_text(content)
    before = results(project)
    with pytest.raises(DataError, match=r"run\.json .* Remove it"):
        run()
    assert results(project) == before
    assert (project / "out" / "run.json").read_text() == content


def test_a_run_folder_that_cannot_be_made_is_one_clear_error(project: Path) -> None:
    (project / "file").write_text("in the way")
    with pytest.raises(KitError, match=r"run_folder .*file is a file\. Give a folder"):
        run(("run_folder", "file"))
    with pytest.raises(KitError, match=r"run_folder .*file is a file\. Give a folder"):
        run(("run_folder", "file/deeper"))


def test_a_wrong_profile_touches_nothing(project: Path) -> None:
    before, state = results(project), (project / "out" / "run.json").read_text()
    with pytest.raises(KitError):
        run(("repeats", "many"))
    assert results(project) == before
    assert (project / "out" / "run.json").read_text() == state


def test_a_notebook_of_the_project_is_found_from_a_folder_inside(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "out" / "report.html").unlink()
    monkeypatch.chdir(project / "params" / "data")
    assert run_profile(load_profile(Path("../small.yaml"))).exit_code == 0
    assert started(project) == ["05_report"]
    assert not (project / "params" / "data" / "out").exists()


def test_a_kept_step_says_so(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run()
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[0] for line in lines] == ALL
    assert all("unchanged, kept" in line for line in lines)

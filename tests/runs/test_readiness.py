"""What a run refuses before anything starts, and what it leaves to the steps."""

from pathlib import Path

import pytest

from telechat_kit.errors import ParameterError
from telechat_kit.runs.plan import Selection
from telechat_kit.runs.profile import load_profile
from telechat_kit.runs.readiness import require_inputs

TINY = Path(__file__).resolve().parents[2] / "params" / "tiny.yaml"
WHOLE = Selection()


def refused(*overrides: tuple[str, str], selection: Selection = WHOLE) -> list[str]:
    """The lines on what is missing; none where the run may start."""
    try:
        require_inputs(load_profile(TINY, overrides), selection.steps())
    except ParameterError as error:
        head, *lines, end = str(error).splitlines()
        assert head == "params/tiny.yaml: what this run needs is not there:"
        assert end.startswith("Nothing was run.")
        return [line.strip() for line in lines]
    return []


def test_a_run_that_makes_what_it_reads_may_start(tmp_path: Path) -> None:
    places = {"checkpoint_path": "a", "model_path": "a", "quant_path": "b"}
    assert refused(*((key, str(tmp_path / name)) for key, name in places.items())) == []


def test_everything_that_is_missing_is_told_at_once(tmp_path: Path) -> None:
    model = tmp_path / "m"
    missing = [("checkpoint_path", str(model)), ("model_path", str(model))]
    missing += [("text_path", "nope.txt"), ("jsonl_path", "no.jsonl"), ("calibration_path", "kit, gone.txt")]
    assert refused(*missing, ("embedded_model", "''")) == [
        f"checkpoint_path: the folder {model} does not exist",
        f"model_path: the folder {model} does not exist",
        "calibration_path: gone.txt does not exist",
        "text_path: nope.txt does not exist",
        "jsonl_path: no.jsonl does not exist",
    ]


def test_weights_that_no_step_of_the_run_makes_must_be_there(tmp_path: Path) -> None:
    there = ("model_path", str(tmp_path))
    gone = ("quant_path", str(tmp_path / "w8a8"))
    expected = [f"quant_path: the folder {tmp_path / 'w8a8'} does not exist"]
    assert refused(there, gone, selection=Selection(start="3")) == expected
    assert refused(there, ("checkpoint_path", str(tmp_path)), gone, ("given_weights", "true")) == expected
    assert refused(there, ("checkpoint_path", str(tmp_path)), gone) == []


def test_set_up_alone_says_itself_what_is_missing() -> None:
    assert refused(("embedded_model", "''"), ("device", "npu:0"), selection=Selection(only=("1",))) == []


def test_a_device_without_its_driver_is_told_before_any_kernel_starts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert refused(("device", "npu:0"))[0].startswith("device: npu:0, and torch_npu is not installed")

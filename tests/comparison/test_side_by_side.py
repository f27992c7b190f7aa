"""Runs side by side: conditions first, figures with the interval of their change, conditions for CI."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from math import exp, nan
from pathlib import Path
from typing import Any

import pytest
from timed import timed

from telechat_kit.cli import cli
from telechat_kit.comparison import changes
from telechat_kit.comparison.alignment import BUNDLE, Tolerances, save_bundle
from telechat_kit.comparison.changes import Figure, Withheld, exact
from telechat_kit.comparison.rules import parse_rule
from telechat_kit.comparison.run_data import read_run_data
from telechat_kit.comparison.side_by_side import broken_by, compare, not_aligned
from telechat_kit.errors import DataError, ParameterError
from telechat_kit.inference.model_pair import Pair
from telechat_kit.precision import evaluation_blocks
from telechat_kit.reports.comparison_page import by_chance, change_text, markdown, verdict, write_comparison
from telechat_kit.statistics import Estimate

Edit = Callable[[dict[str, Any]], None]


def changed(run: Path, target: Path, name: str, change: Edit) -> Path:
    """A copy of a run with another record."""
    shutil.copytree(run, target)
    path = target / name
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))
    return target


def changes_of(first: Path, second: Path) -> dict[str, changes.Change]:
    """What is compared between two runs, by figure."""
    rows = compare([str(first), str(second)]).figures
    return {row.name: row.changes[0] for row in rows if isinstance(row.changes[0], changes.Change)}


def withheld(first: Path, second: Path) -> dict[str, str]:
    """What is not compared between two runs, with the reasons."""
    rows = compare([str(first), str(second)]).figures
    return {row.name: row.changes[0].reason for row in rows if isinstance(row.changes[0], Withheld)}


def test_a_run_beside_itself_differs_in_nothing(tiny_run: Path) -> None:
    found = compare([str(tiny_run), str(tiny_run)])
    assert found.differing == []
    own = changes_of(tiny_run, tiny_run)
    assert len(own) == len(found.figures)
    assert all(change.ratio.value == pytest.approx(1) and not change.seen for change in own.values())


def test_the_report_alone_is_as_good_as_the_folder(tiny_run: Path) -> None:
    carried, folder = read_run_data(tiny_run / "report.html"), read_run_data(tiny_run)
    assert carried.precision == folder.precision
    assert carried.performance == folder.performance
    assert carried.samples == folder.samples
    assert len(carried.samples) == 18  # two cases, three times: float, W8A8, and float in transformers


def test_conditions_that_differ_are_named_first(tiny_run: Path, tmp_path: Path) -> None:
    def other(record: dict[str, Any]) -> None:
        record["recipe"]["level"] = "L9"

    found = compare([str(tiny_run), str(changed(tiny_run, tmp_path / "other", "quantize.json", other))])
    assert [(row.name, row.values) for row in found.differing] == [("level", ["L2", "L9"])]
    assert found.conditions[0].name == "level"
    assert "1 conditions differ" in markdown(found)


def test_speeds_are_compared_by_their_samples(tiny_run: Path, tmp_path: Path) -> None:
    slow, fast = timed(tiny_run, tmp_path / "slow", 1.0), timed(tiny_run, tmp_path / "fast", 1.5)
    rows = changes_of(slow, fast)
    change = rows["tokens_per_second"]
    assert change.ratio.value == pytest.approx(1.5)
    assert change.ratio.low > 1
    assert change.seen
    assert not rows["tokens_per_second_float"].seen


def on_a_slow_machine(run: Path, target: Path, factor: float) -> Path:
    """A copy of a run whose every timed repeat took `factor` times as long."""
    shutil.copytree(run, target)
    rows = [json.loads(line) for line in (target / "samples.jsonl").read_text().splitlines()]
    rows = [row | {"seconds": factor * row["seconds"]} for row in rows]
    (target / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return target


def of_other_code(record: dict[str, Any]) -> None:
    record["conditions"]["code"] = "other code"


def test_a_machine_in_another_state_does_not_count_as_a_change_of_the_run(
    tiny_run: Path, tmp_path: Path
) -> None:
    quiet = timed(tiny_run, tmp_path / "quiet", 1.5)
    slow = on_a_slow_machine(quiet, tmp_path / "slow", 2.0)
    rows = changes_of(quiet, slow)
    for name in ("tokens_per_second", "tokens_per_second_float"):
        assert rows[name].ratio.value == pytest.approx(0.5)
        assert rows[name].differs
        assert not rows[name].seen
    assert rows["speed_over_float"].ratio.value == pytest.approx(1)
    assert not rows["speed_over_float"].differs
    found = compare([str(quiet), str(slow)])
    assert "†" in markdown(found)
    assert "The machine was in another state: float's speed changed too." in verdict(found)
    other = changed(slow, tmp_path / "other", "performance.json", of_other_code)
    assert changes_of(quiet, other)["tokens_per_second_float"].seen  # it may have been the code
    assert "†" not in markdown(compare([str(quiet), str(other)]))


def test_a_faster_w8a8_is_seen_in_its_speed_over_float(tiny_run: Path, tmp_path: Path) -> None:
    before, now = timed(tiny_run, tmp_path / "before", 1.0), timed(tiny_run, tmp_path / "now", 1.5)
    slow = on_a_slow_machine(now, tmp_path / "slow", 3.0)
    change = changes_of(before, slow)["speed_over_float"]
    assert change.ratio.value == pytest.approx(1.5)
    assert change.seen


def test_speeds_with_other_threads_are_not_compared_with_the_grids(tiny_run: Path, tmp_path: Path) -> None:
    quiet, other = timed(tiny_run, tmp_path / "quiet", 1.0), timed(tiny_run, tmp_path / "other", 1.0)
    path = other / "samples.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    by_threads = [row | {"threads": 1, "seconds": 100 * row["seconds"]} for row in rows]
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, *by_threads]))
    for name in ("tokens_per_second", "tokens_per_second_float"):
        assert changes_of(quiet, other)[name].ratio.value == pytest.approx(1)


def test_precision_is_compared_sequence_by_sequence_where_both_read_the_same(
    tiny_run: Path, tmp_path: Path
) -> None:
    def worse(record: dict[str, Any]) -> None:
        found = record["divergence"]
        for i, row in enumerate(found["by_sequence"]):
            row[1] += 0.1 + 0.001 * i
            row[2] *= 3
        found["kl_mean"]["value"] *= 3
        found["perplexity_w8a8"]["value"] *= 1.1

    other = changed(tiny_run, tmp_path / "other", "precision.json", worse)
    count = len(json.loads((tiny_run / "precision.json").read_text())["divergence"]["by_sequence"])
    rows = changes_of(tiny_run, other)
    kl, perplexity = rows["kl_mean"], rows["perplexity_w8a8"]
    assert kl.basis == perplexity.basis == f"{count} sequences in pairs"
    assert (kl.ratio.value, kl.ratio.low, kl.ratio.high) == pytest.approx((3, 3, 3))
    assert perplexity.ratio.value == pytest.approx(exp(0.1 + 0.001 * (count - 1) / 2))
    assert perplexity.ratio.low > 1.09


def of_another_text(record: dict[str, Any]) -> None:
    record["text_sha256"] = "another text"


def of_other_cases(record: dict[str, Any]) -> None:
    for case in record["cases"]:
        case["input_tokens"] *= 10


def of_another_model(record: dict[str, Any]) -> None:
    record["conditions"]["hashes"]["float_weights"] = "0" * 64


def of_other_questions(record: dict[str, Any]) -> None:
    record["answers"][0]["input"] = "another question"


@pytest.mark.parametrize(
    ("record", "edit", "name", "reason"),
    [
        ("precision.json", of_another_text, "kl_mean", "other text"),
        ("precision.json", of_another_text, "perplexity_float", "other text"),
        ("precision.json", of_other_questions, "equal_answers", "other questions"),
        ("precision.json", of_another_model, "w8a8_bytes", "other model"),
        ("performance.json", of_other_cases, "tokens_per_second", "no case in common"),
        ("performance.json", of_other_cases, "peak_memory_bytes", "other cases"),
    ],
)
def test_what_was_not_measured_alike_is_withheld_with_the_reason(
    tiny_run: Path, tmp_path: Path, record: str, edit: Edit, name: str, reason: str
) -> None:
    other = changed(tiny_run, tmp_path / "other", record, edit)
    assert withheld(tiny_run, other)[name] == reason
    assert withheld(tiny_run, tiny_run) == {}
    found = compare([str(tiny_run), str(other)])
    assert f"not compared: {reason}" in markdown(found)
    page = write_comparison(found, tmp_path / "page.html").read_text()
    assert f"for {reason}" in page
    with pytest.raises(DataError, match=f"{name} of other does not compare with the first run's: {reason}"):
        broken_by(parse_rule(f"{name} > 1000x"), found)


def test_another_text_leaves_the_other_kinds_to_be_compared(tiny_run: Path, tmp_path: Path) -> None:
    other = changed(tiny_run, tmp_path / "other", "precision.json", of_another_text)
    assert "kl_mean[zh]" in changes_of(tiny_run, other)
    assert "kl_mean" not in changes_of(tiny_run, other)


def test_runs_of_another_model_share_no_figure(tiny_run: Path, tmp_path: Path) -> None:
    other = changed(tiny_run, tmp_path / "other", "precision.json", of_another_model)
    assert changes_of(tiny_run, other) == {}
    page = write_comparison(compare([str(tiny_run), str(other)]), tmp_path / "page.html").read_text()
    assert "No figure is compared: " in page
    assert "Changed beyond their intervals" not in page


def test_the_published_table_stands_beside_a_run_that_timed_its_cases(tiny_run: Path, tmp_path: Path) -> None:
    def guide_case(record: dict[str, Any]) -> None:
        for case in record["cases"]:
            case["input_tokens"], case["output_tokens"] = 100, 100

    run = changed(tiny_run, tmp_path / "run", "performance.json", guide_case)
    found = compare([str(run), "published:310P"])
    assert [row.name for row in found.figures] == ["tokens_per_second[100/100]"]
    assert found.figures[0].values[1] is not None
    assert found.figures[0].values[1].estimate.value == 15
    assert found.figures[0].changes == [Withheld("other model")]
    assert {"model", "device"} <= {row.name for row in found.differing}

    def named(record: dict[str, Any]) -> None:
        record["origin"]["name"] = "TeleChat-7B-int8"

    shutil.copy(changed(run, tmp_path / "named", "setup.json", named) / "setup.json", run)
    (change,) = compare([str(run), "published:310P"]).figures[0].changes
    assert isinstance(change, changes.Change)
    with pytest.raises(DataError, match="no figure in common"):
        compare([str(tiny_run), "published:A10"])
    with pytest.raises(ParameterError, match="published:310P or published:A10"):
        compare([str(tiny_run), "published:H100"])


@pytest.mark.parametrize(
    ("rule", "broken"),
    [
        ("tokens_per_second < 0.95x", False),
        ("tokens_per_second > 1.4x", True),
        ("perplexity_ratio > 0.1", True),
        ("kl_mean>=1.5x", False),
        ("tokens_per_second[4/2] < 2.9", False),
        ("tokens_per_second[4/2] > 2.9", True),
    ],
)
def test_a_condition_is_judged_for_the_later_run(
    tiny_run: Path, tmp_path: Path, rule: str, broken: bool
) -> None:
    slow, fast = timed(tiny_run, tmp_path / "slow", 1.0), timed(tiny_run, tmp_path / "fast", 1.5)
    found = compare([str(slow), str(fast)])
    said = broken_by(parse_rule(rule), found)
    assert bool(said) is broken
    assert all(text.endswith(f"fails on {rule}") for text in said)


def spoil(record: dict[str, Any], value: float) -> None:
    record["divergence"]["kl_mean"] |= {"value": value, "low": value, "high": value}


@pytest.mark.parametrize("rule", ["kl_mean > 0.1", "kl_mean > 1.1x"])
def test_a_figure_that_cannot_be_true_is_an_error_and_no_pass(
    tiny_run: Path, tmp_path: Path, rule: str
) -> None:
    other = changed(tiny_run, tmp_path / "other", "precision.json", lambda record: spoil(record, -5.0))
    found = compare([str(tiny_run), str(other)])
    with pytest.raises(DataError, match=r"kl_mean of other cannot be true: it is -5, outside 0 to inf"):
        broken_by(parse_rule(rule), found)
    broken = replace(found.figures[0], name="kl_mean", values=[Figure("", "", exact(nan))] * 2)
    with pytest.raises(DataError, match="cannot be true: it is no number"):
        broken_by(parse_rule(rule), replace(found, figures=[broken]))


def test_a_figure_that_one_record_lacks_is_an_error_and_no_pass(tiny_run: Path, tmp_path: Path) -> None:
    other = changed(tiny_run, tmp_path / "other", "precision.json", lambda record: record.update(kinds=[]))
    found = compare([str(tiny_run), str(other)])
    with pytest.raises(DataError, match=r"other has no kl_mean\[zh\]\. Run the step"):
        broken_by(parse_rule("kl_mean[zh] > 1000"), found)
    assert broken_by(parse_rule("kl_mean > 1000"), found) == []


def test_a_speed_that_nothing_measures_is_named(tiny_run: Path, tmp_path: Path) -> None:
    def stopped(record: dict[str, Any]) -> None:
        record["cases"][0]["tokens_per_second"]["value"] = -3.0

    other = changed(tiny_run, tmp_path / "other", "performance.json", stopped)
    with pytest.raises(DataError, match=r"a speed of -3 tokens/s, which nothing measures"):
        compare([str(tiny_run), str(other)])


@pytest.mark.parametrize("text", ["tokens_per_second", "kl_mean < x", "< 3", "kl_mean < 1..2"])
def test_what_is_no_condition_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ParameterError, match=r"is no condition.*tokens_per_second < 0\.95x"):
        parse_rule(text)


def test_a_figure_that_does_not_exist_is_an_error_and_no_pass(tiny_run: Path) -> None:
    found = compare([str(tiny_run), str(tiny_run)])
    with pytest.raises(ParameterError, match='Did you mean "tokens_per_second"'):
        broken_by(parse_rule("token_per_second < 1"), found)


def test_an_interval_that_covers_less_says_so_and_is_not_marked() -> None:
    ratio = Estimate(0.8, 0.75, 0.85, 0.75)
    assert change_text(changes.Change(ratio, "two separate intervals")) == "0.800x [0.750, 0.850] (75 %)"
    assert change_text(changes.Change(replace(ratio, coverage=0.95), "pairs")) == "0.800x [0.750, 0.850] *"


def test_many_intervals_are_said_to_leave_out_1_by_chance(tiny_run: Path, tmp_path: Path) -> None:
    slow, fast = timed(tiny_run, tmp_path / "slow", 1.0), timed(tiny_run, tmp_path / "fast", 1.5)
    few = compare([str(slow), str(fast)])
    with_intervals = [row for row in few.figures if row.name == "tokens_per_second"]
    many = replace(few, figures=with_intervals * 40)
    sentence = "Where nothing differs, about 2 of 40 intervals leave out 1 by chance."
    assert by_chance(many) == sentence
    assert sentence in verdict(many) and sentence in markdown(many)
    assert by_chance(replace(few, figures=with_intervals)) == ""


def test_the_page_opens_alone_and_says_what_differs(tiny_run: Path, tmp_path: Path) -> None:
    slow, fast = timed(tiny_run, tmp_path / "slow", 1.0), timed(tiny_run, tmp_path / "fast", 1.5)
    found = compare([str(slow), str(fast)])
    page = write_comparison(found, tmp_path / "page.html").read_text()
    assert "slow against fast" in page
    assert "Changed beyond their intervals: W8A8, geometric mean of the cases 1.50x, W8A8 over float" in page
    assert "http" not in page.replace("http-equiv", "").replace('xmlns="http://www.w3.org/2000/svg"', "")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("<html></html>", "carries no record of its run"),
        ('<template id="telechat-kit-run">{</template>', "is not valid JSON"),
        (
            '<template id="telechat-kit-run">{"schema": "telechat-kit/report/9"}</template>',
            "Update telechat-kit",
        ),
    ],
)
def test_a_page_of_another_kind_damaged_or_of_a_newer_kit_is_told_apart(
    tmp_path: Path, content: str, message: str
) -> None:
    (tmp_path / "report.html").write_text(content)
    with pytest.raises(DataError, match=message):
        read_run_data(tmp_path / "report.html")


@pytest.mark.parametrize(
    ("schema", "message"),
    [("telechat-kit/precision/9", "of a newer kit: update"), ("nonsense", "Run the step again")],
)
def test_a_record_of_another_schema_is_refused_by_name(
    tiny_run: Path, tmp_path: Path, schema: str, message: str
) -> None:
    run = changed(tiny_run, tmp_path / "run", "precision.json", lambda record: record.update(schema=schema))
    with pytest.raises(DataError, match=rf"precision\.json has schema .*{message}"):
        read_run_data(run)


def test_the_command_prints_the_tables_and_fails_as_asked(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from click.testing import CliRunner  # noqa: PLC0415

    table = tmp_path / "table.csv"
    arguments = [
        "compare",
        str(tiny_run),
        str(tiny_run),
        "--csv",
        str(table),
        "--fail-if",
        "perplexity_ratio > 0",
    ]
    done = CliRunner().invoke(cli, arguments)
    assert done.exit_code == 1
    assert "0 conditions differ" in done.output
    assert "perplexity_ratio is" in done.output
    assert table.read_text().startswith("name,figure,")


def with_bundle(run: Path, target: Path, precision: str, seed: int = 0) -> Path:
    """A copy of a run that also kept what one of its models says of the text."""
    shutil.copytree(run, target)
    pair = Pair(run.parents[1] / "model", run.parent / "tiny-w8a8", "cpu")
    blocks = evaluation_blocks(pair, "pydoc_data.topics", 40, 6, seed)
    answers = {"float": [[5, 6]], "w8a8": [[5, 7]]}[precision]
    texts = ["<b>bold</b>" if precision == "float" else "plain"]
    save_bundle(
        target / BUNDLE,
        pair,
        blocks,
        precision=precision,
        text="topics",
        questions=["one"],
        answers=answers,
        answer_texts=texts,
    )
    return target


def test_runs_that_kept_bundles_are_compared_position_by_position(
    tiny_run: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    root = tmp_path / "all"
    shutil.copytree(tiny_run.parent, root / "results")
    shutil.copytree(tiny_folder, root / "model")
    run = root / "results" / "tiny"
    one, same = with_bundle(run, tmp_path / "one", "w8a8"), with_bundle(run, tmp_path / "same", "w8a8")
    other, text = (
        with_bundle(run, tmp_path / "other", "float"),
        with_bundle(run, tmp_path / "text", "w8a8", 1),
    )
    assert not_aligned(compare([str(one), str(same)])) == []
    found = compare([str(one), str(same), str(other), str(text), str(run)], Tolerances(kl_mean=1e-9))
    assert [row.alignment.verdict if row.alignment else "refused" for row in found.bundles] == [
        "aligned",
        "not aligned",
        "refused",
        "refused",
    ]
    said = not_aligned(found)
    assert said[0].startswith("other is not aligned with one: not aligned: KL ")
    assert "do not hold the same text" in said[1]
    assert "does not exist" in said[2]
    assert "0 of 1 answers are equal, the first that differs is number 1, after 1 tokens" in markdown(found)
    page = write_comparison(found, tmp_path / "page.html").read_text()
    assert "&lt;b&gt;bold&lt;/b&gt;" in page
    assert "<b>bold</b>" not in page
    assert not_aligned(compare([str(tiny_run), str(tiny_run)])) == [
        "no run holds a bundle. Run 03_precision with -p bundle w8a8."
    ]


def test_the_interval_of_a_ratio_of_few_uneven_sequences_stays_above_zero(
    tiny_run: Path, tmp_path: Path
) -> None:
    def uneven(record: dict[str, Any]) -> None:
        for number, row in enumerate(record["divergence"]["by_sequence"]):
            row[2] *= 50 if number == 0 else 0.01
        record["divergence"]["kl_mean"]["value"] *= 2  # other figures, so they are compared

    other = changed(tiny_run, tmp_path / "uneven", "precision.json", uneven)
    found = changes_of(tiny_run, other)["kl_mean"]
    assert found.basis.endswith("sequences in pairs")
    assert 0 < found.ratio.low < found.ratio.value < found.ratio.high

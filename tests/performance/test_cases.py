"""What can be timed and how long it takes, before anything runs."""

from dataclasses import FrozenInstanceError

import pytest

from telechat_kit.errors import DeviceError, ParameterError
from telechat_kit.inference.generation import Generation
from telechat_kit.model.configuration import TelechatConfig
from telechat_kit.performance.cases import (
    GUIDE_LENGTHS,
    Case,
    Grid,
    case_bytes,
    duration,
    estimated_seconds,
    fitting,
)

SMALL = TelechatConfig(vocab_size=16, hidden_size=32, n_layer=1, n_head=2, ffn_hidden_size=48)


def test_the_grid_is_every_input_with_every_output() -> None:
    assert Grid([10, 20], [1, 2]).cases(100) == [Case(10, 1), Case(10, 2), Case(20, 1), Case(20, 2)]
    assert Grid([60], [40]).cases(100) == [Case(60, 40)]
    assert Grid([10, 20], [1], [1, 4]).cases(100) == [(10, 1, 1), (20, 1, 1), (10, 1, 4), (20, 1, 4)]


def test_the_guides_grid_has_25_cases() -> None:
    assert GUIDE_LENGTHS == (10, 100, 500, 1000, 2000)
    assert len(Grid(GUIDE_LENGTHS, GUIDE_LENGTHS).cases(4096)) == 25


def test_a_grid_keeps_tuples_and_cannot_be_changed() -> None:
    grid = Grid([10], [5], thread_counts=[1, 2])
    assert (grid.input_lengths, grid.batch_sizes, grid.thread_counts) == ((10,), (1,), (1, 2))
    assert grid == Grid((10,), (5,), (1,), (1, 2))
    with pytest.raises(FrozenInstanceError):
        grid.repeats = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("inputs", "outputs", "message"),
    [
        ([10, 0], [5], "input 0 and output 5 tokens: each must be at least 1"),
        ([10], [-1], "input 10 and output -1 tokens"),
        ([10, 61], [40], "input 61 and output 40 tokens: .* at most 100, the context of the model"),
        ([], [5], "input_lengths and output_lengths give no case"),
        ([5], [], "input_lengths and output_lengths give no case"),
    ],
)
def test_an_impossible_grid_names_the_case(inputs: list[int], outputs: list[int], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        Grid(inputs, outputs).cases(100)


@pytest.mark.parametrize("sizes", [[], [0], [4, -1]])
def test_an_impossible_batch_size_is_refused(sizes: list[int]) -> None:
    with pytest.raises(ParameterError, match=r"batch_sizes is .*: name at least one, each 1 or more"):
        Grid([10], [5], sizes).cases(100)


def test_a_case_needs_its_cache_and_the_widest_activations_of_its_prompt() -> None:
    cache = 2 * SMALL.n_layer * SMALL.hidden_size * 4
    assert case_bytes(SMALL, Case(5, 8), 4) - case_bytes(SMALL, Case(5, 7), 4) == cache
    assert case_bytes(SMALL, Case(6, 7), 4) - case_bytes(SMALL, Case(5, 7), 4) > cache
    assert case_bytes(SMALL, Case(5, 7), 4) == 2 * case_bytes(SMALL, Case(5, 7), 2)
    assert case_bytes(SMALL, Case(5, 7, batch=3), 4) == 3 * case_bytes(SMALL, Case(5, 7), 4)


def test_cases_beyond_the_free_memory_are_left_out_with_a_reason() -> None:
    free = case_bytes(SMALL, Case(100, 10), 4)
    run, skipped = fitting([Case(10, 10), Case(100, 10), Case(101, 10)], SMALL, 4, free)
    assert run == [Case(10, 10), Case(100, 10)]
    assert [(case.input_tokens, case.output_tokens) for case in skipped] == [(101, 10)]
    assert "GB beside the weights" in skipped[0].reason
    with pytest.raises(DeviceError, match="no case fits: input 100, output 10 needs"):
        fitting([Case(100, 10)], SMALL, 4, free - 1)


def test_thousands_of_cases_are_estimated_from_one_short_run_of_each_precision() -> None:
    warm_up = {
        "float": Generation(10, [1, 2, 3], [1.0, 3.0, 5.0]),  # 0.1 s a prompt token, 2 s a further one
        "w8a8": Generation(10, [1], [0.5]),  # one token alone: its time stands for the further ones
    }
    assert estimated_seconds([Case(100, 10)], 1, warm_up) == pytest.approx(
        100 * 0.1 + 10 * 2 + 100 * 0.05 + 10 * 0.5
    )
    assert estimated_seconds([Case(100, 10)] * 5000, 3, warm_up) == pytest.approx(15000 * 40)


def test_durations_are_said_as_people_say_them() -> None:
    assert [duration(s) for s in (0.2, 42, 600, 36_000)] == ["1 s", "42 s", "10 min", "10.0 h"]

"""States of whole sequences: the same from the engine and from the modules."""

from pathlib import Path

import pytest
import torch

from telechat_kit.inference.loading import load_model
from telechat_kit.inference.whole_sequences import hidden_states

SEQUENCES = [[4, 80, 90, 100, 5], list(range(6, 100)), [7]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_states_are_those_of_the_modules(
    tiny_folder: Path, tiny_w8a8_folder: Path, dtype: torch.dtype
) -> None:
    for folder in (tiny_folder, tiny_w8a8_folder):
        model = load_model(folder, "cpu", dtype)
        for ids, states in zip(SEQUENCES, hidden_states(model, SEQUENCES), strict=True):
            with torch.inference_mode():
                expected = model.transformer(torch.tensor([ids])).last_hidden_state[0]
            assert states.dtype == expected.dtype
            allowed = 0.1 if dtype == torch.bfloat16 else 1e-5 * (folder == tiny_folder)
            assert float((states - expected).norm() / expected.norm()) <= allowed


def test_sequences_past_the_trained_length_take_the_modules(tiny_w8a8_folder: Path) -> None:
    model = load_model(tiny_w8a8_folder, "cpu")
    long = [list(range(6, 206)) * 3]
    with torch.inference_mode():
        expected = model.transformer(torch.tensor(long)).last_hidden_state[0]
    assert torch.equal(hidden_states(model, long)[0], expected)

"""Rotations of every size that models have: orthogonal, of even entries where a Hadamard matrix goes, seeded."""

import math

import pytest
import torch

from telechat_kit.backends.cpu_kernels import library, operators
from telechat_kit.backends.hadamard import paley, plain_rotation, random_rotation
from telechat_kit.errors import ParameterError

SIZES = (64, 128, 160, 576, 960, 1536)
LARGE = (4096, 5120, 6144, 12288)


@pytest.mark.parametrize("size", SIZES)
def test_entries_are_of_one_size_and_rows_stand_at_right_angles(size: int) -> None:
    for rotation in (random_rotation(size, 3), plain_rotation(size)):
        matrix = rotation.matrix()
        assert rotation.exact
        torch.testing.assert_close(matrix @ matrix.T, torch.eye(size).double(), rtol=0, atol=1e-12)
        torch.testing.assert_close(matrix.abs(), torch.full_like(matrix, 1 / math.sqrt(size)))


@pytest.mark.parametrize("size", LARGE)
def test_a_large_rotation_spreads_one_channel_evenly_and_keeps_lengths(size: int) -> None:
    rotation = random_rotation(size, 0)
    one = torch.zeros(2, size, dtype=torch.float64)
    one[0, size // 3] = one[1, 0] = 1
    turned = rotation.rows(one)
    torch.testing.assert_close(turned.abs(), torch.full_like(turned, 1 / math.sqrt(size)))
    assert abs(float(turned[0] @ turned[1])) < 1e-12
    assert rotation.exact
    assert rotation.base is None or len(rotation.base) <= 64


@pytest.mark.parametrize("size", [1, 3, 9, 7 * 2, 46])
def test_a_size_without_a_hadamard_matrix_is_still_orthogonal(size: int) -> None:
    matrix = plain_rotation(size).matrix()
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(size).double(), rtol=0, atol=1e-12)
    assert matrix.abs().max() <= math.sqrt(2 / size) + 1e-12 or size == 1
    assert plain_rotation(size).exact == (size == 1)


@pytest.mark.skipif(library.library() is None, reason=library.description())
@pytest.mark.parametrize("size", [1, 3, 8, 46, 64, 96, 100, 1536, 1568])
def test_the_kernel_turns_by_the_same_matrix(size: int) -> None:
    rotation, x = plain_rotation(size), torch.randn(5, size, generator=torch.Generator().manual_seed(0))
    found = operators.turn(x, rotation)
    torch.testing.assert_close(found.double(), x.double() @ rotation.matrix(), rtol=0, atol=1e-5)
    assert torch.equal(operators.turn(x[2:3], rotation), found[2:3])
    if size > 3:
        assert (found - x @ random_rotation(size, 1).matrix().float()).abs().max() > 0.1


def test_columns_turn_by_the_transposed_matrix() -> None:
    rotation, x = random_rotation(96, 1), torch.randn(96, 5, dtype=torch.float64)
    torch.testing.assert_close(rotation.columns(x), rotation.matrix().T @ x)
    torch.testing.assert_close(rotation.rows(x.T), x.T @ rotation.matrix())


def test_the_seed_alone_decides() -> None:
    assert torch.equal(random_rotation(64, 5).matrix(), random_rotation(64, 5).matrix())
    assert not torch.equal(random_rotation(64, 5).matrix(), random_rotation(64, 6).matrix())


def test_paley_gives_what_its_constructions_reach_and_nothing_else() -> None:
    for order in (12, 20, 24, 28, 36, 44, 60):
        assert paley(order) is not None, order
    for order in (9, 18, 92):  # odd; twice odd; 91 and 45 are no primes
        assert paley(order) is None, order


def test_no_channels_are_refused() -> None:
    with pytest.raises(ParameterError):
        random_rotation(0, 0)

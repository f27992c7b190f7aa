"""Orthogonal matrices that spread one channel evenly over all: products of small Hadamard matrices, never held whole.

A Hadamard matrix has entries of one size. Sylvester's have orders 2^k; Paley's two constructions give 12, 20, 28, 36
and others, so that 576 = 36 x 16, 1536 = 12 x 128, 5120 = 20 x 256 and 12288 = 12 x 1024 are products of two. A size
without one (an odd number, say) falls back on Hartley's matrix for its odd part, whose entries differ by sqrt(2) at
most from each other's size at their largest.
"""

import functools
import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from telechat_kit.errors import ParameterError

#: Factors of a power of two are cut to this order: a product with two small ones costs less than with one large one
LARGEST_FACTOR = 64


@dataclass(frozen=True)
class Rotation:
    """The orthogonal matrix `diag(signs) (base x F1 x F2 x ...)` of Kronecker factors, each `[m, m]` float64.

    Attributes:
        signs: `[size]`, 1 or -1; None where all are 1.
        base: of what is no power of two; None where `size` is one.
        power: the other factors are Sylvester's, of order `2^power` together.
        exact: all entries of the product have one size; false where the base is Hartley's.
    """

    size: int
    signs: Tensor | None
    base: Tensor | None
    power: int
    exact: bool
    _cast: dict[tuple[torch.dtype, torch.device], tuple[Tensor, ...]] = field(
        default_factory=dict, repr=False, compare=False
    )

    def rows(self, x: Tensor) -> Tensor:
        """`x [..., n]` times the matrix, in the dtype of `x`."""
        turned = x if self.signs is None else x * self.signs.to(x)
        before = 1
        for factor in self._factors_like(x):  # each mixes one axis of x seen as [..., before, m, after]
            size = factor.shape[0]
            spread = turned.reshape(-1, before, size, self.size // before // size)
            turned, before = torch.einsum("nbma,mk->nbka", spread, factor), before * size
        return turned.reshape(x.shape)

    def _factors_like(self, x: Tensor) -> tuple[Tensor, ...]:
        """The factors in the dtype of `x` where it lies; kept, for a network asks at every token."""
        key = (x.dtype, x.device)
        if key not in self._cast:
            bases = () if self.base is None else (self.base,)
            self._cast[key] = tuple(factor.to(x) for factor in (*bases, *_sylvester(self.power)))
        return self._cast[key]

    def base_like(self, x: Tensor) -> Tensor | None:
        """The base in the dtype of `x` where it lies, kept as long as this."""
        return None if self.base is None else self._factors_like(x)[0]

    def columns(self, x: Tensor) -> Tensor:
        """The transposed matrix times `x [n, ...]`, in the dtype of `x`."""
        return self.rows(x.movedim(0, -1)).movedim(-1, 0)

    def matrix(self) -> Tensor:
        """The whole matrix `[n, n]`, float64."""
        return self.rows(torch.eye(self.size, dtype=torch.float64))


def random_rotation(size: int, seed: int) -> Rotation:
    """The rotation of `size` channels whose signs are drawn by `seed`."""
    generator = torch.Generator().manual_seed(seed)
    signs = torch.randint(2, (size,), generator=generator, device="cpu").double() * 2 - 1
    return _rotation(size, signs)


@functools.cache
def plain_rotation(size: int) -> Rotation:
    """The rotation of `size` channels without signs: what a network does at run time."""
    return _rotation(size, None)


def _rotation(size: int, signs: Tensor | None) -> Rotation:
    if size < 1:
        raise ParameterError("{size} channels cannot be rotated. Give at least 1.", size=size)
    with torch.device("cpu"):  # a network may be under construction on "meta"
        return Rotation(size, signs, *_base(size))


def _base(size: int) -> tuple[Tensor | None, int, bool]:
    """The factor for what of `size` is no power of two, the power of two left, and whether it is Hadamard's."""
    odd, power = size, 0
    while odd % 2 == 0:
        odd, power = odd // 2, power + 1
    if odd == 1:
        return None, power, True
    for used in range(2, power + 1):
        if (matrix := paley(odd << used)) is not None:
            return matrix, power - used, True
    return _hartley(odd), power, False


def _sylvester(power: int) -> list[Tensor]:
    """Orthogonal Hadamard factors whose product has order `2^power`."""
    if not power:
        return []
    most = int(math.log2(LARGEST_FACTOR))
    count = -(-power // most)
    shares = [power // count + (index < power % count) for index in range(count)]
    return [_sylvester_matrix(share) for share in shares]


def _sylvester_matrix(power: int) -> Tensor:
    pair = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64) / math.sqrt(2)
    matrix = torch.ones(1, 1, dtype=torch.float64)
    for _ in range(power):
        matrix = torch.kron(matrix, pair)
    return matrix


def paley(order: int) -> Tensor | None:
    """Paley's orthogonal Hadamard matrix of `order`, float64: first or second construction; None where neither goes."""
    if order % 4:
        return None
    prime = order - 1
    if _is_prime(prime) and prime % 4 == 3:
        skew = torch.zeros(order, order, dtype=torch.float64)
        skew[0, 1:], skew[1:, 0], skew[1:, 1:] = 1, -1, _jacobsthal(prime)
        return (torch.eye(order, dtype=torch.float64) + skew) / math.sqrt(order)
    prime = order // 2 - 1
    if _is_prime(prime) and prime % 4 == 1:
        half = prime + 1
        conference = torch.zeros(half, half, dtype=torch.float64)
        conference[0, 1:], conference[1:, 0], conference[1:, 1:] = 1, 1, _jacobsthal(prime)
        plus = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
        diagonal = torch.tensor([[1.0, -1.0], [-1.0, -1.0]], dtype=torch.float64)
        matrix = torch.kron(conference, plus) + torch.kron(torch.eye(half, dtype=torch.float64), diagonal)
        return matrix / math.sqrt(order)
    return None


def _jacobsthal(prime: int) -> Tensor:
    """`[q, q]`: 1 where the difference of row and column is a square modulo `prime`, -1 where not, 0 where equal."""
    squares = {i * i % prime for i in range(1, prime)}
    symbol = torch.tensor([0.0] + [1.0 if i in squares else -1.0 for i in range(1, prime)]).double()
    index = torch.arange(prime)
    return symbol[(index[:, None] - index[None, :]) % prime]


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % divisor for divisor in range(2, math.isqrt(number) + 1))


def _hartley(order: int) -> Tensor:
    angle = 2 * math.pi / order * torch.outer(torch.arange(order), torch.arange(order)).double()
    return (angle.cos() + angle.sin()) / math.sqrt(order)

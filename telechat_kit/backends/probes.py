"""Every operation of a backend on small random data at a number of rows, beside what it should give.

The references are calculated on the CPU in plain torch, wide, for some of the outputs: all of them would take minutes.
Whoever runs these decides about processes and time limits; each probe goes the way that the backend's `operations` take
now.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from telechat_kit.backends import Backend, backend_for, plain

#: Rows of a cache slot behind those that are filled
SPARE_ROWS = 64
#: Outputs of a linear, and heads of attention, that are compared, the first and the last among them
COLUMNS, HEADS = 64, 2
#: Share of int8 values that may be off by one: x / scale in exactly the middle is rounded before or after adding
TIES = 0.01


@dataclass(frozen=True)
class Sizes:
    """Shapes of a model that decide about its operators."""

    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int


@dataclass(frozen=True)
class Probe:
    """One operation at one number of rows.

    `run` does it on the device and `reference` on the CPU, from the same values; both give the tensors to compare, and
    `tolerance` is the largest difference allowed, as a share of the largest value of the reference. Where values are
    `steps` it is the share of them that may be off, by one.
    """

    name: str
    rows: int
    run: Callable[[], Sequence[Tensor]]
    reference: Callable[[], Sequence[Tensor]]
    tolerance: float
    steps: bool = False
    #: which part of what `run` gives is compared
    part: Callable[[Tensor], Tensor] = lambda whole: whole

    def difference(self) -> float:
        """How far both are apart: at most `tolerance` if all is well."""
        pairs = list(zip(self.run(), self.reference(), strict=True))
        measure = _share_off if self.steps else _difference
        return max(measure(self.part(found.cpu()), exact) for found, exact in pairs)


def _share_off(found: Tensor, exact: Tensor) -> float:
    """Share of integers that are off by one; infinite where one is off by more."""
    off = (found.int() - exact.int()).abs()
    return float("inf") if int(off.max()) > 1 else float((off > 0).double().mean())


def _difference(found: Tensor, exact: Tensor) -> float:
    """Infinite where a value is not finite or a shape is not as it should be."""
    own, other = found.double(), exact.double()
    if own.shape != other.shape or not bool(own.isfinite().all()):
        return float("inf")
    return float((own - other).abs().max() / other.abs().max().clamp(min=1e-9))


class Probes:
    """The operations of the backend of `device` for a model of `sizes`, whose float tensors are `dtype`."""

    def __init__(self, device: torch.device, sizes: Sizes, dtype: torch.dtype) -> None:
        self.device, self.sizes, self.dtype = device, sizes, dtype
        self.backend: Backend = backend_for(device.type)
        #: some roundings of `dtype` after one another; in float32 those of long sums
        self.tolerance = max(8 * torch.finfo(dtype).eps, 1e-5)

    def names(self, rows: int, dynamic: bool = True) -> list[str]:
        """Operations that there are at so many rows; `dynamic`: those with a scale for each token too."""
        attention = ["decode_attention"] if rows < 2 else ["decode_attention", "prompt_attention"]
        linears = ["int8_linear", *(["dynamic_int8_linear"] if dynamic else []), "float_linear"]
        gate = "swiglu" if self.backend.joins_linears else "silu_product"
        return ["quantize", *linears, "rms_norm", "add_rms_norm", gate, "rotate", *attention]

    def probe(self, name: str, rows: int) -> Probe:
        """The probe of the operation `name` at so many rows; for `decode_attention` they are filled positions."""
        run, reference, tolerance, *part = getattr(self, f"_{name}")(rows)
        return Probe(name, rows, run, reference, tolerance, name == "quantize", *part)

    def _values(self, seed: int, *shape: int, scale: float = 1.0) -> Tensor:
        """Random values that are exact in `dtype`, on the CPU."""
        generator = torch.Generator().manual_seed(seed)
        return (scale * torch.randn(*shape, generator=generator)).to(self.dtype)

    def _there(self, *tensors: Tensor) -> list[Tensor]:
        """Copies on the device."""
        return [tensor.to(self.device, copy=True) for tensor in tensors]

    def _rms_norm(self, rows: int) -> "_Parts":
        x, weight = self._values(0, 1, rows, self.sizes.hidden, scale=3), self._values(1, self.sizes.hidden)
        own, own_weight = self._there(x, weight)
        return (
            lambda: [self.backend.rms_norm(own, own_weight, 1e-5)],
            lambda: [plain.rms_norm(x.float(), weight.float(), 1e-5)],
            self.tolerance,
        )

    def _add_rms_norm(self, rows: int) -> "_Parts":
        x, residual = (self._values(seed, 1, rows, self.sizes.hidden) for seed in (0, 1))
        weight = self._values(2, self.sizes.hidden)
        own, own_residual, own_weight = self._there(x, residual, weight)
        return (
            lambda: self.backend.add_rms_norm(own, own_residual, own_weight, 1e-5),
            lambda: plain.add_rms_norm(x.float(), residual.float(), weight.float(), 1e-5),
            self.tolerance,
        )

    def _rotate(self, rows: int) -> "_Parts":
        size = self.sizes.head_dim
        query, key = (
            self._values(seed, 1, rows, heads, size).transpose(1, 2)
            for seed, heads in enumerate((self.sizes.heads, self.sizes.kv_heads))
        )
        angle = torch.arange(rows)[:, None] * 0.37 ** torch.arange(size // 2)
        # in bfloat16 the tables are wider than the model
        wide = torch.float32 if self.dtype == torch.bfloat16 else self.dtype
        cos, sin = (table.repeat(1, 2).to(wide) for table in (angle.cos(), angle.sin()))

        own_query, own_key, *tables = self._there(query, key, cos, sin)
        return (
            lambda: self.backend.rotate(own_query.clone(), own_key.clone(), *tables),  # may be overwritten
            lambda: plain.rotate(query.float(), key.float(), cos.float(), sin.float()),
            self.tolerance,
        )

    def _prompt_attention(self, rows: int) -> "_Parts":
        return self._attention(rows, rows)

    def _decode_attention(self, rows: int) -> "_Parts":
        return self._attention(1, rows)

    def _attention(self, queries: int, keys: int) -> "_Parts":
        """Keys and values are the front of cache slots, as in a run."""
        sizes = self.sizes
        query = self._values(0, 1, queries, sizes.heads, sizes.head_dim).transpose(1, 2)
        slots = torch.zeros(2, 1, sizes.kv_heads, keys + SPARE_ROWS, sizes.head_dim, dtype=self.dtype)
        slots[:, :, :, :keys] = self._values(1, 2, 1, sizes.kv_heads, keys, sizes.head_dim)
        own, both = self._there(query, slots)
        own_key, own_value = both[:, :, :, :keys]
        heads = _some(sizes.heads, HEADS)
        key, value = slots[:, :, heads * sizes.kv_heads // sizes.heads, :keys].float()
        return (
            lambda: [self.backend.attention(own, own_key, own_value, None)],
            lambda: [plain.attention_in_products(query[:, heads].float(), key, value, None)],
            4 * self.tolerance,  # shares are rounded too, and a 310P takes the softmax in half precision
            lambda whole: whole[:, heads],
        )

    def _quantize(self, rows: int) -> "_Parts":
        x, scale, offset = (
            self._values(0, 1, rows, self.sizes.hidden),
            torch.tensor([0.0231]),
            torch.tensor([7.0]),
        )
        there = self._there(x, scale, offset)
        return (
            lambda: [self.backend.quantize(*there)],
            lambda: [plain.quantize(x, scale, offset)],
            TIES,
        )

    def _int8_linear(self, rows: int) -> "_Parts":
        """The widest of the model, with a bias: gate and up together."""
        x, weight = self._int8_operands(rows)
        out = len(weight)
        generator = torch.Generator().manual_seed(2)
        bias = torch.randint(-5000, 5000, (out,), generator=generator, dtype=torch.int32)
        deq_scale = torch.linspace(1e-4, 2e-4, out)
        tensors = {
            "weight": weight,
            "input_scale": torch.tensor([0.0231]),
            "input_offset": torch.tensor([4.0]),
            "quant_bias": bias,
            "deq_scale": deq_scale,
        }
        there, prepared = self._there(x)[0], self.backend.prepare_linear(self._tensors_there(tensors))
        x_q, some = plain.quantize(x, tensors["input_scale"], tensors["input_offset"]), _some(out, COLUMNS)
        return (
            lambda: [self.backend.int8_linear(there, **prepared)],
            lambda: [plain.scaled_product(x_q, weight[some], bias[some], deq_scale[some], torch.float32)],
            max(self.tolerance, 2**-8),  # a step of the quantized input, where both round differently
            lambda whole: whole[..., some],
        )

    def _dynamic_int8_linear(self, rows: int) -> "_Parts":
        x, weight = self._int8_operands(rows)
        scale = torch.linspace(1e-2, 2e-2, len(weight))
        tensors = {"weight": weight, "weight_scale": scale, "bias": torch.linspace(-3, 3, len(weight))}
        there, prepared = self._there(x)[0], self.backend.prepare_dynamic_linear(self._tensors_there(tensors))
        some = _some(len(weight), COLUMNS)
        part = (weight[some], scale[some], tensors["bias"][some])
        return (
            lambda: [self.backend.dynamic_int8_linear(there, **prepared)],
            lambda: [plain.dynamic_product(x.float(), *part, plain.accumulate)],
            max(self.tolerance, 2**-8),
            lambda whole: whole[..., some],
        )

    def _int8_operands(self, rows: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(1)
        shape = (2 * self.sizes.ffn, self.sizes.hidden)
        weight = torch.randint(-128, 128, shape, generator=generator, dtype=torch.int8)
        return self._values(0, 1, rows, self.sizes.hidden), weight

    def _tensors_there(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return dict(zip(tensors, self._there(*tensors.values()), strict=True))

    def _float_linear(self, rows: int) -> "_Parts":
        x = self._values(0, 1, rows, self.sizes.hidden)
        weight = self._values(1, self.sizes.hidden, self.sizes.hidden, scale=self.sizes.hidden**-0.5)
        own, there = self._there(x, weight)
        blocked, some = self.backend.blocked_float_weight(there), _some(self.sizes.hidden, COLUMNS)
        return (
            lambda: [self.backend.float_linear(own, there if blocked is None else blocked, None)],
            lambda: [x.float() @ weight[some].float().t()],
            self.tolerance,
            lambda whole: whole[..., some],
        )

    def _swiglu(self, rows: int) -> "_Parts":
        both = self._values(0, 1, rows, 2 * self.sizes.ffn)
        there = self._there(both)[0]
        return (
            lambda: [self.backend.swiglu(there)],
            lambda: [plain.swiglu(both.float())],
            self.tolerance,
        )

    def _silu_product(self, rows: int) -> "_Parts":
        gate, up = (self._values(seed, 1, rows, self.sizes.ffn) for seed in (0, 1))
        there = self._there(gate, up)
        return (
            lambda: [self.backend.silu_product(*there)],
            lambda: [plain.silu_product(gate.float(), up.float())],
            self.tolerance,
        )


def _some(count: int, wanted: int) -> Tensor:
    """Up to `wanted` of `count` numbers, the first and the last among them."""
    return torch.linspace(0, count - 1, min(count, wanted)).round().long()


#: `run`, `reference` and `tolerance` of a probe, and `part` where not all is compared
_Parts = tuple[Any, ...]

"""Exact stand-ins for torch_npu's operators on CPU tensors, as strict as CANN's host code and the documentation.

Integer products are exact; the scale of the int8 product keeps 19 bits; half precision is rounded once, at the end.
What a chip refuses raises RuntimeError with the rule and its source, also where the real shape functions would let it
pass. Here are norms and activation, and all operators by name.
"""

import torch
from npu_attention import (
    npu_apply_rotary_pos_emb,
    npu_incre_flash_attention,
    npu_prompt_flash_attention,
    npu_rotary_mul,
)
from npu_chip import SOCS, Chip, demand, floats, to_half
from npu_products import (
    npu_dynamic_quant,
    npu_format_cast,
    npu_quant_matmul,
    npu_quantize,
    npu_trans_quant_param,
    scale_of_19_bits,
)
from npu_registry import format_of, register
from torch import Tensor

__all__ = ["OPERATORS", "SOCS", "Chip", "demand", "scale_of_19_bits"]

_RMS_NORM = "ops-nn norm/rms_norm/docs/aclnnRmsNorm.md"
_ADD_RMS_NORM = "ops-nn norm/add_rms_norm/op_host/op_api/aclnn_add_rms_norm.cpp"
_SWIGLU = "ops-nn activation/swi_glu/op_host/swi_glu_tiling.cpp"


def npu_rms_norm(x: Tensor, gamma: Tensor, epsilon: float = 1e-6) -> tuple[Tensor, Tensor]:
    """RMS norm of the last axis and the float32 reciprocal of the root."""
    op = "npu_rms_norm"
    same = x.dtype in floats() and gamma.dtype == x.dtype
    demand(same, op, f"input {x.dtype}, gamma {gamma.dtype}", _RMS_NORM)
    demand(tuple(gamma.shape) == tuple(x.shape[-1:]), op, f"gamma has shape {tuple(gamma.shape)}", _RMS_NORM)
    demand(x.shape[-1] * x.element_size() >= 32, op, "the last axis must hold 32 bytes", _RMS_NORM)
    wide = x.float()
    reciprocal = torch.rsqrt(wide.square().mean(-1, keepdim=True) + epsilon)
    return to_half(wide * reciprocal * gamma.float(), x.dtype), reciprocal


def npu_add_rms_norm(
    x1: Tensor, x2: Tensor, gamma: Tensor, epsilon: float = 1e-6
) -> tuple[Tensor, Tensor, Tensor]:
    """RMS norm of the rounded sum x1 + x2, the float32 reciprocal of the root (NaN on a 310P), and the sum."""
    op = "npu_add_rms_norm"
    same = x1.dtype == x2.dtype and x1.shape == x2.shape
    demand(same, op, f"{x1.dtype}, {x2.dtype}, or unlike shapes", _ADD_RMS_NORM)
    total = to_half(x1.float() + x2.float(), x1.dtype)
    normed, reciprocal = npu_rms_norm(total, gamma, epsilon)
    if Chip.is_310p():  # documented to mean nothing there
        reciprocal = torch.full_like(reciprocal, float("nan"))
    return normed, reciprocal, total


def npu_swiglu(x: Tensor, dim: int = -1) -> Tensor:
    """silu of the first half of the last axis times the second half."""
    op, size = "npu_swiglu", x.shape[-1]
    demand(x.dtype in floats(), op, f"input is {x.dtype}", _SWIGLU)
    demand(dim in (-1, x.ndim - 1), op, f"dim {dim} is not stood in for")
    demand(size % 2 == 0, op, f"an axis of {size} has no halves", _SWIGLU)
    demand(x.is_contiguous() and x.numel() > 0, op, "input must be contiguous and not empty")
    if Chip.is_310p():
        demand(
            size % 32 == 0, op, f"a last axis of {size} is no multiple of 32", "vllm-ascend, which avoids it"
        )
    gate, up = x.float().chunk(2, dim=-1)
    return to_half(torch.nn.functional.silu(gate) * up, x.dtype)


OPERATORS = {
    "npu_quantize": npu_quantize,
    "npu_trans_quant_param": npu_trans_quant_param,
    "npu_quant_matmul": npu_quant_matmul,
    "npu_dynamic_quant": npu_dynamic_quant,
    "npu_rms_norm": npu_rms_norm,
    "npu_add_rms_norm": npu_add_rms_norm,
    "npu_swiglu": npu_swiglu,
    "npu_rotary_mul": npu_rotary_mul,
    "npu_apply_rotary_pos_emb": npu_apply_rotary_pos_emb,
    "npu_prompt_flash_attention": npu_prompt_flash_attention,
    "npu_incre_flash_attention": npu_incre_flash_attention,
    "npu_format_cast": npu_format_cast,
    "get_npu_format": format_of,
}
register(OPERATORS)

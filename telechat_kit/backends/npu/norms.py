"""What the NPU backend does to every row of activations by itself: norms and the gate of the feed-forward."""

from torch import Tensor

from telechat_kit.backends import plain
from telechat_kit.backends.npu.forms import PLAIN, Way, form
from telechat_kit.backends.npu.runtime import current_chip, has, operator


def _norm_fits(x: Tensor, weight: Tensor) -> bool:
    """The operators need 32 bytes in the last axis and one dtype for both."""
    return x.dtype == weight.dtype and x.shape[-1] * x.element_size() >= 32


def _rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    normed: Tensor = operator("npu_rms_norm")(x, weight, epsilon)[0]
    return normed


def _add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    normed, _, total = operator("npu_add_rms_norm")(x, residual, weight, epsilon)
    return normed, total


def _norm_of_sum(x: Tensor, residual: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    total = x + residual
    return rms_norm(total, weight, epsilon), total


def _swiglu(both: Tensor) -> Tensor:
    product: Tensor = operator("npu_swiglu")(both)
    return product


rms_norm = form(
    "rms_norm",
    Way(
        "npu_rms_norm",
        _rms_norm,
        lambda: has("npu_rms_norm"),
        lambda x, weight, _: _norm_fits(x, weight),
        ("RmsNorm",),
    ),
    Way(PLAIN, plain.rms_norm),
)
add_rms_norm = form(
    "add_rms_norm",
    Way(
        "npu_add_rms_norm",
        _add_rms_norm,
        lambda: has("npu_add_rms_norm"),
        lambda x, residual, weight, _: _norm_fits(x, weight) and x.dtype == residual.dtype,
        ("AddRmsNorm",),
    ),
    Way("norm of the sum", _norm_of_sum),
)
swiglu = form(
    "swiglu",
    Way(
        "npu_swiglu",
        _swiglu,
        lambda: has("npu_swiglu"),
        lambda both: both.shape[-1] % current_chip().row_multiple == 0 and both.is_contiguous(),
        ("SwiGlu",),
    ),
    Way(PLAIN, plain.swiglu),
)

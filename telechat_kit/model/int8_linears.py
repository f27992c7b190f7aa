"""The W8A8 linear as the network runs it: int8 weights; one static range for its input, or a scale for each token."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from telechat_kit.backends import backend_for

#: Tensors of a W8A8 linear on disk that the arithmetic needs; `weight_scale`, `weight_offset`, `bias` are for readers.
RUNTIME_TENSORS = ("weight", "input_scale", "input_offset", "quant_bias", "deq_scale")
#: Tensors on disk of one with dynamic activations: `weight_offset` is zero, `bias` the original
DYNAMIC_TENSORS = ("weight", "weight_scale", "weight_offset", "bias")


def decode_scale(stored: Tensor) -> Tensor:
    """float32 values of a `deq_scale` as stored: itself, or the float32 bit pattern in the low half of int64."""
    if stored.dtype == torch.float32:
        return stored
    return (stored & 0xFFFFFFFF).to(torch.uint32).view(torch.float32)


def encode_scale(scale: Tensor) -> Tensor:
    """int64 form of float32 scales: the bit pattern read as int32 and widened (what msModelSlim writes)."""
    return scale.float().view(torch.int32).to(torch.int64)


def product_scale(input_scale: Tensor, scale: Tensor) -> Tensor:
    """float32 `[out]`: the product of both scales, in their own dtype unless float16 makes it vanish."""
    product = (input_scale * scale).float()
    return torch.where(product == 0, input_scale.float() * scale.float(), product).squeeze(1)


def quantized_bias(quantized: Tensor, bias: Tensor | None, deq_scale: Tensor, input_offset: Tensor) -> Tensor:
    """int32 `[out]`: the bias in units of `deq_scale`, less what the input's offset adds to every product.

    In float32, not in integers: above 2^24 the reference's values are multiples of 2 to 16, and so are these.
    """
    correction = offset_correction(quantized, input_offset)
    scaled = torch.zeros_like(correction) if bias is None else bias.float() / deq_scale
    return torch.round(scaled - correction).to(torch.int32)


def offset_correction(quantized: Tensor, input_offset: Tensor) -> Tensor:
    """float32 `[out]`: what the offset of the input adds to the products of int8 weights `[out, in]`."""
    return quantized.sum(dim=1).float() * input_offset.float()


def _keep_stored(
    destination: dict[str, Any], prefix: str, held: Mapping[str, Tensor | None], stored: Mapping[str, Tensor]
) -> None:
    """In a state dict, put the tensors as `stored` in the place of those that a device has made of them."""
    for name in held:
        destination.pop(prefix + name, None)
    destination.update({prefix + name: tensor for name, tensor in stored.items()})


class W8A8Linear(nn.Module):
    """`y = (clamp(round(x / input_scale) + input_offset) . weight^T + quant_bias) * deq_scale`, product in int32."""

    weight: Tensor  # int8 [out, in]
    input_scale: Tensor  # float32 [1]
    input_offset: Tensor  # float32 [1], an integer
    quant_bias: Tensor  # int32 [out]; holds the bias and what the offset adds
    deq_scale: Tensor  # float32 [out]

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.out_features, self.in_features = tensors["weight"].shape
        self.register_buffer("weight", tensors["weight"].contiguous())
        self.register_buffer("input_scale", tensors["input_scale"].float())
        self.register_buffer("input_offset", tensors["input_offset"].float())
        self.register_buffer("quant_bias", tensors["quant_bias"])
        self.register_buffer("deq_scale", decode_scale(tensors["deq_scale"]))
        self.prepared = False

    def prepare(self) -> None:
        """Bring the tensors into the form that the device multiplies with: once, when they have reached it."""
        tensors = dict(self.named_buffers())
        for name, tensor in backend_for(self.weight.device.type).prepare_linear(tensors).items():
            self.register_buffer(name, tensor)
        self.prepared = True

    def forward(self, x: Tensor) -> Tensor:
        return backend_for(x.device.type).int8_linear(x, **self._buffers)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        """A state dict holds the tensors as on disk, whatever form the device multiplies with."""
        super()._save_to_state_dict(destination, prefix, keep_vars)
        _keep_stored(destination, prefix, self._buffers, self.stored_tensors())

    def _load_from_state_dict(self, *arguments: Any) -> None:
        for name, tensor in self.stored_tensors().items():
            self.register_buffer(name, tensor)
        super()._load_from_state_dict(*arguments)
        if self.prepared:
            self.prepare()

    def stored_tensors(self) -> dict[str, Tensor]:
        """The tensors that this linear was made of, `weight [out, in]`, whatever the device has made of them."""
        if not self.prepared:
            return dict(self.named_buffers())
        backend = backend_for(self.weight.device.type)
        return backend.restore_linear(dict(self.named_buffers()), self.out_features, self.in_features)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}"


class DynamicW8A8Linear(nn.Module):
    """`y = (x_q . weight^T) * x_scale * weight_scale + bias`, each token of `x` scaled by its own largest value.

    What `npu_dynamic_quant` and `npu_quant_matmul` with `pertoken_scale` compute (msModelSlim's W8A8_DYNAMIC).
    """

    weight: Tensor  # int8 [out, in]
    weight_scale: Tensor  # float32 [out]
    bias: Tensor | None  # float32 [out]

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.out_features, self.in_features = tensors["weight"].shape
        self.register_buffer("weight", tensors["weight"].contiguous())
        self.register_buffer("weight_scale", tensors["weight_scale"].float().squeeze(1))
        self.register_buffer("bias", tensors["bias"].float() if "bias" in tensors else None)
        self.prepared = False

    def prepare(self) -> None:
        """As `W8A8Linear.prepare`."""
        tensors = dict(self.named_buffers())
        for name, tensor in backend_for(self.weight.device.type).prepare_dynamic_linear(tensors).items():
            self.register_buffer(name, tensor)
        self.prepared = True

    def forward(self, x: Tensor) -> Tensor:
        return backend_for(x.device.type).dynamic_int8_linear(x, **self._buffers)

    def stored_tensors(self) -> dict[str, Tensor]:
        """The tensors that this linear was made of, whatever the device has made of them."""
        if not self.prepared:
            return dict(self.named_buffers())
        backend = backend_for(self.weight.device.type)
        return backend.restore_dynamic_linear(dict(self.named_buffers()), self.out_features, self.in_features)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        _keep_stored(destination, prefix, self._buffers, self.stored_tensors())

    def _load_from_state_dict(self, *arguments: Any) -> None:
        stored = self.stored_tensors()
        for name in self._buffers.keys() - stored.keys() - {"bias"}:
            del self._buffers[name]
        self._buffers.update(stored)
        super()._load_from_state_dict(*arguments)
        if self.prepared:
            self.prepare()

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}"


def int8_linear_of(tensors: Mapping[str, Tensor]) -> W8A8Linear | DynamicW8A8Linear:
    """The W8A8 linear of `tensors` as on disk, on their device and in the form that it multiplies with."""
    static = "deq_scale" in tensors
    linear = W8A8Linear(tensors) if static else DynamicW8A8Linear(tensors)
    linear.prepare()
    return linear


class FloatLinear(nn.Linear):
    """A linear that a W8A8 model keeps in float: the backend multiplies, as in the rest of the model."""

    def forward(self, x: Tensor) -> Tensor:
        return backend_for(x.device.type).float_linear(x, self.weight, self.bias)

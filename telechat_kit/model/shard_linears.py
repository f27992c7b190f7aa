"""The linears whose inputs are split over several devices: each adds its part of the output to the others' parts."""

from collections.abc import Mapping

from torch import Tensor, nn

from telechat_kit.backends import backend_for
from telechat_kit.backends.plain import AddUp
from telechat_kit.model.int8_linears import DynamicW8A8Linear, W8A8Linear


class ShardedW8A8Linear(W8A8Linear):
    """`W8A8Linear` of some of the inputs; the int32 products of all parts are added up before they are scaled.

    A device whose operator gives no integers adds up its half-precision outputs, in float32.
    """

    def __init__(self, tensors: Mapping[str, Tensor], add_up: AddUp) -> None:
        super().__init__(tensors)
        self.add_up = add_up

    def prepare(self) -> None:
        tensors = dict(self.named_buffers())
        for name, tensor in backend_for(self.weight.device.type).prepare_sharded_linear(tensors).items():
            self.register_buffer(name, tensor)
        self.prepared = True

    def forward(self, x: Tensor) -> Tensor:
        return backend_for(x.device.type).sharded_int8_linear(x, self.add_up, **self._buffers)


class ShardedDynamicLinear(DynamicW8A8Linear):
    """`DynamicW8A8Linear` of some of the inputs: a token's scale is that of its largest value on any device."""

    def __init__(self, linear: DynamicW8A8Linear, add_up: AddUp, largest: AddUp) -> None:
        nn.Module.__init__(self)
        self.out_features, self.in_features = linear.out_features, linear.in_features
        for name, tensor in linear._buffers.items():
            self.register_buffer(name, tensor)
        self.add_up, self.largest, self.prepared = add_up, largest, False

    def prepare(self) -> None:
        """Nothing: the exact products of parts are taken of the weight as it is."""

    def forward(self, x: Tensor) -> Tensor:
        backend = backend_for(x.device.type)
        return backend.sharded_dynamic_linear(
            x, self.add_up, self.largest, self.weight, self.weight_scale, self.bias
        )


class ShardedFloatLinear(nn.Linear):
    """A float linear of some of the inputs; partial outputs are added up in float32, then the bias."""

    def __init__(self, linear: nn.Linear, add_up: AddUp) -> None:
        nn.Module.__init__(self)
        self.out_features, self.in_features = linear.weight.shape
        self.weight, self.bias, self.add_up = linear.weight, linear.bias, add_up

    def forward(self, x: Tensor) -> Tensor:
        part = backend_for(x.device.type).float_linear(x, self.weight, None)
        y = self.add_up(part.float())
        return (y if self.bias is None else y + self.bias).to(x.dtype)

"""Linears of one input multiplied as one, where a device gains by starting fewer operators (`Backend.joins_linears`).

Their weights lie below one another in a `Joined` of the module that holds them. They themselves become parts of it: a
part gives whoever asks its own tensors, as before, and multiplies by itself where it is called by itself.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from telechat_kit.backends import backend_for
from telechat_kit.model.int8_linears import DynamicW8A8Linear, FloatLinear, W8A8Linear

Kind = Literal["static", "dynamic", "float"]

#: Most outputs of one int8 product (npu_quant_matmul)
MOST_OUTPUTS = 65535
#: Tensors of each kind of linear as they are stored, without those that may be missing in all
_TENSORS: dict[Kind, tuple[str, ...]] = {
    "static": ("weight", "input_scale", "input_offset", "quant_bias", "deq_scale"),
    "dynamic": ("weight", "weight_scale", "bias"),
    "float": ("weight", "bias"),
}
#: What a device may hold in another form than it was given: blocks of the weight, a bias that undoes an unsigned input
_PREPARED = ("weight", "quant_bias")
#: Of the input, and so one for all
_OF_THE_INPUT = ("input_scale", "input_offset")
_KINDS: dict[type[nn.Module], Kind] = {
    W8A8Linear: "static",
    DynamicW8A8Linear: "dynamic",
    FloatLinear: "float",
    nn.Linear: "float",
}


class Joined(nn.Module):
    """Linears of one input below one another, in the form that their device multiplies with."""

    def __init__(self, linears: Sequence[nn.Module]) -> None:
        """`linears`: such as `_joinable` says, on their device, not yet prepared."""
        super().__init__()
        self.kind, self.sizes = (
            _KINDS[type(linears[0])],
            [len(_tensor(linear, "weight")) for linear in linears],
        )
        self.out_features, self.in_features = sum(self.sizes), _tensor(linears[0], "weight").shape[1]
        for name, tensor in self._prepared(_stacked(linears, self.kind)).items():
            # not of the state dict, which has the tensors of the parts
            self.register_buffer(name, tensor, persistent=False)
        for name in set(_TENSORS[self.kind]) - set(self._buffers):
            self.register_buffer(name, None)

    def _prepared(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        backend = backend_for(tensors["weight"].device.type)
        if self.kind == "static":
            return backend.prepare_linear(tensors)
        if self.kind == "dynamic":
            return backend.prepare_dynamic_linear(tensors)
        blocked = backend.blocked_float_weight(tensors["weight"])
        return tensors if blocked is None else {**tensors, "weight": blocked}

    def forward(self, x: Tensor) -> Tensor:
        """The outputs of all, one behind the other: `[..., sum of sizes]` of `x [..., in]`."""
        backend = backend_for(x.device.type)
        ways: dict[Kind, Callable[..., Tensor]] = {
            "static": backend.int8_linear,
            "dynamic": backend.dynamic_int8_linear,
            "float": backend.float_linear,
        }
        multiply = ways[self.kind]
        return multiply(x, **self._buffers)

    def tensor(self, index: int, name: str) -> Tensor | None:
        """The tensor `name` of the linear `index` as it was given: a view, unless the device holds it in another form."""
        tensor = self._restored()[name] if name in _PREPARED else self._buffers[name]
        if tensor is None or name in _OF_THE_INPUT:
            return tensor
        start = sum(self.sizes[:index])
        return tensor[start : start + self.sizes[index]]

    def _restored(self) -> dict[str, Tensor]:
        tensors = dict(self.named_buffers())
        backend = backend_for(tensors["weight"].device.type)
        if self.kind == "float":
            return {"weight": backend.restore_float_weight(tensors["weight"])}
        restore = backend.restore_linear if self.kind == "static" else backend.restore_dynamic_linear
        return restore(tensors, self.out_features, self.in_features)

    def extra_repr(self) -> str:
        return f"{self.kind}, in_features={self.in_features}, sizes={self.sizes}"


class _Part(nn.Module):
    """One of the linears of a `Joined`, in the place of the linear that it was made of."""

    prepared = True

    def __init__(self, linear: nn.Module, joined: Joined, index: int) -> None:
        nn.Module.__init__(self)
        self.out_features, self.in_features = joined.sizes[index], joined.in_features
        # in a tuple: the module is registered where the linears are, once
        self._place, self.origin = (joined, index), type(linear)

    @property
    def joined(self) -> Joined:
        """What this is a part of."""
        return self._place[0]

    def __getattr__(self, name: str) -> Any:
        place = self.__dict__.get("_place")
        if place is None or name not in _TENSORS[place[0].kind]:
            return super().__getattr__(name)
        tensor = place[0].tensor(place[1], name)
        return (
            nn.Parameter(tensor, requires_grad=False)
            if isinstance(self, nn.Linear) and tensor is not None
            else tensor
        )

    def forward(self, x: Tensor) -> Tensor:
        joined, index = self._place
        return joined(x).split(joined.sizes, dim=-1)[index]

    def stored_tensors(self) -> dict[str, Tensor]:
        """The tensors of the linear that this was made of."""
        joined, index = self._place
        found = {name: joined.tensor(index, name) for name in _TENSORS[joined.kind]}
        return {name: tensor for name, tensor in found.items() if tensor is not None}

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:  # noqa: ARG002
        destination.update({prefix + name: tensor for name, tensor in self.stored_tensors().items()})

    def alone(self) -> nn.Module:
        """The linear that this was made of, not prepared."""
        tensors = self.stored_tensors()
        if self.joined.kind == "static":
            return W8A8Linear(tensors)
        if self.joined.kind == "dynamic":
            return DynamicW8A8Linear({**tensors, "weight_scale": tensors["weight_scale"][:, None]})
        linear = self.origin(self.in_features, self.out_features, "bias" in tensors, device="meta")
        for name, tensor in tensors.items():
            setattr(linear, name, nn.Parameter(tensor, requires_grad=False))
        return linear


class _StaticPart(_Part, W8A8Linear):
    """A part that readers know as a `W8A8Linear`."""


class _DynamicPart(_Part, DynamicW8A8Linear):
    """A part that readers know as a `DynamicW8A8Linear`."""


class _FloatPart(_Part, nn.Linear):
    """A part that readers know as a `Linear`."""


_PARTS: dict[Kind, type[_Part]] = {"static": _StaticPart, "dynamic": _DynamicPart, "float": _FloatPart}


def is_part(linear: nn.Module) -> bool:
    """Whether `linear` is one of several that are multiplied as one."""
    return isinstance(linear, _Part)


def _joinable(linears: Sequence[nn.Module]) -> bool:
    """Whether `linears`, which read the same tensor, can be multiplied as one: of one kind, with one scale of the input."""
    kinds = {_KINDS.get(type(linear)) for linear in linears}
    if len(kinds) > 1 or None in kinds:
        return False
    kind, first = kinds.pop(), linears[0]
    alike = {(_tensor(linear, "weight").dtype, _tensor(linear, "weight").device) for linear in linears}
    scales = kind != "static" or all(
        torch.equal(_tensor(linear, name), _tensor(first, name))
        for linear in linears
        for name in _OF_THE_INPUT
    )
    outputs = sum(len(_tensor(linear, "weight")) for linear in linears)
    return len(alike) == 1 and scales and (kind == "float" or outputs <= MOST_OUTPUTS)


def prepare_linears(parent: nn.Module, names: Sequence[str]) -> None:
    """Bring the children `names` of `parent`, which read the same tensor, into the form that their device multiplies with.

    Where the device gains by it, they become parts of one product, and stay it when a state dict is loaded.
    """
    _join_or_prepare(tuple(names), parent)
    if all(map(is_part, _children(parent, names))):
        parent.register_load_state_dict_pre_hook(partial(_separate, tuple(names)))
        parent.register_load_state_dict_post_hook(partial(_join_or_prepare, tuple(names)))


def prepare_linear(linear: nn.Module) -> None:
    """Bring a linear that is no part into the form that its device multiplies with."""
    if isinstance(linear, W8A8Linear | DynamicW8A8Linear):
        linear.prepare()
    elif isinstance(linear, nn.Linear):
        backend_for(linear.weight.device.type).prepare_float_linear(linear)


def _join_or_prepare(names: tuple[str, ...], parent: nn.Module, *_: Any) -> None:
    linears = _children(parent, names)
    device = _tensor(linears[0], "weight").device.type
    if len(linears) < 2 or not backend_for(device).joins_linears or not _joinable(linears):
        for linear in linears:
            prepare_linear(linear)
        return
    parent.joined = joined = Joined(linears)
    for index, (name, linear) in enumerate(zip(names, linears, strict=True)):
        setattr(parent, name, _PARTS[joined.kind](linear, joined, index))


def _separate(names: tuple[str, ...], parent: nn.Module, *_: Any) -> None:
    """Linears of their own again, for tensors to be loaded into."""
    for name, part in zip(names, _children(parent, names), strict=True):
        if isinstance(part, _Part):
            setattr(parent, name, part.alone())
    if hasattr(parent, "joined"):
        del parent.joined


def _children(parent: nn.Module, names: Sequence[str]) -> list[nn.Module]:
    return [parent.get_submodule(name) for name in names]


def joined_of(*linears: nn.Module) -> Joined | None:
    """What `linears` are all parts of, in their order; None if they are not, or if one is watched by hooks."""
    first = linears[0]
    if not isinstance(first, _Part):
        return None
    whole = all(isinstance(linear, _Part) and linear.joined is first.joined for linear in linears)
    watched = any(linear._forward_hooks or linear._forward_pre_hooks for linear in linears)
    return first.joined if whole and not watched else None


def together(x: Tensor, *linears: nn.Module) -> tuple[Tensor, ...]:
    """What each of `linears` gives for `x`: in one product where they are parts of one."""
    joined = joined_of(*linears)
    if joined is None:
        return tuple(linear(x) for linear in linears)
    return joined(x).split(joined.sizes, dim=-1)


def _stacked(linears: Sequence[nn.Module], kind: Kind) -> dict[str, Tensor]:
    """Tensors of all: below one another, or those of the first where they belong to the input."""
    found = {}
    for name in _TENSORS[kind]:
        tensors = [getattr(linear, name) for linear in linears]
        if name in _OF_THE_INPUT:
            found[name] = tensors[0]
        elif any(tensor is not None for tensor in tensors):
            found[name] = torch.cat(
                [_or_zeros(tensor, linear) for tensor, linear in zip(tensors, linears, strict=True)]
            )
    return {name: tensor.detach() for name, tensor in found.items()}


def _or_zeros(bias: Tensor | None, linear: nn.Module) -> Tensor:
    """The bias of a linear that has none, beside one that has."""
    weight = _tensor(linear, "weight")
    dtype = weight.dtype if weight.is_floating_point() else torch.float32
    return torch.zeros(len(weight), dtype=dtype, device=weight.device) if bias is None else bias


def _tensor(linear: nn.Module, name: str) -> Tensor:
    tensor: Tensor = getattr(linear, name)
    return tensor

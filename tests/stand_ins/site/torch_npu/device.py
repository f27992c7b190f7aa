"""A torch device "npu" whose tensors lie in main memory: placement counts as on a real device, speed does not.

Every operator on such tensors runs on the CPU tensors that they hold. An operator that meets tensors of both devices
is refused, as torch refuses it, and so is one for `npu::` operators.
"""

import types
from typing import Any

import torch
from npu_memory import Memory
from npu_operators import demand
from npu_sabotage import read
from torch import Tensor
from torch.utils import _pytree as tree
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from torch_npu.graphs import NPUGraph, graph

#: Libraries must stay referenced: torch forgets what a collected one registered
_libraries: list[torch.library.Library] = []


class NpuTensor(torch.Tensor):
    """A tensor on the device "npu" that holds a tensor on the CPU."""

    held: Tensor

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: Tensor) -> "NpuTensor":
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            storage_size=held.untyped_storage().nbytes(),  # what lies behind a slice
            dtype=held.dtype,
            device=torch.device("npu", 0),
        )
        made.held = held
        return made

    def __repr__(self) -> str:
        return f"npu({self.held})"

    def tolist(self) -> Any:
        return self.held.tolist()

    @classmethod
    def __torch_dispatch__(cls, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # a view of a normal tensor must be one too, and torch does not make it so for subclasses
        with torch.inference_mode(False):
            return _run(op, args, kwargs or {})


def _run(op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if op._schema.name == "aten::_fused_sdp_choice":
        return 0  # attention of separate operators
    leaves, structure = tree.tree_flatten((args, kwargs))
    wrappers = {id(leaf.held): leaf for leaf in leaves if isinstance(leaf, NpuTensor)}
    on_npu = _result_is_on_npu(op._schema.name, leaves)
    if not on_npu or op._schema.name in ("aten::item", "aten::_local_scalar_dense", "aten::is_nonzero"):
        read()
    low_args, low_kwargs = tree.tree_unflatten([_lowered(leaf) for leaf in leaves], structure)
    result = op(*low_args, **low_kwargs)
    if NPUGraph.capturing is not None:
        demand(on_npu, "NPUGraph", f"{op._schema.name} gives the host a result")
        copied = leaves[1] if op._schema.name == "aten::copy_" else None
        demand(
            not isinstance(copied, Tensor) or isinstance(copied, NpuTensor),
            "NPUGraph",
            "a copy from the host",
        )
        NPUGraph.capturing.note(op, low_args, low_kwargs, result)

    def raised(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or not on_npu:
            return leaf
        return wrappers.get(id(leaf)) if id(leaf) in wrappers else NpuTensor(leaf)

    return tree.tree_map(raised, result)


def _lowered(leaf: Any) -> Any:
    if isinstance(leaf, torch.device) and leaf.type == "npu":
        return torch.device("cpu")
    return leaf.held if isinstance(leaf, NpuTensor) else leaf


def _result_is_on_npu(name: str, leaves: list[Any]) -> bool:
    """Where a result belongs; raises for tensors of two devices, which only copies may take."""
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    here = [isinstance(tensor, NpuTensor) for tensor in tensors]
    if name in ("aten::_to_copy", "aten::to"):  # the second in inference mode
        targets = [leaf for leaf in leaves if isinstance(leaf, torch.device)]
        return targets[0].type == "npu" if targets else here[-1]
    if name == "aten::copy_":
        return here[0]
    if any(here) and any(not own and tensor.ndim for own, tensor in zip(here, tensors, strict=True)):
        raise RuntimeError(f"{name}: expected all tensors to be on one device, found npu:0 and cpu")
    return True


def _copy_from(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    demand(NPUGraph.capturing is None, "NPUGraph", "a copy from the host")
    _lowered(target).copy_(_lowered(source))
    return target


def _empty(size: Any, dtype: Any = None, **_: Any) -> Tensor:
    return NpuTensor(torch.empty(size, dtype=dtype))


def _empty_strided(size: Any, stride: Any, dtype: Any = None, **_: Any) -> Tensor:
    return NpuTensor(torch.empty_strided(size, stride, dtype=dtype))


def _arange(*limits: Any, dtype: Any = None, **_: Any) -> Tensor:
    return NpuTensor(torch.arange(*limits, dtype=dtype))


def install() -> types.ModuleType:
    """Give torch the device "npu" and the module `torch.npu`; once a process, and it stays."""
    module = Memory("npu")
    module.NPUGraph, module.graph = NPUGraph, graph  # type: ignore[attr-defined]
    _setup_privateuseone_for_python_backend("npu", backend_module=module)
    every, aten = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")
    every.fallback(lambda op, *args, **kwargs: _run(op, args, kwargs), "PrivateUse1")
    # torch.tensor(..., device="npu") reaches these with its Python dispatch switched off
    aten.impl("_copy_from", _copy_from, "PrivateUse1")
    aten.impl("empty.memory_format", _empty, "PrivateUse1")
    aten.impl("empty_strided", _empty_strided, "PrivateUse1")
    # torch makes it of an empty tensor that grows, of which the outer one would not hear
    for name in ("arange", "arange.start", "arange.start_step"):
        aten.impl(name, _arange, "PrivateUse1")
    _libraries.extend([every, aten])
    return module

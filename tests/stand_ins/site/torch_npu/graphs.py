"""A stand-in for NPUGraph: the operators of a capture are written down with their tensors, and a replay runs them again.

A value that the host calculated at the capture stays what it was, a result keeps its address, and what has to wait for
the device is refused, as on a device. There a capture does not run the operators; here it does.
"""

from typing import Any

from npu_operators import demand
from torch import Tensor
from torch.utils import _pytree as tree

#: They wait for the device, which a graph cannot do
_HOST = ("aten::item", "aten::_local_scalar_dense", "aten::is_nonzero", "aten::nonzero", "aten::equal")


class NPUGraph:
    """Operators in their order: each with its arguments and its results."""

    capturing: "NPUGraph | None" = None

    def __init__(self) -> None:
        self.operators: list[tuple[Any, Any, Any, Any]] = []

    def note(self, op: Any, args: Any, kwargs: Any, result: Any) -> None:
        """Write down one operator that ran on tensors of the device."""
        demand(op._schema.name not in _HOST, "NPUGraph", f"{op._schema.name} waits for the device")
        self.operators.append((op, args, kwargs, result))

    def replay(self) -> None:
        """Run all operators again, results to where they were."""
        for op, args, kwargs, result in self.operators:
            again = tree.tree_leaves(op(*args, **kwargs))
            for old, new in zip(tree.tree_leaves(result), again, strict=True):
                if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


class graph:  # noqa: N801  (its name in torch_npu)
    """The operators within belong to the graph."""

    def __init__(self, target: NPUGraph) -> None:
        self._target = target

    def __enter__(self) -> None:
        NPUGraph.capturing = self._target

    def __exit__(self, *_: object) -> None:
        NPUGraph.capturing = None

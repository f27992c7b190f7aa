"""Graphs of an NPU: a step recorded once and then given to the device as a whole."""

from collections.abc import Callable

from telechat_kit.backends.failures import first_line, is_out_of_memory
from telechat_kit.backends.npu.forms import note
from telechat_kit.backends.npu.runtime import torch_npu
from telechat_kit.errors import DeviceError


def capture(step: Callable[[], object]) -> Callable[[], None]:
    """Run `step` once, record it as an NPUGraph, and give the call that replays it on the same tensors.

    Raises:
        DeviceError: this torch_npu has no graphs, or the step holds an operator that cannot be recorded.
    """
    npu = torch_npu().npu
    if not hasattr(npu, "NPUGraph"):
        raise DeviceError(
            'graph "capture" needs a torch_npu with NPUGraph, this one has none. Install a newer pair of torch and '
            "torch_npu (telechat-kit check lists them), or use graph: none."
        )
    step()  # what an operator makes at its first use must not be part of the graph
    npu.synchronize()
    graph = npu.NPUGraph()
    try:
        with npu.graph(graph):
            step()
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        raise DeviceError(
            "the decode step cannot be captured as a graph ({first_line}). Use graph: none.",
            first_line=first_line(error),
        ) from error
    note("decode", "NPUGraph")
    replay: Callable[[], None] = graph.replay
    return replay

"""Graphs of an NPU: a step recorded once and then given to the device as a whole."""

from collections.abc import Callable

from telechat_kit.backends.npu.calls import used
from telechat_kit.backends.npu.chips import CHIPS
from telechat_kit.backends.npu.runtime import current_chip, torch_npu
from telechat_kit.errors import DeviceError


def capture(step: Callable[[], None]) -> Callable[[], None]:
    """Run `step` once, record it as an NPUGraph, and give the call that replays it on the same tensors.

    Raises:
        DeviceError: the chip or this torch_npu has no graphs, or the step holds an operator that cannot be recorded.
    """
    npu = torch_npu().npu
    _require_graphs(hasattr(npu, "NPUGraph"))
    step()  # what an operator makes at its first use must not be part of the graph
    npu.synchronize()
    graph = npu.NPUGraph()
    try:
        with npu.graph(graph):
            step()
    except RuntimeError as error:
        if "out of memory" in str(error):
            raise
        line = str(error).partition("\n")[0]
        raise DeviceError(
            f"the decode step cannot be captured as a graph ({line}). Use graph: none."
        ) from error
    used["decode"].add("NPUGraph")
    replay: Callable[[], None] = graph.replay
    return replay


def _require_graphs(in_release: bool) -> None:
    family = current_chip().family
    if not current_chip().graphs:
        known = ", ".join(chip.family for chip in CHIPS if chip.graphs)
        raise DeviceError(f'graph "capture" is for {known}, this chip is a {family}. Use graph: none.')
    if not in_release:
        raise DeviceError(
            'graph "capture" needs a torch_npu with NPUGraph, this one has none. Install a newer pair of torch and '
            "torch_npu (telechat-kit check lists them), or use graph: none."
        )

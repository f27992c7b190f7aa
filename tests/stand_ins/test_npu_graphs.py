"""The stand-in of NPUGraph: it replays on the same tensors, keeps what the host calculated, refuses what waits for the device."""

import subprocess
import sys
from pathlib import Path

from call_list import environment

CODE = """
import torch, torch_npu

x, y = torch.ones(3).to("npu"), torch.zeros(3).to("npu")
graph, factor = torch.npu.NPUGraph(), 2.0
with torch.npu.graph(graph):
    y.copy_(x * factor + 1)
x.fill_(5)
factor = 100.0
graph.replay()
print(y.cpu().tolist())

def refused(step):
    try:
        with torch.npu.graph(torch.npu.NPUGraph()):
            step()
    except RuntimeError as error:
        print(error)

refused(lambda: x.sum().item())
refused(lambda: int(x[0]))
refused(lambda: x.cpu())
refused(lambda: torch.ones(3).to("npu"))
refused(lambda: x.copy_(torch.ones(3)))
"""


def test_a_replay_reads_and_writes_the_tensors_of_the_capture(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        capture_output=True,
        text=True,
        env=environment("Ascend910B4", tmp_path),
        check=False,
        timeout=300,
    )
    values, *refusals = done.stdout.splitlines()
    assert values == "[11.0, 11.0, 11.0]", done.stderr
    assert [told.split(": ")[0] for told in refusals] == ["NPUGraph"] * 5, refusals

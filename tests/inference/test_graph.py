"""Decode as a graph: the static step gives what the network gives, and a replayed one too, on the stand-in of an NPU."""

import json
import subprocess
import sys
from pathlib import Path
from statistics import median

import pytest
import torch
from call_list import environment

from telechat_kit.errors import DeviceError, ParameterError
from telechat_kit.inference.generation import generate
from telechat_kit.inference.graph import StaticStep
from telechat_kit.inference.loading import load_model
from telechat_kit.inference.network_run import NetworkRun
from telechat_kit.model import TelechatForCausalLM
from telechat_kit.model.int8_linears import W8A8Linear
from telechat_kit.performance.measurement import measure_performance

PROMPT = [4, 80, 90, 100, 5]
#: In a process of its own on the stand-in: ids of the static step as a graph and operator by operator, to the last one; and
#: the first ones of the usual step, whose attention rounds elsewhere, which a near tie of random weights shows sooner or later
ON_NPU = """
import json, sys
from telechat_kit.backends import backend_for, npu
from telechat_kit.errors import KitError
from telechat_kit.inference.generation import generate
from telechat_kit.inference.loading import load_model

prompt, captured = json.loads(sys.argv[1]), npu.capture

def ids(model, graph):
    asked = ((5, 1.0), (1, 1.3))
    return [generate(model, prompt[:n], 16, repetition_penalty=p, graph=graph).token_ids for n, p in asked]

try:
    for folder in sys.argv[2:]:
        model = load_model(folder, "npu:0")
        npu.capture = captured
        graph, usual = ids(model, "capture"), ids(model, "none")
        npu.capture = lambda step: step
        assert graph == ids(model, "capture"), graph
        assert [new[:8] for new in graph] == [new[:8] for new in usual], (graph, usual)
    print(json.dumps(backend_for("npu").operators()))
except KitError as error:
    print(error)
"""


@pytest.fixture(scope="module", params=["tiny_folder", "tiny_w8a8_folder"])
def model(request: pytest.FixtureRequest) -> TelechatForCausalLM:
    return load_model(request.getfixturevalue(request.param), device="cpu")


@torch.inference_mode()
def test_a_static_step_gives_the_logits_of_the_network(model: TelechatForCausalLM) -> None:
    expected, run = NetworkRun(model, 24), NetworkRun(model, 24)
    step = StaticStep(model, run.cache.slots)
    differences = []
    for each in (expected, run):
        each.logits(PROMPT)
    for position, token in enumerate(range(100, 119), start=len(PROMPT)):
        step.token.fill_(token)
        step.position.fill_(position)
        step()
        differences.append(float((step.logits - expected.logits([token])).abs().max()))
    int8 = any(isinstance(module, W8A8Linear) for module in model.modules())
    assert median(differences) < 1e-4
    # sums in another order may move an int8 activation by a step, which all later positions see
    assert max(differences) < (0.3 if int8 else 1e-4)


def on_npu(chip: str, folders: list[Path], tmp_path: Path) -> str:
    arguments = [json.dumps(PROMPT), *map(str, folders)]
    command = [sys.executable, "-c", ON_NPU, *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment(chip, tmp_path), check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("chip", ["Ascend310P3", "Ascend910B4"])
def test_a_captured_step_gives_the_ids_of_the_network(
    chip: str, tiny_folder: Path, tiny_w8a8_folder: Path, tmp_path: Path
) -> None:
    used = json.loads(on_npu(chip, [tiny_folder, tiny_w8a8_folder], tmp_path))
    assert used["decode"] == "NPUGraph"
    assert "npu_quant_matmul" in used["int8_linear"]


def test_a_cpu_has_no_graphs(model: TelechatForCausalLM) -> None:
    with pytest.raises(DeviceError, match=r'graph "capture" is for an NPU. Use graph: none'):
        generate(model, PROMPT, 3, graph="capture")


def test_an_unknown_graph_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match=r'graph "torchair" is unknown. Use one of none, capture'):
        measure_performance(tmp_path, tmp_path, run_folder=tmp_path, graph="torchair")


def test_a_graph_of_a_shared_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match=r"several share the model here"):
        measure_performance(tmp_path, tmp_path, run_folder=tmp_path, graph="capture", device="npu:0,npu:1")


def test_a_graph_ends_at_the_trained_length(model: TelechatForCausalLM) -> None:
    longest = model.config.training_seqlen
    with pytest.raises(ParameterError, match=rf"up to the trained length of {longest} positions"):
        generate(model, PROMPT, longest, graph="capture")

"""Operators of an NPU that fail in the middle of a generation, on sabotaged stand-ins: replaced, or told once and for all."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from call_list import environment

#: In a process of its own: the same ids again and again, each time with another operator sabotaged behind some tokens.
#: npu_add_rms_norm and plain torch give the same bits, so that a repaired run gives the ids of the unharmed one
CODE = """
import json, os, sys
import npu_sabotage
from telechat_kit.backends import npu
from telechat_kit.environment import use_tested_operators
from telechat_kit.errors import KitError
from telechat_kit.inference.generation import generate, generate_batch
from telechat_kit.inference.loading import load_model
from telechat_kit.inference.whole_sequences import hidden_states

weights, folder = sys.argv[1:]
prompt = [4, 80, 90, 100, 5]
model = load_model(weights, "npu:0")
ways = {
    "tokens": lambda seen: generate(model, prompt, 8, on_token=seen.append).token_ids,
    "penalized": lambda seen: generate(model, prompt, 8, repetition_penalty=1.3).token_ids,
    "batch": lambda seen: generate_batch(model, [prompt, prompt[:3]], 8),
    "graph": lambda seen: generate(model, prompt, 8, graph="capture", on_token=seen.append).token_ids,
    "states": lambda seen: hidden_states(model, [prompt, prompt[:3]])[1].float().cpu().tolist(),
}

def run(way, plan=""):
    npu_sabotage.Queue.told_next, npu_sabotage.Queue.ended, npu_sabotage.Queue.gone = None, False, False
    npu_sabotage._calls.clear()
    os.environ["TORCH_NPU_STAND_IN_SABOTAGE"] = plan
    seen = []
    try:
        found = {"result": ways[way](seen)}
    except KitError as error:
        found = {"error": f"{type(error).__name__}: {error}"}
    return {**found, "seen": seen, "operators": npu.operators()}

runs = {}
for way in ways:
    # what a graph replays is not given to the host's checks again
    for kind in ("none", "nan") if way == "graph" else ("none", "refuse", "nan"):
        npu.operations.forget()
        use_tested_operators(folder, "npu:0")
        first = 9 if way == "states" else 30
        runs[f"{way} {kind}"] = run(way, "" if kind == "none" else f"npu_add_rms_norm:{kind}@{first}")
npu.operations.forget()
npu.operations.use_slower("swiglu", "to compare")
runs["without swiglu"] = run("tokens")
npu.operations.forget()
use_tested_operators(folder, "npu:0")
runs["memory"] = run("tokens", "npu_swiglu:memory@20")
runs["gone"] = run("tokens", "npu_rms_norm:gone@4")
runs["late"] = run("tokens", "npu_swiglu:late@20")
npu.operations.forget()
use_tested_operators(folder, "npu:0")
runs["again"] = run("tokens", "npu_swiglu:late@1")
print(json.dumps(runs))
"""


@pytest.fixture(scope="module")
def runs(tiny_w8a8_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("failing")
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(tiny_w8a8_folder), str(folder)],
        env=environment("Ascend910B4", folder),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    yield {**json.loads(done.stdout.splitlines()[-1]), "printed": done.stdout}


HARMED = [(way, kind) for way in ("tokens", "penalized", "batch", "states") for kind in ("refuse", "nan")]
TOLD = {"refuse": "failed in the middle of the run: call", "nan": "gave NaN in the middle of the run"}


@pytest.mark.parametrize(("way", "kind"), [*HARMED, ("graph", "nan")])
def test_an_operator_that_fails_is_replaced_and_the_ids_are_those_of_the_unharmed_run(
    runs: dict[str, Any], way: str, kind: str
) -> None:
    unharmed, harmed = runs[f"{way} none"], runs[f"{way} {kind}"]
    assert "set aside" not in unharmed["operators"]["add_rms_norm"]
    assert f"npu_add_rms_norm set aside ({TOLD[kind]}" in harmed["operators"]["add_rms_norm"]
    assert harmed["result"] == unharmed["result"]


def test_too_little_memory_is_told_and_replaces_nothing(runs: dict[str, Any]) -> None:
    assert "input 5, output 8 tokens: Ascend910B4 is out of memory" in runs["memory"]["error"]
    assert "set aside" not in str(runs["memory"]["operators"])


def test_a_card_taken_away_is_told_once_and_clearly(runs: dict[str, Any]) -> None:
    assert runs["gone"]["error"].startswith("DeviceError: the device (seen at npu_")
    assert "error code is 507899" in runs["gone"]["error"]
    assert 0 < len(runs["gone"]["seen"]) < 8  # what was there before is not lost


def test_an_operator_that_fails_behind_its_call_ends_the_process_and_is_left_out_by_the_next(
    runs: dict[str, Any],
) -> None:
    error = runs["late"]["error"]
    assert error.startswith("DeviceError: npu_swiglu failed (The Inner error is reported as above.")
    assert error.endswith("a slower way then takes its place.")
    assert runs["again"]["result"] == runs["without swiglu"]["result"]
    assert (
        "npu_swiglu set aside (in an earlier step it took the device away"
        in runs["again"]["operators"]["swiglu"]
    )
    assert "swiglu: npu_swiglu is not used (in an earlier step it took the device away" in runs["printed"]
    assert "failed_operators.json to try it again." in runs["printed"]

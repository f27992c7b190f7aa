"""Quantization block by block: what it leaves when it is killed, how it goes on, which sources it takes."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from telechat_kit import load_model
from telechat_kit.errors import CheckpointError, KitError
from telechat_kit.files import LOCK, OWNER, working_in
from telechat_kit.quantization import Calibration, Recipe, blocks, quantize
from telechat_kit.quantization.partial import Pass, partial_folder

WEIGHTS = "quant_model_weight_w8a8.safetensors"
RECIPE = Recipe("L3", anti_outlier="m2")
AUTO = Recipe("auto", "3 linears", budget_samples=2, anti_outlier="m1")
BEST = Recipe("L2", anti_outlier="best")
CALIBRATION = Calibration("pydoc_data.topics", calibration_samples=6, calibration_tokens=48)

#: Quantizes argv[1] into argv[2] with the recipe and the calibration of argv[4], tells every file that is finished,
#: and dies just before argv[3] is
PROCESS = """
import json, os, signal, sys
from pathlib import Path
import torch
from telechat_kit.quantization import Calibration, Recipe, quantize

def renaming(event, arguments):
    if event == "os.rename":
        name = Path(arguments[1]).name
        if name == sys.argv[3]:
            os.kill(os.getpid(), signal.SIGKILL)
        print(name, flush=True)

torch.set_num_threads(1)
sys.addaudithook(renaming)
recipe, calibration = json.loads(sys.argv[4])
quantize(sys.argv[1], sys.argv[2], Recipe(**recipe), Calibration(**calibration))
"""


def quantize_in_a_process(
    source: Path, target: Path, die_before: str = "", recipe: Recipe = RECIPE
) -> tuple[int, list[str]]:
    """Exit code, and the names of the files that were finished, in this order."""
    command = [sys.executable, "-c", PROCESS, str(source), str(target), die_before]
    command += [json.dumps([asdict(recipe), asdict(CALIBRATION)])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout.split()


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def unbroken(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a quantization that nothing interrupts."""
    folder = tmp_path_factory.mktemp("unbroken") / "w8a8"
    quantize(tiny_folder, folder, RECIPE, CALIBRATION)
    return contents(folder)


@pytest.fixture(scope="module")
def unbroken_auto(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The same at level auto."""
    folder = tmp_path_factory.mktemp("unbroken") / "w8a8"
    quantize(tiny_folder, folder, AUTO, CALIBRATION)
    return contents(folder)


@pytest.fixture
def source(tiny_folder: Path, tmp_path: Path) -> Path:
    """A float checkpoint that may be changed."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "source"))


@pytest.mark.parametrize(
    ("die_before", "kept"),
    [
        pytest.param(
            "analysis-002.safetensors",
            ["analysis-000.safetensors", "analysis-001.safetensors"],
            marks=pytest.mark.soak,
        ),
        pytest.param(
            "block-002.safetensors",
            ["analysis-003.safetensors", "block-000.safetensors", "block-001.safetensors"],
            marks=pytest.mark.soak,
        ),
        ("w8a8", ["analysis-003.safetensors", "block-003.safetensors"]),
    ],
)
def test_resumes_where_it_was_killed_and_gives_the_bytes_of_an_unbroken_run(
    die_before: str, kept: list[str], source: Path, tmp_path: Path, unbroken: dict[str, bytes]
) -> None:
    target = tmp_path / "results" / "w8a8"
    code, finished = quantize_in_a_process(source, target, die_before)
    assert code == -signal.SIGKILL
    assert set(kept) <= set(finished)
    assert not target.exists()
    assert [path.name for path in target.parent.iterdir()] == [".w8a8.partial"]

    code, finished = quantize_in_a_process(source, target)
    assert code == 0
    assert not set(kept) & set(finished)
    assert contents(target) == unbroken
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize(
    "die_before",
    [pytest.param("candidates-002.safetensors", marks=pytest.mark.soak), "joint-004.safetensors"],
)
def test_level_auto_resumes_in_the_middle_of_measuring(
    die_before: str, source: Path, tmp_path: Path, unbroken_auto: dict[str, bytes]
) -> None:
    target = tmp_path / "w8a8"
    code, finished = quantize_in_a_process(source, target, die_before, AUTO)
    assert code == -signal.SIGKILL
    assert {"trial-003.safetensors", "candidates-001.safetensors"} <= set(finished)
    code, again = quantize_in_a_process(source, target, recipe=AUTO)
    assert code == 0
    parts = {name for name in finished if name.endswith("safetensors") and "states" not in name}
    assert not parts & set(again)
    assert contents(target) == unbroken_auto


@pytest.mark.parametrize(
    "die_before", [pytest.param("block-002.safetensors", marks=pytest.mark.soak), "w8a8"]
)
def test_method_best_resumes_among_the_blocks_and_behind_the_linears_given_back(
    die_before: str, source: Path, tmp_path: Path
) -> None:
    target, unbroken = tmp_path / "w8a8", tmp_path / "unbroken"
    quantize(source, unbroken, BEST, CALIBRATION)
    code, finished = quantize_in_a_process(source, target, die_before, BEST)
    assert code == -signal.SIGKILL
    code, again = quantize_in_a_process(source, target, recipe=BEST)
    assert code == 0
    assert "block-001.safetensors" in finished
    assert not {"block-states-000.safetensors", "block-states-001.safetensors"} & set(
        again
    )  # none is run again
    assert contents(target) == contents(unbroken)
    assert len(json.loads((target / "quantize.json").read_text())["float_linears"]) >= 2


def interrupt(source: Path, target: Path) -> None:
    """Begin a quantization and press Ctrl+C when two blocks are quantized."""

    def track(indices: Iterable[int], description: str, **_: int) -> Iterator[int]:
        for block in indices:
            if description.endswith("quantization of blocks") and block == 2:
                raise KeyboardInterrupt
            yield block

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(blocks, "track", track)
        quantize(source, target, RECIPE, CALIBRATION)
    assert (partial_folder(target) / "block-001.safetensors").is_file()


@pytest.mark.parametrize("change", ["recipe", "weights", "config"])
def test_other_work_is_begun_anew(change: str, source: Path, tmp_path: Path) -> None:
    target, expected = tmp_path / "w8a8", tmp_path / "expected"
    interrupt(source, target)
    calibration = replace(CALIBRATION, seed=1) if change == "recipe" else CALIBRATION
    if change == "weights":
        tensors = load_model(source).state_dict()
        torch.save({name: value * 1.5 for name, value in tensors.items()}, source / "pytorch_model.bin")
        (source / "model.safetensors").unlink()
    if change == "config":
        config = json.loads((source / "config.json").read_text())
        (source / "config.json").write_text(json.dumps(config | {"layer_norm_epsilon": 0.1}))
    quantize(source, target, RECIPE, calibration)
    quantize(source, expected, RECIPE, calibration)
    assert contents(target) == contents(expected)


def test_an_existing_w8a8_folder_stays_until_the_new_one_is_whole(
    source: Path, tmp_path: Path, unbroken: dict[str, bytes]
) -> None:
    target = tmp_path / "w8a8"
    quantize(
        source,
        target,
        Recipe(level="L0", anti_outlier="m1"),
        Calibration("pydoc_data.topics", calibration_samples=2, calibration_tokens=48),
    )
    before = contents(target)
    interrupt(source, target)
    assert contents(target) == before
    quantize(source, target, RECIPE, CALIBRATION)
    assert contents(target) == unbroken


def as_bin_shards(source: Path, folder: Path, dtype: torch.dtype) -> Path:
    """`source` with its weights in two `.bin` shards of `dtype`, without prefix and head, as the 7B publishes them."""
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    tensors = {
        name.removeprefix("transformer."): value.to(dtype)
        for name, value in load_file(source / "model.safetensors").items()
        if name != "lm_head.weight"
    }
    names = sorted(tensors)
    halves = {"a.bin": names[::2], "b.bin": names[1::2]}  # the tensors of a block lie in both
    for shard, half in halves.items():
        torch.save({name: tensors[name] for name in half}, folder / shard)
    weight_map = {name: shard for shard, half in halves.items() for name in half}
    (folder / "pytorch_model.bin.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": weight_map})
    )
    return folder


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bit_bin_shards_keep_their_dtype_in_the_float_parts(
    dtype: torch.dtype, tiny_folder: Path, tmp_path: Path
) -> None:
    source, target = as_bin_shards(tiny_folder, tmp_path / "float", dtype), tmp_path / "w8a8"
    quantize(
        source,
        target,
        Recipe(level="L2", anti_outlier="m1"),
        Calibration("pydoc_data.topics", calibration_samples=4, calibration_tokens=48),
    )
    tensors, kinds = (
        load_file(target / WEIGHTS),
        json.loads((target / "quant_model_description_w8a8.json").read_text()),
    )
    assert torch.equal(
        tensors["word_embeddings.weight"],
        load_file(tiny_folder / "model.safetensors")["transformer.word_embeddings.weight"].to(dtype),
    )
    floats = {name for name, kind in kinds.items() if kind == "FLOAT"}
    assert {tensors[name].dtype for name in floats} == {dtype}
    assert json.loads((target / "config.json").read_text())["torch_dtype"] == str(dtype).removeprefix(
        "torch."
    )
    deq_scale = {value.dtype for name, value in tensors.items() if name.endswith("deq_scale")}
    assert deq_scale == {torch.float32 if dtype == torch.bfloat16 else torch.int64}
    ids = torch.arange(6, 70)[None]
    with torch.inference_mode():
        ours, expected = (load_model(folder)(ids).logits for folder in (target, source))
    assert (ours - expected).std() / expected.std() < 0.25  # unrelated logits give 1.4


def test_float32_bin_shards_give_the_weights_of_safetensors(
    tiny_folder: Path, tmp_path: Path, unbroken: dict[str, bytes]
) -> None:
    source, target = as_bin_shards(tiny_folder, tmp_path / "float", torch.float32), tmp_path / "w8a8"
    quantize(source, target, RECIPE, CALIBRATION)
    assert contents(target)[WEIGHTS] == unbroken[WEIGHTS]


@pytest.mark.parametrize("value", [torch.nan, -torch.inf])
@pytest.mark.parametrize(
    "name",
    ["transformer.h.2.mlp.down_proj.weight", "transformer.ln_f.weight", "transformer.word_embeddings.weight"],
)
def test_weights_that_are_not_finite_are_named_before_any_work(
    name: str, value: float, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = load_file(source / "model.safetensors")
    tensors[name].view(-1)[-1] = value
    torch.save(tensors, source / "pytorch_model.bin")
    (source / "model.safetensors").unlink()
    monkeypatch.setattr(blocks, "load_block", None)
    with pytest.raises(CheckpointError, match=rf"pytorch_model\.bin: {name} holds NaN or infinite values"):
        quantize(
            source,
            tmp_path / "w8a8",
            Recipe(anti_outlier="m1"),
            Calibration("pydoc_data.topics", calibration_samples=2, calibration_tokens=48),
        )
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_two_processes_cannot_work_on_one_folder(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "w8a8"
    with working_in(partial_folder(target)):
        code, finished = quantize_in_a_process(source, target)
        assert (code, finished) == (1, [])
        with pytest.raises(KitError, match=rf"process {os.getpid()} on \S+ is at work in .*\.w8a8\.partial"):
            quantize(source, target, RECIPE, CALIBRATION)
    assert not target.exists()


def test_the_lock_of_a_dead_process_is_taken_over(
    source: Path, tmp_path: Path, unbroken: dict[str, bytes]
) -> None:
    target = tmp_path / "w8a8"
    code, _ = quantize_in_a_process(source, target, "block-001.safetensors")
    assert code == -signal.SIGKILL
    assert {LOCK, OWNER} <= {path.name for path in partial_folder(target).iterdir()}
    quantize(source, target, RECIPE, CALIBRATION)
    assert contents(target) == unbroken
    assert not partial_folder(target).exists()


DEAD = {3: "transformer.h.0.input_layernorm.weight", 40: "transformer.h.1.post_attention_layernorm.weight"}


@pytest.fixture
def with_dead_channels(source: Path) -> Path:
    """`source` with a norm channel and a weight row of zeros in two blocks, float16 as TeleChat is."""
    tensors = load_file(source / "model.safetensors")
    for channel, norm in DEAD.items():
        tensors[norm][channel] = 0
    tensors["transformer.h.2.mlp.gate_proj.weight"][7:9] = 0
    (source / "model.safetensors").unlink()
    torch.save({name: value.half() for name, value in tensors.items()}, source / "pytorch_model.bin")
    return source


@pytest.mark.parametrize("method", ["none", "m1", "m2", "m4", "best"])
def test_dead_channels_are_recorded_and_not_smoothed(
    method: str, with_dead_channels: Path, tmp_path: Path
) -> None:
    target = tmp_path / "w8a8"
    record = quantize(
        with_dead_channels,
        target,
        Recipe(level="L0", anti_outlier=method),
        Calibration("pydoc_data.topics", calibration_samples=2, calibration_tokens=48),
    )
    dead = {row.name: (row.dead_inputs, row.dead_outputs) for row in record.linears}
    assert {name.removeprefix("transformer.h."): count for name, count in dead.items() if any(count)} == {
        "0.self_attention.query": (1, 0),
        "0.self_attention.key_value": (1, 0),
        "1.mlp.gate_proj": (1, 0),
        "1.mlp.up_proj": (1, 0),
        "2.mlp.gate_proj": (0, 2),
        "2.mlp.down_proj": (2, 0),
    }
    told = json.loads((target / "quantize.json").read_text())["linears"]
    assert {row["name"]: (row["dead_inputs"], row["dead_outputs"]) for row in told} == dead
    folded = load_file(target / WEIGHTS)
    assert folded["h.0.input_layernorm.weight"][3] == 0
    for name, column in (("h.0.self_attention.query", 3), ("h.2.mlp.down_proj", 7)):
        assert folded[f"{name}.weight"][:, column].any()  # divided by 1e-5 they would vanish
    ids = torch.arange(6, 70)[None]
    with torch.inference_mode():
        ours, expected = (load_model(folder)(ids).logits for folder in (target, with_dead_channels))
    assert (ours - expected).std() / expected.std() < 0.7  # unrelated logits give 1.4


@pytest.mark.parametrize(("activations", "ingredients"), [("static", "all"), ("dynamic", "rounding, bias")])
def test_best_calibrates_each_block_on_the_states_that_the_w8a8_model_has_there(
    activations: str, ingredients: str, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To float rounding: a scale goes into rows before or after their product."""
    left: dict[str, list[torch.Tensor]] = {}
    ids: list[torch.Tensor] = []
    write, embed = Pass.write, blocks.embed

    def keeping(self: Pass, index: int, tensors: Any, details: Any, states: list[torch.Tensor]) -> None:
        left[f"{self.name} {index}"] = [state.clone() for state in states]
        write(self, index, tensors, details, states)

    def embedding(shards: Any, samples: Any, device: torch.device) -> list[torch.Tensor]:
        ids.extend(samples)
        return embed(shards, samples, device)

    monkeypatch.setattr(Pass, "write", keeping)
    monkeypatch.setattr(blocks, "embed", embedding)
    recipe = Recipe("L0", anti_outlier="best", activations=activations, ingredients=ingredients)
    quantize(tiny_folder, tmp_path / "w8a8", recipe, CALIBRATION)
    model = load_model(tmp_path / "w8a8", "cpu")
    with torch.inference_mode():
        seen = model(ids[0], output_hidden_states=True).hidden_states
    torch.testing.assert_close(seen[1], left["block 0"][0], rtol=0, atol=1e-5)
    in_float = load_model(tiny_folder, "cpu")
    assert not torch.allclose(
        in_float(ids[0], output_hidden_states=True).hidden_states[1], seen[1], rtol=0, atol=1e-3
    )

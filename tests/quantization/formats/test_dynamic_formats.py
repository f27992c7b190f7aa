"""Checkpoints with dynamic activations: what they hold, that every format gives them back, and what is refused."""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from damaged_folder import change_json, change_tensors
from safetensors.torch import load_file, save_file
from torch import Tensor

from telechat_kit import load_model
from telechat_kit.errors import CheckpointError, DataError, ParameterError
from telechat_kit.model.folder import weights_format
from telechat_kit.model.int8_linears import DynamicW8A8Linear, W8A8Linear
from telechat_kit.quantization import Calibration, Recipe, export, quantize

WEIGHTS, DESCRIPTION = (
    "quant_model_weight_w8a8_dynamic.safetensors",
    "quant_model_description_w8a8_dynamic.json",
)
ASCEND = "quant_model_description.json"
FORMATS = ("safetensors", "ascendV1", "compressed-tensors")
STATIC = Recipe("L2", anti_outlier="m1")
DYNAMIC = replace(STATIC, activations="dynamic")
CALIBRATION = Calibration("pydoc_data.topics", calibration_samples=4, calibration_tokens=48)
INT8 = "h.1.self_attention.dense"


@pytest.fixture(scope="module")
def quantized(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dynamic") / "w8a8"
    quantize(tiny_folder, folder, DYNAMIC, CALIBRATION)
    return folder


@pytest.fixture(scope="module")
def static(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("static") / "w8a8"
    quantize(tiny_folder, folder, STATIC, CALIBRATION)
    return folder


@pytest.fixture
def copy(quantized: Path, tmp_path: Path) -> Path:
    """The quantized folder, to be changed."""
    return Path(shutil.copytree(quantized, tmp_path / "copy"))


def logits(folder: Path) -> Tensor:
    with torch.inference_mode():
        return load_model(folder, device="cpu")(torch.arange(4, 40)[None]).logits


def error_of(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_model(folder, device="cpu")
    return str(caught.value)


def test_the_folder_says_that_its_activations_are_dynamic(quantized: Path) -> None:
    kinds = json.loads((quantized / DESCRIPTION).read_text())
    kept = json.loads((quantized / "quantize.json").read_text())
    assert kinds["model_quant_type"] == "W8A8_DYNAMIC"
    assert kept["recipe"]["activations"] == "dynamic"
    assert json.loads((quantized / "config.json").read_text())["quantize"] == "w8a8_dynamic"
    tensors = load_file(quantized / WEIGHTS)
    assert set(tensors) == set(kinds) - {"model_quant_type"}
    found = {name.removeprefix(f"{INT8}."): kinds[name] for name in tensors if name.startswith(INT8)}
    assert found == {
        "weight": "W8A8_DYNAMIC",
        "weight_scale": "W8A8_DYNAMIC",
        "weight_offset": "W8A8_DYNAMIC",
        "bias": "FLOAT",
    }
    assert tensors[f"{INT8}.weight"].dtype == torch.int8
    assert {name.rpartition(".")[2] for name in tensors} == {
        "weight",
        "weight_scale",
        "weight_offset",
        "bias",
    }
    record = {linear["name"]: linear for linear in kept["linears"]}
    floats = {linear["name"] for linear in kept["float_linears"]}
    assert {name for name, linear in record.items() if linear["kind"] == "FLOAT"} == floats
    assert {linear["kind"] for name, linear in record.items() if name not in floats} == {"W8A8_DYNAMIC"}
    assert record[f"transformer.{INT8}"]["input_scale"] is None


def test_it_runs_int8_weights_and_is_nearer_to_the_float_model_than_a_static_one(
    quantized: Path, static: Path, tiny_folder: Path
) -> None:
    model = load_model(quantized, device="cpu")
    linears = [module for module in model.modules() if isinstance(module, DynamicW8A8Linear)]
    assert len(linears) == 4 * 6 - 2
    assert {linear.weight.dtype for linear in linears} == {torch.int8}
    assert not [module for module in model.modules() if isinstance(module, W8A8Linear)]
    exact = logits(tiny_folder)
    assert 0 < (logits(quantized) - exact).std() < (logits(static) - exact).std()


def test_equal_inputs_give_equal_bytes_over_a_folder_of_the_other_kind(
    quantized: Path, static: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    again = Path(shutil.copytree(static, tmp_path / "w8a8"))
    quantize(tiny_folder, again, DYNAMIC, CALIBRATION)
    ours, theirs = (
        {path.name: hashlib.sha256(path.read_bytes()).digest() for path in folder.iterdir()}
        for folder in (quantized, again)
    )
    assert ours == theirs
    quantize(tiny_folder, again, STATIC, CALIBRATION)
    assert {path.name for path in again.iterdir()} == {path.name for path in static.iterdir()}


@pytest.mark.parametrize("method", ["none", "m2", "m3", "m4", "best"])
def test_every_outlier_suppression_goes_with_it(method: str, tiny_folder: Path, tmp_path: Path) -> None:
    quantize(
        tiny_folder,
        tmp_path / "w8a8",
        Recipe(anti_outlier=method, activations="dynamic"),
        Calibration("pydoc_data.topics", calibration_samples=2, calibration_tokens=48),
    )
    exact = logits(tiny_folder)
    assert (logits(tmp_path / "w8a8") - exact).std() < 0.1 * exact.std()


def test_bfloat16_checkpoints_are_taken(tiny_folder: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(tiny_folder, tmp_path / "float"))
    change_tensors(
        source / "model.safetensors",
        lambda tensors: tensors.update({name: value.bfloat16() for name, value in tensors.items()}),
    )
    quantize(
        source,
        tmp_path / "w8a8",
        Recipe(anti_outlier="m1", activations="dynamic"),
        Calibration("pydoc_data.topics", calibration_samples=2, calibration_tokens=48),
    )
    assert load_file(tmp_path / "w8a8" / WEIGHTS)[f"{INT8}.bias"].dtype == torch.bfloat16
    exact = logits(source)
    assert (logits(tmp_path / "w8a8") - exact).std() < 0.1 * exact.std()


@pytest.mark.parametrize("form", FORMATS)
def test_an_export_gives_identical_logits_and_comes_back_bit_for_bit(
    form: str, quantized: Path, tmp_path: Path
) -> None:
    record = export(quantized, tmp_path / "out", form)
    assert (record.int8_linears, record.notes) == (22, [])
    assert weights_format(tmp_path / "out") == form
    assert torch.equal(logits(tmp_path / "out"), logits(quantized))
    export(tmp_path / "out", tmp_path / "back", "safetensors")
    ours, theirs = (load_file(folder / WEIGHTS) for folder in (quantized, tmp_path / "back"))
    assert set(ours) == set(theirs)
    for name, value in ours.items():
        assert value.dtype == theirs[name].dtype
        assert torch.equal(value, theirs[name]), name
    for name in (DESCRIPTION, "config.json", "quantize.json"):
        one, other = (json.loads((folder / name).read_text()) for folder in (quantized, tmp_path / "back"))
        assert one == other


def test_ascend_exports_have_one_description_of_the_newer_form(quantized: Path, tmp_path: Path) -> None:
    export(quantized, tmp_path / "out", "ascendV1")
    kinds = json.loads((tmp_path / "out" / ASCEND).read_text())
    assert list(kinds.items())[:2] == [("version", "1.0.0"), ("model_quant_type", "W8A8_DYNAMIC")]
    assert kinds[f"{INT8}.weight_scale"] == "W8A8_DYNAMIC"
    assert not [name for name in kinds if ".module." in name]
    assert not (tmp_path / "out" / DESCRIPTION).exists()


def test_compressed_tensors_exports_describe_a_scale_for_each_token(quantized: Path, tmp_path: Path) -> None:
    export(quantized, tmp_path / "out", "compressed-tensors")
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    inputs = config["config_groups"]["group_0"]["input_activations"]
    given = {key: inputs[key] for key in ("num_bits", "type", "dynamic", "strategy", "symmetric")}
    assert given == {"num_bits": 8, "type": "int", "dynamic": True, "strategy": "token", "symmetric": True}
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    parts = {name.removeprefix(f"{INT8}.") for name in tensors if name.startswith(INT8)}
    assert parts == {"weight", "weight_scale", "bias"}


def test_dictionaries_cannot_hold_it(quantized: Path, tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match=r"\.npy dictionaries hold static ones only.*Use safetensors"):
        export(quantized, tmp_path / "out", "numpy")
    assert list(tmp_path.iterdir()) == []


def test_dictionaries_without_input_scales_are_refused(
    static: Path, tiny_folder: Path, tmp_path: Path
) -> None:
    export(static, tmp_path / "out", "numpy", model_path=tiny_folder)
    for part in ("input_scale", "input_offset", "quant_bias", "deq_scale"):
        (tmp_path / "out" / f"{part}.npy").unlink()
    message = error_of(tmp_path / "out")
    assert str(tmp_path / "out") in message
    assert "If its activations are dynamic, get it as safe_tensor or ascendV1" in message
    np.save(tmp_path / "out" / "weight_scale.npy", {}, allow_pickle=True)  # type: ignore[arg-type]
    assert "input_scale.npy holds nothing" in error_of(tmp_path / "out")


def test_shards_and_the_newer_names_are_read(copy: Path) -> None:
    expected, tensors = logits(copy), list(load_file(copy / WEIGHTS).items())
    (copy / WEIGHTS).unlink()
    stem = WEIGHTS.removesuffix(".safetensors")
    weight_map = {}
    for k in range(2):
        save_file(dict(tensors[k::2]), copy / f"{stem}-0000{k + 1}-of-00002.safetensors")
        weight_map |= dict.fromkeys(dict(tensors[k::2]), f"{stem}-0000{k + 1}-of-00002.safetensors")
    (copy / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (copy / DESCRIPTION).rename(copy / ASCEND)
    assert torch.equal(logits(copy), expected)


def test_static_and_dynamic_linears_may_stand_in_one_folder(
    quantized: Path, static: Path, copy: Path, tmp_path: Path
) -> None:
    other = load_file(static / "quant_model_weight_w8a8.safetensors")
    dense = {name: value for name, value in other.items() if name.startswith(f"{INT8}.")}
    change_tensors(copy / WEIGHTS, lambda tensors: tensors.update(dense))
    kinds = {name: "FLOAT" if name.endswith("bias") else "W8A8" for name in dense}
    kinds[f"{INT8}.quant_bias"] = "W8A8"
    change_json(copy / DESCRIPTION, lambda values: values.update(kinds))
    model = load_model(copy, device="cpu")
    assert isinstance(model.get_submodule(f"transformer.{INT8}"), W8A8Linear)
    assert not torch.equal(logits(copy), logits(quantized))
    export(copy, tmp_path / "out", "ascendV1")
    assert torch.equal(logits(tmp_path / "out"), logits(copy))
    with pytest.raises(ParameterError, match="static and with dynamic"):
        export(copy, tmp_path / "compressed", "compressed-tensors")


def test_linears_that_share_an_input_must_be_of_one_kind(copy: Path) -> None:
    change_json(copy / DESCRIPTION, lambda kinds: kinds.update({"h.2.mlp.up_proj.weight": "W8A8"}))
    parts = {
        "input_scale": torch.ones(1),
        "input_offset": torch.zeros(1),
        "quant_bias": torch.zeros(176, dtype=torch.int32),
        "deq_scale": torch.ones(176),
    }
    extra = {f"h.2.mlp.up_proj.{part}": value for part, value in parts.items()}
    change_tensors(copy / WEIGHTS, lambda tensors: tensors.update(extra))
    message = error_of(copy)
    assert (
        "of h.2.mlp.gate_proj and h.2.mlp.up_proj, which read the same input, one is W8A8_DYNAMIC" in message
    )


@pytest.mark.parametrize(
    ("part", "change", "expected"),
    [
        ("weight", lambda value: value.float(), "weight holds torch.float32, expected torch.int8"),
        ("weight_scale", lambda value: value[:5].clone(), "weight_scale has shape (5, 1), expected (64, 1)"),
        (
            "weight_scale",
            lambda value: value * float("nan"),
            "weight_scale holds NaN or infinite values",
        ),
        ("weight_scale", torch.zeros_like, "weight_scale holds values that are not positive"),
        ("weight_offset", torch.ones_like, "weight_offset is not zero"),
        ("bias", lambda value: value[:5].clone(), "bias has shape (5,), expected (64,)"),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    part: str, change: Callable[[Tensor], Tensor], expected: str, copy: Path
) -> None:
    name = f"{INT8}.{part}"
    change_tensors(copy / WEIGHTS, lambda tensors: tensors.update({name: change(tensors[name])}))
    message = error_of(copy)
    assert f"{INT8}.{expected}" in message
    assert str(copy / WEIGHTS) in message


@pytest.mark.parametrize("part", ["weight", "weight_scale", "bias"])
@pytest.mark.parametrize("form", FORMATS)
def test_missing_tensors_are_named(form: str, part: str, quantized: Path, tmp_path: Path) -> None:
    export(quantized, tmp_path / "out", form)
    file = "model.safetensors" if form == "compressed-tensors" else WEIGHTS
    change_tensors(tmp_path / "out" / file, lambda tensors: tensors.pop(f"{INT8}.{part}"))
    message = error_of(tmp_path / "out")
    assert f"{INT8}.{part} is missing" in message


@pytest.mark.parametrize("missing", [WEIGHTS, DESCRIPTION])
def test_a_missing_file_is_named(missing: str, copy: Path) -> None:
    (copy / missing).unlink()
    assert str(copy / missing) in error_of(copy)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [("strategy", "tensor", "has strategy 'tensor'"), ("symmetric", False, "has symmetric False")],
)
def test_other_dynamic_schemes_of_compressed_tensors_are_refused(
    key: str, value: object, expected: str, quantized: Path, tmp_path: Path
) -> None:
    export(quantized, tmp_path / "out", "compressed-tensors")

    def change(config: dict[str, Any]) -> None:
        config["quantization_config"]["config_groups"]["group_0"]["input_activations"][key] = value

    change_json(tmp_path / "out" / "config.json", change)
    assert f"input_activations of group_0 {expected}" in error_of(tmp_path / "out")


def test_unknown_activations_are_refused(tiny_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match=r'"per_token" is unknown\. Use one of static, dynamic'):
        quantize(tiny_folder, tmp_path / "w8a8", replace(STATIC, activations="per_token"), CALIBRATION)
    assert list(tmp_path.iterdir()) == []


def test_activations_that_overflow_are_named_and_leave_nothing(tiny_folder: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(tiny_folder, tmp_path / "float"))
    name = "transformer.h.2.mlp.down_proj.weight"
    change_tensors(source / "model.safetensors", lambda tensors: tensors[name].fill_(3e38))
    with pytest.raises(DataError, match=r"input of transformer\.h\.3\.self_attention\.\w+: .*not finite"):
        quantize(source, tmp_path / "w8a8", DYNAMIC, CALIBRATION)
    assert [path.name for path in tmp_path.iterdir()] == ["float"]

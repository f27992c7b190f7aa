"""W8A8 weights from elsewhere: whole and fitting ones are described, others refused before anything is measured."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from telechat_kit.errors import CheckpointError
from telechat_kit.model.unpickling import read_dictionary
from telechat_kit.quantization import Calibration, Recipe, check_given_weights, export, quantize
from telechat_kit.quantization.pipeline import SCHEMA, QuantizeRecord
from telechat_kit.records import read_record, write_record
from telechat_kit.reports import quantization_charts as layers
from telechat_kit.reports import quantization_tables


@pytest.fixture(scope="module")
def pair(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Dictionaries with their float folder in `float`, two linears in float."""
    folder = tmp_path_factory.mktemp("given")
    quantize(
        tiny_folder,
        folder / "w8a8",
        Recipe(level="L2", anti_outlier="m2"),
        Calibration("pydoc_data.topics", calibration_samples=4, calibration_tokens=48),
    )
    export(folder / "w8a8", folder / "npy", "numpy", model_path=tiny_folder)
    return folder / "npy"


@pytest.fixture
def own(pair: Path, tmp_path: Path) -> Path:
    """A pair that may be changed."""
    return Path(shutil.copytree(pair, tmp_path / "npy"))


def test_weights_of_the_kit_bring_their_recipe(pair: Path) -> None:
    record = check_given_weights(pair / "float", pair)
    told = json.loads((pair / "quantize.json").read_text())
    assert record.recipe is not None
    assert record.recipe.level == "L2"
    assert record.recipe_sha256 == told["recipe_sha256"]
    assert [row.score for row in record.linears] == [row["score"] for row in told["linears"]]
    assert record.given is not None
    assert (record.given.format, record.given.rounded, record.given.notes) == ("numpy", 22, [])
    assert record.given.largest_deviation <= 0.51


def test_weights_without_a_recipe_are_described_by_their_tensors(own: Path, tmp_path: Path) -> None:
    expected = json.loads((own / "quantize.json").read_text())["linears"]
    (own / "quantize.json").unlink()
    record = check_given_weights(own / "float", own)
    assert record.recipe is None
    assert [row.kind for row in record.linears] == [row["kind"] for row in expected]
    assert [row.input_scale for row in record.linears] == [row["input_scale"] for row in expected]
    assert len(record.float_linears) == 2
    assert record.given is not None
    assert record.given.notes == [
        "Nothing tells how these weights were made, nor which texts they were calibrated on."
    ]
    write_record(tmp_path, record)
    assert read_record(tmp_path, QuantizeRecord, SCHEMA) == record
    for chart in (layers.outliers, layers.input_ranges, layers.per_layer_error, layers.sensitivity):
        assert "not" in chart(record).alt
    assert "given in numpy form" in quantization_tables.recipe(record).to_html()
    assert "not known" in quantization_tables.calibration(record).to_html()


@pytest.mark.parametrize("activations", ["static", "dynamic"])
def test_weights_with_split_channels_and_an_untied_head_are_checked(
    tiny_folder: Path, tmp_path: Path, activations: str
) -> None:
    recipe = Recipe("L0", anti_outlier="best", activations=activations)
    quantize(
        tiny_folder, tmp_path, recipe, Calibration(calibration_samples=4, calibration_tokens=48), device="cpu"
    )
    record = check_given_weights(tiny_folder, tmp_path, device="cpu")
    assert record.recipe is not None
    assert record.given is not None
    assert {row.kind for row in record.linears} == {"W8A8" if activations == "static" else "W8A8_DYNAMIC"}
    assert "12 int8 weights have more channels than the float ones" in record.given.notes[0]
    (tmp_path / "quantize.json").unlink()
    without = check_given_weights(tiny_folder, tmp_path, device="cpu")
    assert [row.kind for row in without.linears] == [row.kind for row in record.linears]
    if activations == "dynamic":
        assert all(row.low is None and row.input_scale is None for row in without.linears)


def test_float_weights_of_another_shape_do_not_belong_to_given_ones(pair: Path, grouped_folder: Path) -> None:
    with pytest.raises(CheckpointError, match=r"do not belong together"):
        check_given_weights(grouped_folder, pair.parent / "w8a8", device="cpu")


def test_a_recipe_of_other_weights_is_left_out(own: Path) -> None:
    told = json.loads((own / "quantize.json").read_text())
    told["linears"][0]["input_offset"] = 99
    (own / "quantize.json").write_text(json.dumps(told))
    record = check_given_weights(own / "float", own)
    assert record.recipe is None
    assert record.given is not None
    assert record.given.notes == ["quantize.json beside the weights tells of other weights and is left out."]


def test_float_weights_before_outlier_suppression_are_told(
    tiny_folder: Path, tiny_w8a8_folder: Path, tmp_path: Path
) -> None:
    export(tiny_w8a8_folder, tmp_path / "npy", "numpy", model_path=tiny_folder)
    given = check_given_weights(tiny_folder, tmp_path / "npy").given
    assert given is not None
    assert 8 <= given.rounded < 24  # the 8 dense and down_proj are not smoothed by m2
    assert given.notes[0].startswith(f"{24 - given.rounded} of 24 int8 weights are not the rounded weights")


def damage_norm(folder: Path) -> None:
    tensors = load_file(folder / "float" / "model.safetensors")
    tensors["h.1.input_layernorm.weight"] *= 2
    save_file(tensors, folder / "float" / "model.safetensors", metadata={"format": "pt"})
    for name in (
        "quant_weight",
        "input_scale",
        "input_offset",
        "quant_bias",
        "deq_scale",
        "weight_scale",
        "weight_offset",
    ):
        values = read_dictionary(folder / f"{name}.npy")
        values.pop("transformer.h.1.self_attention.query", None)
        np.save(folder / f"{name}.npy", np.array(values, dtype=object), allow_pickle=True)


def damage_float(folder: Path) -> None:
    tensors = load_file(folder / "float" / "model.safetensors")
    tensors["h.1.mlp.up_proj.weight"][0, 0] = torch.nan
    save_file(tensors, folder / "float" / "model.safetensors", metadata={"format": "pt"})


def damage_scale(folder: Path) -> None:
    values = read_dictionary(folder / "deq_scale.npy")
    values["transformer.h.1.mlp.up_proj"][3] = 0
    np.save(folder / "deq_scale.npy", np.array(values, dtype=object), allow_pickle=True)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_norm, "query, which is in float, reads it"),
        (damage_float, "h.1.mlp.up_proj.weight holds NaN"),
        (damage_scale, "h.1.mlp.up_proj.deq_scale holds values that are 0"),
        (lambda folder: (folder / "quant_bias.npy").unlink(), "quant_bias.npy holds nothing for"),
    ],
)
def test_weights_that_do_not_fit_are_named(damage: Callable[[Path], object], message: str, own: Path) -> None:
    damage(own)
    with pytest.raises(CheckpointError, match=message):
        check_given_weights(own / "float", own)


def test_float_weights_are_no_given_weights(tiny_folder: Path, pair: Path) -> None:
    with pytest.raises(CheckpointError, match=r"is not quantized\. Give the folder of the W8A8 weights"):
        check_given_weights(tiny_folder, tiny_folder)
    with pytest.raises(CheckpointError, match=r"is quantized\. Give the float weights as checkpoint_path"):
        check_given_weights(pair.with_name("w8a8"), pair.with_name("w8a8"))

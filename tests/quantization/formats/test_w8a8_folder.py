"""The other W8A8 file formats: what the reference tool wrote is read, and every export gives the same logits."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from damaged_folder import change_json, change_tensors, forget_hashes
from safetensors.torch import load_file, save_file
from torch import Tensor

import telechat_kit
from telechat_kit.cli import cli
from telechat_kit.errors import CheckpointError, ParameterError
from telechat_kit.files import read_json
from telechat_kit.model import TelechatConfig, TelechatForCausalLM
from telechat_kit.model.folder import weights_format
from telechat_kit.model.int8_linears import W8A8Linear
from telechat_kit.model.unpickling import read_dictionary
from telechat_kit.quantization import Calibration, Recipe, export, quantize
from telechat_kit.quantization.formats.conversion import FORMATS

GOLDEN = Path(__file__).parents[2] / "data" / "quantization"
WEIGHTS = "quant_model_weight_w8a8.safetensors"
OLD, NEW = "quant_model_description_w8a8.json", "quant_model_description.json"
DENSE = "transformer.h.0.self_attention.dense"


def logits(folder: Path, model_path: Path | None = None) -> Tensor:
    model = telechat_kit.load_model(folder, device="cpu", model_path=model_path)
    with torch.inference_mode():
        return model(torch.arange(4, 40)[None]).logits


def error_of(folder: Path, model_path: Path | None = None) -> str:
    with pytest.raises(CheckpointError) as caught:
        telechat_kit.load_model(folder, device="cpu", model_path=model_path)
    return str(caught.value)


def change_dictionary(path: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    values = read_dictionary(path)
    change(values)
    np.save(path, values, allow_pickle=True)  # type: ignore[arg-type]
    forget_hashes(path.parent)


def read_tensors(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / WEIGHTS)


@pytest.fixture(scope="module")
def float_s(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reference's model_S as a float checkpoint."""
    folder = tmp_path_factory.mktemp("golden") / "model_S"
    shape = json.loads((GOLDEN / "model_S.json").read_text())
    keys = ("vocab_size", "hidden_size", "n_layer", "n_head", "ffn_hidden_size")
    config = TelechatConfig(
        **{key: shape[key] for key in keys},
        training_seqlen=512,
        base_seqlen=512,
        rope_table_dtype="float32",
        tie_word_embeddings=False,
        dtype="float32",
    )
    model = TelechatForCausalLM(config)
    model.load_state_dict(load_file(GOLDEN / "model_S.safetensors"))
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def saved(float_s: Path, tmp_path: Path) -> Callable[[str], Path]:
    """A folder that the reference tool wrote, with the config.json that its user copies into it."""

    def build(name: str) -> Path:
        folder = tmp_path / name
        shutil.copytree(GOLDEN / name, folder)
        shutil.copyfile(float_s / "config.json", folder / "config.json")
        return folder

    return build


@pytest.fixture(scope="module")
def quantized(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A quantized tiny model with some linears in float."""
    folder = tmp_path_factory.mktemp("quantized") / "w8a8"
    quantize(
        tiny_folder,
        folder,
        Recipe(level="L2", anti_outlier="m2"),
        Calibration("pydoc_data.topics", calibration_samples=4, calibration_tokens=48),
    )
    return folder


@pytest.fixture
def exported(quantized: Path, tiny_folder: Path, tmp_path: Path) -> Callable[[str], Path]:
    def build(form: str) -> Path:
        export(quantized, tmp_path / form, form, model_path=tiny_folder if form == "numpy" else None)
        return tmp_path / form

    return build


def test_both_safetensors_forms_of_the_reference_give_the_same_model(saved: Callable[[str], Path]) -> None:
    old, new = saved("saved_safetensors"), saved("saved_ascendV1")
    assert "quantize" not in json.loads((new / "config.json").read_text())
    assert (weights_format(old), weights_format(new)) == ("safetensors", "ascendV1")
    assert torch.equal(logits(old), logits(new))
    model = telechat_kit.load_model(new, device="cpu")
    kept = json.loads((GOLDEN / "pipe_S_m2_act3_L2.json").read_text())["rollback"]
    int8 = {name for name, module in model.named_modules() if isinstance(module, W8A8Linear)}
    assert len(int8) == 6 * 2 - (len(kept) - 1)
    assert int8.isdisjoint(kept)


def test_the_reference_s_bfloat16_folder_is_read(saved: Callable[[str], Path]) -> None:
    folder = saved("saved_ascendV1_bf16")
    change_json(folder / "config.json", lambda config: config.update(dtype="bfloat16"))
    assert torch.isfinite(logits(folder)).all()


def test_a_folder_without_config_takes_it_from_model_path(
    saved: Callable[[str], Path], float_s: Path
) -> None:
    folder = saved("saved_ascendV1")
    expected = logits(folder)
    (folder / "config.json").unlink()
    assert torch.equal(logits(folder, float_s), expected)


@pytest.mark.parametrize("name", ["quant_model_weights", "quant_model_weight_w8a8"])
def test_shards_and_the_newer_file_name_are_read(saved: Callable[[str], Path], name: str) -> None:
    folder = saved("saved_ascendV1")
    expected, tensors = logits(folder), list(read_tensors(folder).items())
    (folder / WEIGHTS).rename(folder / f"{name}.safetensors")
    assert torch.equal(logits(folder), expected)
    (folder / f"{name}.safetensors").unlink()
    halves = {f"{name}-0000{k + 1}-of-00002.safetensors": dict(tensors[k::2]) for k in range(2)}
    for file, half in halves.items():
        save_file(half, folder / file)
    weight_map = {tensor: file for file, half in halves.items() for tensor in half}
    (folder / f"{name}.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert torch.equal(logits(folder), expected)


def test_numpy_files_of_the_master_branch_are_refused_for_their_lost_weights(float_s: Path) -> None:
    message = error_of(GOLDEN / "saved_numpy", float_s)
    assert f"{GOLDEN / 'saved_numpy' / 'quant_weight.npy'} holds the bias of {DENSE}" in message
    assert "safe_tensor" in message


def test_numpy_files_with_their_weights_mended_give_the_logits_of_safetensors(
    saved: Callable[[str], Path], float_s: Path, tmp_path: Path
) -> None:
    safe, numpy = saved("saved_safetensors"), saved("saved_numpy")
    tensors = read_tensors(safe)
    linears = read_dictionary(numpy / "input_scale.npy")
    change_dictionary(
        numpy / "quant_weight.npy",
        lambda values: values.update({name: tensors[f"{name}.weight"] for name in linears}),
    )
    record = export(safe, tmp_path / "pair", "numpy", model_path=float_s)
    assert record.dequantized == []  # the smoothing scale is told by the norms
    assert torch.equal(logits(numpy, tmp_path / "pair" / "float"), logits(safe))


def test_the_norms_come_from_their_dictionary(exported: Callable[[str], Path], tiny_folder: Path) -> None:
    folder = exported("numpy")
    expected = logits(folder)
    float_part = folder / "float" / "model.safetensors"
    change_tensors(float_part, lambda tensors: tensors["h.1.input_layernorm.weight"].mul_(2))
    assert torch.equal(logits(folder), expected)
    (folder / "anti_fp_norm.npy").unlink()
    assert not torch.equal(logits(folder), expected)


@pytest.mark.parametrize("form", FORMATS)
def test_an_export_gives_identical_logits(
    form: str, exported: Callable[[str], Path], quantized: Path
) -> None:
    folder = exported(form)
    assert weights_format(folder) == form
    assert torch.equal(logits(folder), logits(quantized))
    beside = folder / "float" if form == "numpy" else folder
    assert telechat_kit.load_tokenizer(beside)("a b").input_ids
    told, of_source = (read_json(path / "quantize.json") for path in (folder, quantized))
    assert told.pop("weights_sha256") != of_source.pop("weights_sha256") or form == "safetensors"
    assert told == of_source


@pytest.mark.parametrize("form", FORMATS)
def test_an_export_comes_back_bit_for_bit(
    form: str, exported: Callable[[str], Path], quantized: Path, tmp_path: Path
) -> None:
    export(exported(form), tmp_path / "back", "safetensors")
    ours, theirs = read_tensors(quantized), read_tensors(tmp_path / "back")
    assert set(ours) == set(theirs)
    for name, value in ours.items():
        assert value.dtype == theirs[name].dtype
        assert torch.equal(value, theirs[name]), name
    descriptions = [json.loads((folder / OLD).read_text()) for folder in (quantized, tmp_path / "back")]
    assert descriptions[0] == descriptions[1]
    assert json.loads((tmp_path / "back" / "config.json").read_text())["quantize"] == "w8a8"


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("source", ["saved_safetensors", "saved_ascendV1_bf16"])
def test_folders_of_the_reference_are_exported_exactly(
    source: str, form: str, saved: Callable[[str], Path], float_s: Path, tmp_path: Path
) -> None:
    folder = saved(source)
    if "bf16" in source:
        change_json(folder / "config.json", lambda config: config.update(dtype="bfloat16"))
    record = export(folder, tmp_path / "out", form)
    assert record.notes == []
    assert torch.equal(logits(tmp_path / "out"), logits(folder))


def test_ascend_exports_have_the_reference_s_names_and_types(
    saved: Callable[[str], Path], tmp_path: Path
) -> None:
    export(saved("saved_safetensors"), tmp_path / "out", "ascendV1")
    ours, theirs = (
        json.loads((folder / NEW).read_text()) for folder in (tmp_path / "out", GOLDEN / "saved_ascendV1")
    )
    assert ours == theirs
    assert list(ours)[:2] == ["version", "model_quant_type"]
    tensors, saved_tensors = read_tensors(tmp_path / "out"), read_tensors(GOLDEN / "saved_ascendV1")
    assert set(tensors) == set(saved_tensors)
    assert all(torch.equal(tensors[name], saved_tensors[name]) for name in tensors)


def test_numpy_exports_hold_the_int8_linears_and_a_float_checkpoint(
    exported: Callable[[str], Path], quantized: Path, tiny_folder: Path
) -> None:
    folder = exported("numpy")
    weights = read_dictionary(folder / "quant_weight.npy")
    assert len(weights) == 4 * 6 - 2
    assert {value.dtype for value in weights.values()} == {torch.int8}
    assert json.loads((folder / "export.json").read_text())["dequantized"] == []
    # suppression moves scale from the norms into the linears: in floats nothing changes
    torch.testing.assert_close(logits(folder / "float"), logits(tiny_folder), rtol=1e-4, atol=1e-4)
    assert not (logits(folder) == logits(folder / "float")).all()


def test_without_the_float_checkpoint_the_float_part_is_dequantized_and_says_so(
    quantized: Path, tmp_path: Path
) -> None:
    record = export(quantized, tmp_path / "pair", "numpy")
    assert len(record.dequantized) == record.int8_linears == 22
    assert torch.equal(logits(tmp_path / "pair"), logits(quantized))


def test_compressed_tensors_exports_are_described_in_their_config(
    exported: Callable[[str], Path], quantized: Path
) -> None:
    folder = exported("compressed-tensors")
    config = json.loads((folder / "config.json").read_text())
    described = config["quantization_config"]
    assert "quantize" not in config
    assert (described["quant_method"], described["format"]) == ("compressed-tensors", "int-quantized")
    assert "lm_head" in described["ignore"]
    assert len(described["ignore"]) == 3
    tensors = load_file(folder / "model.safetensors")
    linear = "h.0.self_attention.query"
    parts = {name.rsplit(".", 1)[1] for name in tensors if name.startswith(f"{linear}.")}
    assert parts == {"weight", "weight_scale", "input_scale", "input_zero_point"}
    assert tensors[f"{linear}.input_zero_point"].dtype == torch.int8


def test_what_compressed_tensors_cannot_say_is_stored_beside_it(quantized: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(quantized, tmp_path / "source"))
    change_tensors(source / WEIGHTS, lambda tensors: tensors["h.1.mlp.up_proj.quant_bias"].add_(3))
    record = export(source, tmp_path / "out", "compressed-tensors")
    assert len(record.notes) == 1
    assert "h.1.mlp.up_proj.quant_bias" in record.notes[0]
    assert torch.equal(logits(tmp_path / "out"), logits(source))


def test_a_folder_without_weight_scales_and_biases_is_exported_exactly(
    quantized: Path, tmp_path: Path
) -> None:
    """msModelSlim of 2024-08 and its V1 saver leave out what the integer arithmetic does not need."""
    source = Path(shutil.copytree(quantized, tmp_path / "source"))
    kinds = json.loads((source / OLD).read_text())
    linears = {name.removesuffix(".quant_bias") for name in kinds if name.endswith(".quant_bias")}
    gone = [f"{name}.{part}" for name in linears for part in ("weight_scale", "weight_offset", "bias")]
    change_tensors(source / WEIGHTS, lambda tensors: [tensors.pop(name, None) for name in gone])
    change_json(source / OLD, lambda values: [values.pop(name, None) for name in gone])
    assert torch.equal(logits(source), logits(quantized))
    for form in FORMATS:
        export(source, tmp_path / form, form)
        assert torch.equal(logits(tmp_path / form), logits(quantized))


def test_norms_of_2024_stand_under_module_for_int8_linears(quantized: Path, tmp_path: Path) -> None:
    expected, source = logits(quantized), Path(shutil.copytree(quantized, tmp_path / "source"))
    kinds = json.loads((source / OLD).read_text())
    block = next(k for k in range(4) if kinds[f"h.{k}.mlp.gate_proj.weight"] == "W8A8")
    norm = f"h.{block}.post_attention_layernorm.weight"
    change_tensors(source / WEIGHTS, lambda tensors: tensors[norm].mul_(3))
    assert torch.equal(logits(source), expected)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("part", ["input_scale", "input_offset"])
def test_linears_that_share_an_input_must_share_its_scale(
    form: str, part: str, exported: Callable[[str], Path]
) -> None:
    folder, linear = exported(form), "h.0.mlp.gate_proj"
    if form == "numpy":
        change_dictionary(folder / f"{part}.npy", lambda values: values[f"transformer.{linear}"].add_(1))
    elif form == "compressed-tensors":
        name = {"input_offset": "input_zero_point"}.get(part, part)
        change_tensors(folder / "model.safetensors", lambda tensors: tensors[f"{linear}.{name}"].add_(1))
    else:
        change_tensors(folder / WEIGHTS, lambda tensors: tensors[f"{linear}.{part}"].add_(1))
    message = error_of(folder)
    assert f"h.0.mlp.gate_proj.{part} and h.0.mlp.up_proj.{part} differ" in message
    assert str(folder) in message


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("part", ["weight", "quant_bias"])
def test_missing_tensors_and_other_shapes_are_named(
    form: str, part: str, exported: Callable[[str], Path]
) -> None:
    folder, linear = exported(form), "h.1.self_attention.dense"
    if form == "compressed-tensors":
        part = {"quant_bias": "weight_scale"}.get(part, part)
    path = folder / ("model.safetensors" if form == "compressed-tensors" else WEIGHTS)
    change: Callable[[Path, Callable[[dict[str, Tensor]], object]], None] = change_tensors
    name = f"{linear}.{part}"
    if form == "numpy":
        path = folder / {"weight": "quant_weight.npy"}.get(part, f"{part}.npy")
        change, name = change_dictionary, f"transformer.{linear}"
    change(path, lambda tensors: tensors.update({name: tensors[name][:7].clone()}))
    message = error_of(folder)
    assert f"{linear}.{part} has shape (7" in message
    change(path, lambda tensors: tensors.pop(name))
    message = error_of(folder)
    assert str(path) in message
    assert linear in message


@pytest.mark.parametrize("form", ["safetensors", "ascendV1"])
@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [
        ("h.9.mlp.up_proj.weight", "W8A8", "names h.9.mlp.up_proj.weight, which this model does not have"),
        ("h.0.mlp.up_proj.weight", "W8A8_MIX", 'h.0.mlp.up_proj.weight is "W8A8_MIX"'),
        ("h.0.mlp.up_proj.weight", "FLOAT", "h.0.mlp.up_proj.weight holds torch.int8, expected float"),
    ],
)
def test_descriptions_that_do_not_fit_are_refused(
    form: str, name: str, kind: str, expected: str, exported: Callable[[str], Path]
) -> None:
    folder = exported(form)
    change_json(folder / (OLD if form == "safetensors" else NEW), lambda kinds: kinds.update({name: kind}))
    assert expected in error_of(folder)


@pytest.mark.parametrize(
    ("name", "change", "expected"),
    [
        (
            "h.0.mlp.up_proj.weight_scale",
            lambda value: value[:5].clone(),
            "has shape (5, 1), expected (176, 1)",
        ),
        ("h.0.mlp.up_proj.input_scale", lambda value: value * float("nan"), "holds NaN or infinite values"),
        (
            "h.0.mlp.up_proj.quant_bias",
            lambda value: value.float(),
            "holds torch.float32, expected torch.int32",
        ),
        ("h.0.input_layernorm.bias", lambda value: value[:3].clone(), "has shape (3,), expected (64,)"),
        ("ln_f.weight", lambda value: value[:5].clone(), "has shape (5,), expected (64,)"),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    name: str, change: Callable[[Tensor], Tensor], expected: str, exported: Callable[[str], Path]
) -> None:
    folder = exported("ascendV1")
    change_tensors(folder / WEIGHTS, lambda tensors: tensors.update({name: change(tensors[name])}))
    message = error_of(folder)
    assert f"{name} {expected}" in message
    assert str(folder / WEIGHTS) in message


def test_dictionaries_that_name_unknown_linears_are_refused(exported: Callable[[str], Path]) -> None:
    folder = exported("numpy")
    change_dictionary(folder / "input_scale.npy", lambda values: values.update({"h.9.x": torch.ones(1)}))
    message = error_of(folder)
    assert f"{folder / 'input_scale.npy'} names h.9.x" in message


@pytest.mark.parametrize(
    ("group", "key", "value"),
    [
        ("input_activations", "num_bits", 4),
        ("input_activations", "strategy", "group"),
        ("weights", "num_bits", 4),
        ("weights", "strategy", "group"),
    ],
)
def test_other_schemes_of_compressed_tensors_are_refused(
    group: str, key: str, value: object, exported: Callable[[str], Path]
) -> None:
    folder = exported("compressed-tensors")
    change_json(
        folder / "config.json",
        lambda config: config["quantization_config"]["config_groups"]["group_0"][group].update({key: value}),
    )
    assert f"{group} of group_0 has {key} {value!r}" in error_of(folder)


def test_another_quantization_method_is_refused(exported: Callable[[str], Path]) -> None:
    folder = exported("compressed-tensors")
    change_json(
        folder / "config.json", lambda config: config.update(quantization_config={"quant_method": "awq"})
    )
    assert '"awq"' in error_of(folder)


def test_numpy_folders_without_their_float_folder_say_what_is_missing(
    exported: Callable[[str], Path], quantized: Path
) -> None:
    folder = exported("numpy")
    assert "is quantized" in error_of(folder, quantized)
    shutil.rmtree(folder / "float")
    assert "as model_path" in error_of(folder)


def test_a_float_folder_with_model_path_is_refused(tiny_folder: Path) -> None:
    assert "is not quantized" in error_of(tiny_folder, tiny_folder)


@pytest.mark.parametrize("form", FORMATS)
def test_a_target_with_other_files_is_left_alone(form: str, quantized: Path, tmp_path: Path) -> None:
    precious = tmp_path / "thesis.txt"
    precious.write_text("years of work")
    with pytest.raises(CheckpointError, match="holds other files"):
        export(quantized, tmp_path, form)
    assert precious.read_text() == "years of work"


def test_bad_requests_are_named_and_leave_nothing(
    quantized: Path, tiny_folder: Path, float_s: Path, tmp_path: Path
) -> None:
    target = tmp_path / "out"
    with pytest.raises(ParameterError, match='format "gguf" is unknown'):
        export(quantized, target, "gguf")
    with pytest.raises(CheckpointError, match="is not quantized"):
        export(tiny_folder, target, "ascendV1")
    with pytest.raises(CheckpointError, match="does not exist"):
        export(tmp_path / "nowhere", target, "ascendV1")
    with pytest.raises(CheckpointError, match="folder of their own"):
        export(quantized, quantized, "ascendV1")
    with pytest.raises(CheckpointError, match="folder of their own"):
        export(quantized, quantized.parent, "ascendV1")
    with pytest.raises(CheckpointError, match="of the quantized shape"):
        export(quantized, target, "numpy", model_path=float_s)
    assert list(tmp_path.iterdir()) == []


def test_an_earlier_export_is_replaced(quantized: Path, tmp_path: Path) -> None:
    for form in ("ascendV1", "compressed-tensors"):
        export(quantized, tmp_path / "out", form)
        assert weights_format(tmp_path / "out") == form


def test_equal_folders_are_exported_to_equal_bytes(quantized: Path, tmp_path: Path) -> None:
    for form in ("safetensors", "ascendV1", "compressed-tensors"):
        folders = [tmp_path / f"{form}-{k}" for k in range(2)]
        for folder in folders:
            export(quantized, folder, form)
        for path in folders[0].iterdir():
            assert path.read_bytes() == (folders[1] / path.name).read_bytes()


def test_the_command_exports_and_says_what_it_left(quantized: Path, tmp_path: Path) -> None:
    arguments = ["export", str(quantized), str(tmp_path / "out"), "--format", "ascendV1"]
    shown = CliRunner().invoke(cli, arguments)
    assert shown.exit_code == 0, shown.output
    assert "ascendV1, 22 int8 linears" in shown.output
    assert (tmp_path / "out" / NEW).is_file()

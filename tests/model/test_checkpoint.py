"""Checkpoint folders: both published layouts load, and whatever is wrong with one is said in one sentence."""

import builtins
import importlib.util
import json
import pickle
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

import telechat_kit
from telechat_kit.backends import resolve_device
from telechat_kit.errors import CheckpointError, DeviceError
from telechat_kit.inference.loading import load_model
from telechat_kit.model import TelechatConfig, TelechatForCausalLM, TelechatModel
from telechat_kit.model.folder import W8A8_DESCRIPTION, W8A8_WEIGHTS, origin, read_config, weight_files
from telechat_kit.model.int8_linears import W8A8Linear, decode_scale, encode_scale
from telechat_kit.model.network import TelechatRMSNorm
from telechat_kit.model.w8a8 import linear_names
from telechat_kit.quantization.int8.packing import int8_linear

GOLDEN = Path(__file__).parent.parent / "data" / "model"
SHARDS = ("pytorch_model_00001-of-00002.bin", "pytorch_model_00002-of-00002.bin")
INDEX = "pytorch_model.bin.index.json"


def write_as_published(source: Path, folder: Path) -> Path:
    """`source` with its weights as the released checkpoints have them: two `.bin` shards and an index."""
    folder.mkdir()
    shutil.copyfile(source / "config.json", folder / "config.json")
    tensors = list(load_file(source / "model.safetensors").items())
    halves = dict(tensors[: len(tensors) // 2]), dict(tensors[len(tensors) // 2 :])
    for shard, half in zip(SHARDS, halves, strict=True):
        torch.save(half, folder / shard)
    weight_map = {name: shard for shard, half in zip(SHARDS, halves, strict=True) for name in half}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """The golden 7B checkpoint in `.bin` shards."""
    return write_as_published(GOLDEN / "7b-small", tmp_path / "published")


@pytest.fixture
def safe(tmp_path: Path) -> Path:
    """The golden 7B checkpoint in one safetensors file."""
    return Path(shutil.copytree(GOLDEN / "7b-small", tmp_path / "safe"))


@pytest.fixture
def quantized(tiny_w8a8_folder: Path, tmp_path: Path) -> Path:
    """A W8A8 checkpoint that may be damaged."""
    return Path(shutil.copytree(tiny_w8a8_folder, tmp_path / "quantized"))


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def change_tensors(path: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    """Apply `change` to the tensors of a safetensors file."""
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def logits(model: TelechatForCausalLM) -> Tensor:
    with torch.inference_mode():
        return model(torch.arange(4, 40)[None]).logits


def error_of(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_model(folder, device="cpu")
    return str(caught.value)


@pytest.mark.parametrize("case", ["7b-small", "12b-small"])
def test_bin_shards_with_published_names_give_the_logits_of_safetensors(case: str, tmp_path: Path) -> None:
    folder = write_as_published(GOLDEN / case, tmp_path / case)
    expected = logits(load_model(GOLDEN / case, device="cpu"))
    assert torch.equal(logits(load_model(folder, device="cpu")), expected)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval()), expected)
    assert weight_files(folder) == [folder / shard for shard in SHARDS]


@pytest.mark.parametrize(("case", "tied"), [("7b-small", True), ("12b-small", False)])
def test_head_is_tied_in_7b_and_its_own_in_12b(case: str, tied: bool) -> None:
    model = load_model(GOLDEN / case, device="cpu")
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == tied


@pytest.mark.parametrize("case", ["7b-small", "12b-small"])
def test_a_saved_model_loads_with_the_same_logits(case: str, tmp_path: Path) -> None:
    model = load_model(GOLDEN / case, device="cpu")
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(load_model(tmp_path, device="cpu")), logits(model))


@pytest.mark.parametrize("case", ["7b-small", "12b-small"])
def test_a_saved_config_keeps_the_published_keys(case: str, tmp_path: Path) -> None:
    published = json.loads((GOLDEN / case / "config.json").read_text())
    AutoConfig.from_pretrained(GOLDEN / case).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    ignored = {"auto_map", "transformers_version", "torch_dtype"}
    assert {key: saved.get(key) for key in published.keys() - ignored} == {
        key: published[key] for key in published.keys() - ignored
    }


def test_auto_classes_give_the_kit_s_own() -> None:
    folder = GOLDEN / "7b-small"
    assert isinstance(AutoConfig.from_pretrained(folder), TelechatConfig)
    assert isinstance(AutoModel.from_pretrained(folder), TelechatModel)
    assert isinstance(AutoModelForCausalLM.from_pretrained(folder), TelechatForCausalLM)
    assert telechat_kit.load_model is load_model


def test_auto_map_runs_no_remote_code_and_asks_nothing(
    published: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "auto_map" in json.loads((published / "config.json").read_text())
    for module in ("configuration_telechat", "modeling_telechat"):
        (published / f"{module}.py").write_text("raise SystemExit('remote code ran')")
    monkeypatch.setattr(builtins, "input", lambda *_: pytest.fail("asked whether to trust remote code"))
    assert isinstance(AutoConfig.from_pretrained(published), TelechatConfig)
    assert isinstance(AutoModelForCausalLM.from_pretrained(published), TelechatForCausalLM)
    assert isinstance(load_model(published, device="cpu"), TelechatForCausalLM)


def test_the_model_is_in_eval_mode_and_float32_on_the_cpu(safe: Path) -> None:
    change_config(safe, torch_dtype="float16", hidden_dropout=0.1)
    model = load_model(safe, device="cpu")
    assert not model.training
    assert model.dtype == torch.float32
    assert load_model(safe, device="cpu", dtype=torch.float16).dtype == torch.float16


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    message = error_of(tmp_path / "nowhere")
    assert f"{tmp_path / 'nowhere'} does not exist" in message
    assert "Correct the path" in message


def test_a_folder_without_config_is_no_checkpoint(tmp_path: Path) -> None:
    assert f"{tmp_path / 'config.json'} does not exist" in error_of(tmp_path)


@pytest.mark.parametrize("content", ['{"model_type": "telechat",', "[]", "null", '"telechat"', "\x00\x01"])
def test_a_damaged_config_is_named(safe: Path, content: str) -> None:
    (safe / "config.json").write_text(content)
    assert str(safe / "config.json") in error_of(safe)


@pytest.mark.parametrize("changes", [{"hidden_size": 65}, {"n_head": 0}])
def test_a_config_of_impossible_values_is_named(safe: Path, changes: dict[str, Any]) -> None:
    change_config(safe, **changes)
    assert str(safe / "config.json") in error_of(safe)


def test_another_model_type_is_refused(safe: Path) -> None:
    change_config(safe, model_type="llama")
    message = error_of(safe)
    assert str(safe / "config.json") in message
    assert '"llama", expected "telechat"' in message


def test_a_folder_without_weights_says_which_files_it_lacks(safe: Path) -> None:
    (safe / "model.safetensors").unlink()
    message = error_of(safe)
    assert f"{safe} holds no weights" in message
    assert INDEX in message


@pytest.mark.parametrize("shard", SHARDS)
def test_a_missing_shard_is_named(published: Path, shard: str) -> None:
    (published / shard).unlink()
    message = error_of(published)
    assert f"{published / shard} is missing" in message
    assert "copy the file again" in message


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"weight_map": []}', '{"weight_map": {}}'])
def test_a_damaged_index_is_named(published: Path, content: str) -> None:
    (published / INDEX).write_text(content)
    assert str(published / INDEX) in error_of(published)


@pytest.mark.parametrize("damage", [truncate, lambda path: path.write_bytes(b"")], ids=["truncated", "empty"])
@pytest.mark.parametrize("kind", ["bin", "safetensors", "w8a8"])
def test_a_truncated_weight_file_is_named(
    published: Path, safe: Path, quantized: Path, kind: str, damage: Callable[[Path], None]
) -> None:
    path = {
        "bin": published / SHARDS[1],
        "safetensors": safe / "model.safetensors",
        "w8a8": quantized / W8A8_WEIGHTS,
    }[kind]
    damage(path)
    message = error_of(path.parent)
    assert f"{path} is damaged" in message
    assert "Copy the file again" in message


def test_a_safetensors_file_with_a_wild_header_is_named(safe: Path) -> None:
    (safe / "model.safetensors").write_bytes(struct.pack("<Q", 1 << 60) + b"{}")
    assert f"{safe / 'model.safetensors'} is damaged" in error_of(safe)


def test_a_missing_tensor_is_named(safe: Path) -> None:
    change_tensors(safe / "model.safetensors", lambda tensors: tensors.pop("h.1.mlp.up_proj.weight"))
    message = error_of(safe)
    assert str(safe) in message
    assert "h.1.mlp.up_proj.weight" in message
    assert "Copy it again" in message


def test_an_unexpected_tensor_is_named(safe: Path) -> None:
    change_tensors(
        safe / "model.safetensors", lambda tensors: tensors.update({"h.0.extra.weight": torch.ones(2)})
    )
    message = error_of(safe)
    assert str(safe) in message
    assert "h.0.extra.weight" in message


def test_weights_of_another_size_are_refused(safe: Path) -> None:
    change_config(safe, ffn_hidden_size=100)
    assert str(safe) in error_of(safe)


class Malicious:
    """Unpickling it writes a file."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.trace, "ran")


@pytest.mark.parametrize("raw", [False, True], ids=["archive", "bare pickle"])
def test_code_in_a_bin_file_is_refused_and_does_not_run(published: Path, tmp_path: Path, raw: bool) -> None:
    trace, shard = tmp_path / "trace", published / SHARDS[0]
    content = {"word_embeddings.weight": Malicious(trace)}
    if raw:
        shard.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, shard)
    message = error_of(published)
    assert str(published) in message
    assert not trace.exists()
    torch.load(shard, weights_only=False) if not raw else pickle.loads(shard.read_bytes())
    assert trace.exists()  # it would have run


def test_a_w8a8_folder_loads_with_int8_weights_and_float_norms(tiny_w8a8_folder: Path) -> None:
    model = load_model(tiny_w8a8_folder, device="cpu")
    linears = [module for module in model.modules() if isinstance(module, W8A8Linear)]
    assert len(linears) == len(linear_names(model)) == 6 * model.config.n_layer
    assert all(linear.weight.dtype == torch.int8 for linear in linears)
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert not model.training
    assert torch.isfinite(logits(model)).all()


def test_norms_of_a_w8a8_folder_add_the_shift_of_their_channels(quantized: Path) -> None:
    shift = torch.linspace(-1, 1, 64)
    change_tensors(quantized / W8A8_WEIGHTS, lambda tensors: tensors["h.0.input_layernorm.bias"].copy_(shift))
    blocks, x = load_model(quantized, device="cpu").transformer.h, torch.randn(2, 64)
    assert isinstance(blocks[0].input_layernorm, TelechatRMSNorm)
    assert blocks[1].input_layernorm.bias is None  # stored zeros are not added
    weighted = torch.nn.functional.rms_norm(x, (64,), blocks[0].input_layernorm.weight, 1e-5)
    torch.testing.assert_close(blocks[0].input_layernorm(x), weighted + shift)


@pytest.mark.parametrize("part", ["weight", "input_scale", "input_offset", "quant_bias", "deq_scale"])
def test_a_missing_tensor_of_an_int8_linear_is_named(quantized: Path, part: str) -> None:
    name = f"h.2.self_attention.query.{part}"
    change_tensors(quantized / W8A8_WEIGHTS, lambda tensors: tensors.pop(name))
    message = error_of(quantized)
    assert str(quantized / W8A8_WEIGHTS) in message
    assert name in message
    assert "Quantize again" in message


def test_a_missing_float_tensor_of_a_w8a8_folder_is_named(quantized: Path) -> None:
    change_tensors(quantized / W8A8_WEIGHTS, lambda tensors: tensors.pop("ln_f.weight"))
    assert "ln_f.weight" in error_of(quantized)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    "name",
    ["ln_f.weight", "h.0.input_layernorm.bias", "word_embeddings.weight", "h.1.mlp.up_proj.input_scale",
     "h.1.mlp.up_proj.input_offset", "h.1.mlp.up_proj.weight_scale"],
)  # fmt: skip
def test_a_w8a8_folder_with_a_number_that_is_none_is_refused_by_tensor(
    quantized: Path, name: str, value: float
) -> None:
    change_tensors(quantized / W8A8_WEIGHTS, lambda tensors: tensors[name].view(-1)[0].fill_(value))
    assert f"{name} holds NaN or infinite values" in error_of(quantized)


def test_a_product_scale_that_is_no_number_is_refused(quantized: Path) -> None:
    name = "h.1.mlp.up_proj.deq_scale"
    stored = encode_scale(torch.tensor([float("nan")]))
    change_tensors(quantized / W8A8_WEIGHTS, lambda tensors: tensors[name][:1].copy_(stored))
    assert f"{name} holds NaN or infinite values" in error_of(quantized)


def test_values_beyond_the_dtype_asked_for_are_refused(quantized: Path) -> None:
    change_tensors(quantized / W8A8_WEIGHTS, lambda tensors: tensors["ln_f.weight"][0].fill_(1e6))
    load_model(quantized, device="cpu")
    with pytest.raises(CheckpointError, match=r"ln_f\.weight holds values that torch\.float16 cannot"):
        load_model(quantized, device="cpu", dtype=torch.float16)


@pytest.mark.parametrize("epsilon", ["NaN", "-1", "Infinity", "0"])
def test_an_epsilon_that_is_none_is_refused(quantized: Path, epsilon: str) -> None:
    path = quantized / "config.json"
    path.write_text(
        path.read_text().replace('"layer_norm_epsilon": 1e-05', f'"layer_norm_epsilon": {epsilon}')
    )
    assert epsilon in path.read_text()
    assert str(path) in error_of(quantized)


def test_int8_weights_of_another_size_are_refused(quantized: Path) -> None:
    change_config(quantized, ffn_hidden_size=100)
    message = error_of(quantized)
    assert f"{quantized}: config.json says ffn_hidden_size 100, the weights have 176" in message


@pytest.mark.parametrize("missing", [W8A8_WEIGHTS, W8A8_DESCRIPTION])
def test_a_missing_file_of_a_w8a8_folder_is_named(quantized: Path, missing: str) -> None:
    (quantized / missing).unlink()
    assert str(quantized / missing) in error_of(quantized)


@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_damaged_description_of_a_w8a8_folder_is_named(quantized: Path, content: str) -> None:
    (quantized / W8A8_DESCRIPTION).write_text(content)
    assert str(quantized / W8A8_DESCRIPTION) in error_of(quantized)


def test_origin_is_what_the_folder_says_of_itself(tiny_folder: Path) -> None:
    assert origin(tiny_folder)["name"] == "random TeleChat"
    assert origin(GOLDEN / "7b-small") == {}


def test_n_embed_overrides_the_hidden_size(safe: Path) -> None:
    change_config(safe, n_embed=64, hidden_size=4096)
    assert read_config(safe).hidden_size == 64


@pytest.mark.parametrize("name", ["tpu", "", "cpuu", "gpu:0", "cuda:x", "cuda:-1"])
def test_an_unknown_device_is_refused(name: str, tiny_folder: Path) -> None:
    with pytest.raises(DeviceError, match=f'"{name}" is unknown. Use auto, or one of cpu, cuda, npu'):
        load_model(tiny_folder, device=name)


def test_a_device_that_is_not_there_is_refused(tiny_folder: Path) -> None:
    with pytest.raises(DeviceError, match='device "cuda:77" asked for, but torch sees'):
        load_model(tiny_folder, device="cuda:77")


@pytest.mark.skipif(importlib.util.find_spec("torch_npu") is not None, reason="torch_npu is installed")
def test_npu_without_torch_npu_is_refused_with_the_remedy(tiny_folder: Path) -> None:
    told = (
        r'device "npu" asked for, but torch_npu cannot be imported .* Install the torch_npu that belongs to'
    )
    with pytest.raises(DeviceError, match=told):
        load_model(tiny_folder, device="npu")


@pytest.mark.parametrize("name", ["cpu", "cpu:0"])
def test_the_cpu_is_always_there(name: str) -> None:
    assert resolve_device(name).type == "cpu"


def test_scales_survive_their_int64_form_bit_for_bit() -> None:
    scale = torch.tensor([1.0, 1.5e-7, 3.4e38, 1e-45, 0.0, -2.5])
    stored = encode_scale(scale)
    assert stored.dtype == torch.int64
    assert stored[0] == 0x3F800000
    assert torch.equal(decode_scale(stored).view(torch.int32), scale.view(torch.int32))


def test_scales_stored_unsigned_or_as_float32_are_read_too() -> None:
    assert torch.equal(decode_scale(torch.tensor([0xC0200000])), torch.tensor([-2.5]))
    assert torch.equal(decode_scale(torch.tensor([0.25])), torch.tensor([0.25]))


def test_an_int8_linear_reads_its_tensors_from_disk_form(tiny_w8a8_folder: Path) -> None:
    stored, name = load_file(tiny_w8a8_folder / W8A8_WEIGHTS), "h.0.mlp.down_proj"
    packed = {key.removeprefix(f"{name}."): value for key, value in stored.items() if key.startswith(name)}
    linear, x = W8A8Linear(packed), torch.randn(2, 3, 176, generator=torch.Generator().manual_seed(0))
    assert packed["deq_scale"].dtype == torch.int64
    assert torch.equal(linear(x), int8_linear(x, packed))
    assert "in_features=176, out_features=64" in repr(linear)

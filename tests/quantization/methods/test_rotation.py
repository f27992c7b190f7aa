"""A turned checkpoint computes what the plain one does, has no outliers left, and is refused where it cannot be."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from telechat_kit import load_model
from telechat_kit.errors import DeviceError, ParameterError
from telechat_kit.inference.memory import needs
from telechat_kit.inference.model_pair import Pair
from telechat_kit.model import TelechatConfig, TelechatForCausalLM
from telechat_kit.model.layout import HEAD, TELECHAT
from telechat_kit.model.rotary import Rotary
from telechat_kit.model.sharding import Shard
from telechat_kit.model.telechat3 import network_of
from telechat_kit.model.weight_shards import Shards
from telechat_kit.precision import evaluation_blocks, measure_sources
from telechat_kit.quantization import Calibration, Recipe, export, quantize
from telechat_kit.quantization.blocks import embed, load_block
from telechat_kit.quantization.methods.rotation import RotatedShards, turn_products
from telechat_kit.quantization.recipe import parse_ingredients

CPU = torch.device("cpu")
#: Enough samples for a tiny model
FEW = Calibration("pydoc_data.topics", calibration_samples=4, calibration_tokens=64)
IDS = torch.randint(160, (2, 40), generator=torch.Generator().manual_seed(0))


def checkpoint(folder: Path, **changes: Any) -> Path:
    """A network with biases, norms far from 1 and outlier channels in the stream, values and feed-forward."""
    torch.manual_seed(1)
    shape = {"vocab_size": 160, "hidden_size": 48, "n_layer": 2, "n_head": 3, "ffn_hidden_size": 72}
    model = TelechatForCausalLM(TelechatConfig(**shape, training_seqlen=128, **changes))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_()
            if "layernorm" in name or "ln_f" in name:
                parameter.uniform_(0.2, 3)
            if parameter.ndim == 2:
                parameter.mul_(5)
        model.transformer.word_embeddings.weight[:, 7] *= 30
    model.save_pretrained(folder)
    return folder


def logits(shards: Shards) -> Tensor:
    with torch.device("meta"):
        model = network_of(shards.config)(shards.config)
    values = {name: nn.Parameter(value.double()) for name, value in shards.read(shards.tensors, CPU).items()}
    model.load_state_dict(values, strict=False, assign=True)
    model.tie_weights()
    with torch.inference_mode():
        return model.eval()(IDS, use_cache=False).logits


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_the_turned_network_computes_the_same(tmp_path: Path, tied: bool) -> None:
    folder = checkpoint(tmp_path / "float", tie_word_embeddings=tied)
    plain, turned = logits(Shards(folder)), logits(RotatedShards(folder, 0))
    torch.testing.assert_close(turned, plain, rtol=0, atol=1e-5 * float(plain.abs().max()))


@pytest.mark.parametrize("case", ["model-telechat2/115b-small", "model-telechat3/36b-small"])
def test_groups_of_heads_and_llama_s_names_are_turned_too(case: str) -> None:
    folder = Path(__file__).parents[2] / "data" / case
    plain, turned = logits(Shards(folder)), logits(RotatedShards(folder, 0))
    torch.testing.assert_close(turned, plain, rtol=0, atol=1e-5 * float(plain.abs().max()))


@pytest.mark.parametrize("case", ["model-telechat2/115b-small", "model-telechat3/36b-small"])
def test_a_block_whose_products_are_turned_computes_the_same(case: str) -> None:
    shards = Shards(Path(__file__).parents[2] / "data" / case)
    block = load_block(shards, 0, Rotary(shards.config), CPU)
    states = embed(shards, [IDS[:1]], CPU)
    (plain,) = block.run(states)
    rotation = turn_products(block)
    torch.testing.assert_close(block.run(states)[0], plain, rtol=0, atol=1e-5 * float(plain.abs().max()))
    block.module.mlp.rotation = None
    assert (block.run(states)[0] - plain).abs().max() > 1e-3 * float(plain.abs().max())
    assert rotation.size == shards.config.ffn_hidden_size


def test_only_a_tied_head_costs_bytes_and_its_rotary_base_stays(tmp_path: Path) -> None:
    tied = RotatedShards(checkpoint(tmp_path / "tied", tie_word_embeddings=True), 0)
    assert tied.untied_bytes == 160 * 48 * 4
    before = TelechatConfig.from_pretrained(tmp_path / "tied")
    assert needs(tied.config, True).weight_bytes - needs(before, True).weight_bytes == 160 * 48 * 2
    assert tied.config.ntk_base_context == 4096
    assert tied.config_changes == {"base_seqlen": 4096, "tie_word_embeddings": False}
    untied = RotatedShards(checkpoint(tmp_path / "untied", tie_word_embeddings=False), 0)
    assert (untied.untied_bytes, untied.config_changes) == (0, {})


def test_every_way_of_reading_gives_the_turned_weights(tmp_path: Path) -> None:
    shards = RotatedShards(checkpoint(tmp_path / "float"), 0)
    for name in (TELECHAT.embedding, HEAD, "transformer.h.0.mlp.down_proj.weight"):
        whole = shards.read([name], CPU)[name]
        stored = torch.frombuffer(bytearray(b"".join(shards.chunks(name))), dtype=torch.float32)
        assert torch.equal(stored.view_as(whole), whole)
        assert torch.equal(shards.part(name, lambda x: x[3:5], torch.float32), whole[3:5])
    assert torch.equal(shards.rows(HEAD, torch.tensor([2, 9])), shards.read([HEAD], CPU)[HEAD][[2, 9]])


def test_the_stream_has_no_outlier_channel_left(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "float")

    def spread(shards: Shards) -> float:
        size = shards.read([TELECHAT.embedding], CPU)[TELECHAT.embedding].square().mean(0)
        return float(size.max() / size.median())

    assert spread(Shards(folder)) > 100
    assert spread(RotatedShards(folder, 0)) < 4


def test_sizes_that_two_linears_share_otherwise_make_no_difference(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "float")
    tensors = load_file(folder / "model.safetensors")
    with torch.no_grad():
        block = "transformer.h.0."
        norms = torch.ones(48)
        norms[5] = 32
        tensors[block + "input_layernorm.weight"] *= norms
        for name in ("query", "key_value"):
            tensors[f"{block}self_attention.{name}.weight"] /= norms
        tensors[block + "self_attention.key_value.weight"][16 + 3] *= 32  # value 3 of the first head
        tensors[block + "self_attention.dense.weight"][:, 3] /= 32
        tensors[block + "mlp.up_proj.weight"][7] *= 32
        tensors[block + "mlp.down_proj.weight"][:, 7] /= 32
    harder = checkpoint(tmp_path / "harder")
    save_file(tensors, harder / "model.safetensors", metadata={"format": "pt"})
    plain, turned = RotatedShards(folder, 0), RotatedShards(harder, 0)
    for name, value in plain.read(plain.tensors, CPU).items():
        if "mlp.up_proj" in name or "mlp.down_proj" in name:
            continue  # evened out when their block is calibrated
        torch.testing.assert_close(turned.read([name], CPU)[name], value, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("change", ["embed_layernorm", "apply_residual_connection_post_layernorm"])
def test_networks_whose_norms_stand_in_the_stream_are_refused(tmp_path: Path, change: str) -> None:
    folder = checkpoint(tmp_path / "float", **{change: True})
    with pytest.raises(ParameterError, match=r"cannot be rotated.*Leave the ingredient rotation out"):
        RotatedShards(folder, 0)


@pytest.mark.parametrize("activations", ["static", "dynamic"])
@pytest.mark.parametrize("online", [False, True], ids=["R1 R2", "R1 R2 R4"])
def test_a_turned_w8a8_folder_stands_alone(
    tiny_folder: Path, tmp_path: Path, online: bool, activations: str
) -> None:
    target = tmp_path / "w8a8"
    used = "rounding, bias, rotation" + (", online_rotation" if online else "")
    recipe = Recipe("L0", ingredients=used, activations=activations)
    quantize(
        tiny_folder,
        target,
        recipe,
        Calibration("pydoc_data.topics", calibration_samples=4, calibration_tokens=64),
    )
    config = json.loads((target / "config.json").read_text())
    assert config.get("online_rotation", False) is online
    assert config["tie_word_embeddings"] is False
    ids = torch.randint(200, (1, 48), generator=torch.Generator().manual_seed(2))
    plain, int8 = load_model(tiny_folder, "cpu"), load_model(target, "cpu")
    with torch.inference_mode():
        expected, found = plain(ids).logits, int8(ids).logits
    error = (found - expected).square().mean() / expected.square().mean()
    assert error < (0.01 if activations == "dynamic" else 0.1)  # ranges of 4 samples clip others
    if online:
        int8.transformer.h[0].mlp.rotation = None  # the weights expect it
        with torch.inference_mode():
            wrong = int8(ids).logits
        assert (wrong - expected).square().mean() > 2 * (found - expected).square().mean()


@pytest.fixture(scope="module")
def online_folder(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("turned") / "w8a8"
    used = "rounding, bias, rotation, online_rotation"
    quantize(tiny_folder, folder, Recipe("L2", ingredients=used), FEW)
    return folder


def test_the_description_tells_of_the_online_rotation(online_folder: Path, tiny_w8a8_folder: Path) -> None:
    def described(folder: Path) -> dict[str, str]:
        found: dict[str, str] = json.loads((folder / "quant_model_description_w8a8.json").read_text())
        return found

    assert described(online_folder)["online_rotation"] == "mlp.down_proj: hadamard"
    assert "online_rotation" not in described(tiny_w8a8_folder)


def test_formats_and_devices_that_cannot_carry_it_refuse(
    online_folder: Path, tiny_w8a8_folder: Path, tmp_path: Path
) -> None:
    for format in ("ascendV1", "numpy", "compressed-tensors"):
        with pytest.raises(ParameterError, match="readers of"):
            export(online_folder, tmp_path / format, format)
        export(tiny_w8a8_folder, tmp_path / format, format)
    export(online_folder, tmp_path / "own", "safetensors")
    with torch.inference_mode():
        one, other = (load_model(folder, "cpu")(IDS).logits for folder in (online_folder, tmp_path / "own"))
    assert torch.equal(one, other)
    turned = load_model(online_folder, "cpu").config
    with pytest.raises(DeviceError, match="online_rotation"):
        Shard(0, 2).require_even(turned)
    Shard(0, 2).require_even(load_model(tiny_w8a8_folder, "cpu").config)


def test_a_plain_float_folder_is_refused_beside_turned_weights(
    tiny_folder: Path, tiny_w8a8_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "w8a8"
    quantize(tiny_folder, folder, Recipe("L2", ingredients="rotation"), FEW)
    with pytest.raises(ParameterError, match="no common axes"):
        export(folder, tmp_path / "numpy", "numpy", tiny_folder)
    export(folder, tmp_path / "numpy", "numpy")
    export(tiny_w8a8_folder, tmp_path / "plain", "numpy", tiny_folder)


def test_where_the_loss_comes_from_is_found_on_turned_axes(online_folder: Path, tiny_folder: Path) -> None:
    pair = Pair(tiny_folder, online_folder)
    found = measure_sources(pair, evaluation_blocks(pair, "pydoc_data.topics", 64, 2, 0))
    assert max(block.relative_error.value for block in found.blocks) < 0.3  # 1.4 on other axes


def test_all_turns_dynamic_checkpoints_where_the_network_allows(tmp_path: Path, tiny_folder: Path) -> None:
    assert "rotation" in parse_ingredients("all", "dynamic")
    assert "rotation" not in parse_ingredients("all", "static")
    for name in ("all", "online", "rotation"):
        barred = TelechatConfig.from_pretrained(tiny_folder, embed_layernorm=True)
        folder = tmp_path / f"barred-{name}"
        TelechatForCausalLM(barred).save_pretrained(folder)
        for path in tiny_folder.glob("tokenizer*"):
            shutil.copy(path, folder)
        recipe = Recipe("L0", activations="dynamic", ingredients=name)
        calibration = Calibration("pydoc_data.topics", calibration_samples=2, calibration_tokens=48)
        if name != "rotation":
            record = quantize(folder, tmp_path / name, recipe, calibration)
            assert record.recipe is not None
            assert "rotation" not in record.recipe.ingredients
            kept = {"all": "up_proj", "online": "online_rotation"}
            assert kept[name] in record.recipe.ingredients
            assert load_model(tmp_path / name, "cpu").config.online_rotation is (name == "online")
        else:
            with pytest.raises(ParameterError, match="cannot be rotated"):
                quantize(folder, tmp_path / "refused", recipe, calibration)


def test_an_online_rotation_beside_what_it_excludes_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    for used, problem in (
        ("rotation, online_rotation, splitting", "splitting"),
        ("rotation, online_rotation, up_proj", "up_proj"),
    ):
        with pytest.raises(ParameterError, match=problem):
            quantize(tiny_folder, tmp_path / "w8a8", Recipe(ingredients=used))

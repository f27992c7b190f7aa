"""Files of a checkpoint that are damaged, hostile or absurd: refused by file and key before anything is built."""

import json
import os
import shutil
import struct
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from telechat_kit.environment import check_setup
from telechat_kit.errors import CheckpointError
from telechat_kit.inference.loading import load_model
from telechat_kit.model.bounds import within
from telechat_kit.model.hashes import settings_hash, tokenizer_hash
from telechat_kit.model.tokenization import load_tokenizer
from telechat_kit.model.tokenizer_files import FILES
from telechat_kit.model.weight_shards import Shards

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"


@pytest.fixture(params=["tiny_folder", "tiny_w8a8_folder"], ids=["float", "w8a8"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return Path(shutil.copytree(request.getfixturevalue(request.param), tmp_path / "folder"))


@pytest.fixture
def tiny(tiny_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_folder, tmp_path / "folder"))


def change(path: Path, **values: Any) -> None:
    found = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(found | values))


def error_of(read: Callable[[], object]) -> str:
    with pytest.raises(CheckpointError) as caught:
        read()
    return str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("n_layer", 10**6, "n_layer: .* less than or equal to 1024, not 1000000"),
        ("n_layer", "4", "n_layer: .* valid integer, not '4'"),
        ("n_layer", True, "n_layer"),
        ("n_layer", 5, "config.json says n_layer 5, the weights have 4"),
        ("n_layer", 3, "config.json says n_layer 3, the weights have 4"),
        ("vocab_size", 263, "config.json says vocab_size 263, the weights have 262"),
        ("vocab_size", 10**12, "vocab_size"),
        ("ffn_hidden_size", 10**9, "ffn_hidden_size"),
        ("n_head", -4, "n_head"),
        ("n_head", 32, "hidden_size 64 in 32 heads gives no even head size"),
        ("n_head", 3, "hidden_size 64 in 3 heads"),
        ("training_seqlen", 10**9, "training_seqlen"),
        ("training_seqlen", -5, "training_seqlen"),
        ("training_seqlen", 0, "training_seqlen"),
        ("layer_norm_epsilon", -1.0, "layer_norm_epsilon"),
        ("rope_theta", 0, "rope_theta"),
        ("rope_theta", -1, "rope_theta"),
        ("rope_theta", float("nan"), r"config\.json, line 1: NaN is no finite number"),
        ("layer_norm_epsilon", float("nan"), "NaN is no finite number"),
        ("rope_table_dtype", "int8", "rope_table_dtype"),
        ("rope_table_dtype", "nn", "rope_table_dtype"),
        ("dtype", "f", "dtype"),
        ("eos_token_id", "2", "eos_token_id"),
        ("eos_token_id", {"a": 1}, "eos_token_id"),
        ("tie_word_embeddings", "no", "tie_word_embeddings"),
        ("quantize", ["w8a8"], "quantize"),
        ("model_type", ["telechat"], "model_type"),
        ("num_labels", 10**9, "num_labels: .* less than or equal to 65536"),
        ("id2label", "x", "id2label"),
        ("online_rotation", "yes", "online_rotation"),
        ("pad_token_id", [3], "pad_token_id"),
        ("hidden_act", "gelu", "hidden_act: Input should be 'silu', not 'gelu'"),
        ("return_dict", False, "return_dict"),
        ("n_head", None, "n_head is missing"),
        ("eos_token_id", [2, 262], "eos_token_id 262 is beyond the 262 ids"),
        ("num_key_value_heads", 2, "config.json says num_key_value_heads 2, the weights have 4"),
    ],
)
def test_a_config_that_has_no_meaning_is_refused_by_key(
    folder: Path, key: str, value: Any, problem: str
) -> None:
    change(folder / "config.json", **{key: value})
    start = time.monotonic()
    with pytest.raises(CheckpointError, match=problem):
        load_model(folder, "cpu")
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("key", ["vocab_size", "hidden_size", "n_layer", "n_head", "ffn_hidden_size"])
def test_a_size_that_is_left_out_is_not_another_models(folder: Path, key: str) -> None:
    values = json.loads((folder / "config.json").read_text())
    del values[key]
    (folder / "config.json").write_text(json.dumps(values))
    assert f"config.json: {key} is missing" in error_of(lambda: load_model(folder, "cpu"))


def test_a_key_that_stands_twice_is_refused(folder: Path) -> None:
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace('"n_head": 4', '"n_head": 4, "n_head": 2'))
    assert "the key 'n_head' stands twice" in error_of(lambda: load_model(folder, "cpu"))


def test_ids_to_stop_at_that_the_model_cannot_give_are_refused(folder: Path) -> None:
    change(folder / "generation_config.json", eos_token_id=5000)
    assert "eos_token_id 5000 is beyond the 262 ids" in error_of(lambda: load_model(folder, "cpu"))


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("read", [Shards, lambda folder: load_model(folder, "cpu")])
def test_weights_of_whole_numbers_are_refused_by_name(
    tiny: Path, name: str, read: Callable[[Path], object]
) -> None:
    tensors = load_file(tiny / "model.safetensors")
    norm = next(key for key in tensors if "ln_f" in key)
    tensors[norm] = tensors[norm].to(torch.int32)
    (tiny / "model.safetensors").unlink()
    write = save_file if name.endswith("safetensors") else torch.save
    write(tensors, tiny / name)
    assert f"{name}: {norm} holds" in error_of(lambda: read(tiny))


def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(tiny: Path) -> None:
    (tiny / "config.json").unlink()
    os.mkfifo(tiny / "config.json")
    assert "is a pipe or a device" in error_of(lambda: load_model(tiny, "cpu"))


@pytest.mark.parametrize(
    "value",
    [{"eos_token_id": [2, 5]}, {"vendor_key": {"a": [1]}}, {"rope_theta": 10000}, {"pad_token_id": None}],
)
def test_what_published_configs_say_is_accepted(tiny: Path, value: dict[str, Any]) -> None:
    change(tiny / "config.json", **value)
    assert load_model(tiny, "cpu").config.n_layer == 4


DAMAGES = {
    "byte order mark": (lambda content: b"\xef\xbb\xbf" + content, "byte order mark"),
    "git-lfs pointer": (lambda _: LFS, "git lfs pull"),
    "empty": (lambda _: b"", "is empty"),
    "cut off": (lambda content: content[: len(content) // 2], "not valid JSON"),
    "a list": (lambda _: b"[]", "no JSON object"),
    "deep": (lambda _: b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested deeper"),
    "long number": (lambda _: b'{"a": ' + b"9" * 5000 + b"}", "5000 digits"),
}


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer_config.json", "tokenizer.json", "generation_config.json"]
)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_named_with_a_remedy_that_fits(tiny: Path, name: str, damage: str) -> None:
    make, problem = DAMAGES[damage]
    path = tiny / name
    path.write_bytes(make(path.read_bytes()))
    read = load_tokenizer if "tokenizer" in name else load_model
    message = error_of(lambda: read(tiny))
    assert str(path) in message
    assert problem in message
    assert "run the step again" not in message.lower()
    advice = (
        " ".join(row.advice for row in check_setup(tiny, tiny, "cpu").checks) if "tok" in name else str(path)
    )
    assert str(path) in advice


@pytest.mark.parametrize(
    "value", [{"eos_token_id": "x"}, {"repetition_penalty": -1.0}, {"temperature": "hot"}]
)
def test_generation_settings_are_never_passed_over(folder: Path, value: dict[str, Any]) -> None:
    change(folder / "generation_config.json", **value)
    message = error_of(lambda: load_model(folder, "cpu"))
    assert str(folder / "generation_config.json") in message
    assert next(iter(value)) in message


@pytest.mark.parametrize(
    "weight_map",
    [
        ["a"],
        {},
        {"a": ["b"]},
        {"a": "../b.safetensors"},
        {"a": "b" * 5000},
        "x",
        None,
        {"a": ".."},
        {"a": "config.json"},
    ],
)
def test_an_index_that_names_no_files_of_the_folder_is_refused(tiny: Path, weight_map: Any) -> None:
    (tiny / "model.safetensors").unlink()
    (tiny / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    message = error_of(lambda: load_model(tiny, "cpu"))
    assert "index.json: weight_map" in message
    assert len(message) < 500


def test_an_archive_that_unpacks_to_more_than_it_holds_is_refused(tiny: Path) -> None:
    (tiny / "model.safetensors").unlink()
    with zipfile.ZipFile(tiny / "pytorch_model.bin", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * (1 << 24))
    assert "unpacks to 17 MB from 0 MB" in error_of(lambda: load_model(tiny, "cpu"))


def test_a_table_of_contents_without_end_is_refused_before_it_is_read(tiny: Path) -> None:
    path = tiny / "model.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 90_000_000))
        file.truncate(90_000_008)
    assert "a table of contents of 90 MB" in error_of(lambda: load_model(tiny, "cpu"))


@pytest.mark.parametrize("content", [LFS, b""])
def test_weights_that_are_not_there_say_what_to_do(tiny: Path, content: bytes) -> None:
    (tiny / "model.safetensors").write_bytes(content)
    message = error_of(lambda: load_model(tiny, "cpu"))
    assert ("git lfs pull" if content else "empty") in message


@pytest.mark.parametrize("content", [LFS, b"", b"\x00" * 100])
def test_a_sentencepiece_file_that_is_none_is_named(tiny: Path, content: bytes) -> None:
    (tiny / "tokenizer.json").unlink()
    (tiny / "tokenizer.model").write_bytes(content)
    assert "tokenizer.model" in error_of(lambda: load_tokenizer(tiny))


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "does not end"),
        ("{{ messages[0].content.nothing.more }}", "fails for one question"),
        ("{% for %}", "fails for one question"),
        ("{{ 'x' * 20000000000 }}", "fails for one question"),
        ("{{ 10 ** (10 ** 9) }}", "fails for one question: it computes powers"),
        ("{{ raise_exception('no') }}", "fails for one question: no"),
        ("hello", "fails for one question: it leaves the question out"),
        ("{{ messages[0].content[:3] }}", "fails for one question: it leaves the question out"),
        ("{{ range(9999) | random }} {{ messages[0].content }}", "fails for one question: it gives another"),
        ("{{ 'x' * 200000 }}{{ messages[0].content }}", "fails for one question: it makes 200006 signs"),
    ],
)
def test_a_template_that_fails_or_does_not_end_is_refused(
    tiny: Path, template: str, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("telechat_kit.model.tokenizer_files.MOST_SECONDS", 0.5)
    (tiny / "chat_template.jinja").write_text(template)
    assert f"chat template of its tokenizer {problem}" in error_of(lambda: load_tokenizer(tiny))


@pytest.mark.parametrize("name", ["generation_config.json", "tokenizer_config.json", "added_tokens.json"])
@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to("gone")])
def test_a_file_that_is_none_is_not_passed_over(
    tiny: Path, name: str, make: Callable[[Path], object]
) -> None:
    """A copied cache of the hub is full of links that lead nowhere: without the file answers would be others."""
    (tiny / name).unlink(missing_ok=True)
    make(tiny / name)
    read = load_tokenizer if "token" in name else load_model
    assert f"{name} is no file, but a folder, a pipe or a link" in error_of(lambda: read(tiny))


def test_folders_and_pipes_beside_a_checkpoint_are_no_part_of_its_hashes(tiny: Path) -> None:
    before = settings_hash(tiny)
    (tiny / "extra.json").mkdir()
    os.mkfifo(tiny / "pipe.json")
    assert settings_hash(tiny) == before


def test_a_tensor_whose_name_commands_a_terminal_is_refused(tiny: Path) -> None:
    save_file({"a\x1b[31m": torch.zeros(1)}, tiny / "model.safetensors")
    assert "a tensor is called 'a\\x1b[31m'" in error_of(lambda: load_model(tiny, "cpu"))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"dropout": 0.1}, "model.dropout is 0.1: the same text would get other ids each time"),
        ({"normalizers": [{"type": "Replace", "pattern": {"String": "l"}, "content": "l" * 200}] * 5},
         "its normalizer makes texts up to 320,000,000,000 times as long"),
    ],
)  # fmt: skip
def test_a_tokenizer_that_draws_or_swells_is_refused_before_it_is_used(
    tiny: Path, changes: dict[str, Any], told: str
) -> None:
    path = tiny / "tokenizer.json"
    values = json.loads(path.read_text())
    if "normalizers" in changes:
        values["normalizer"] = {"type": "Sequence", **changes}
    else:
        values["model"] |= changes
    path.write_text(json.dumps(values))
    assert told in error_of(lambda: load_tokenizer(tiny))


def test_a_call_in_time_gives_its_value() -> None:
    assert within(5, lambda: sum(range(10))) == 45
    with pytest.raises(TimeoutError):
        within(0.05, lambda: [i for _ in range(10**9) for i in (1,)] and None)


@pytest.mark.parametrize("name", FILES)
def test_every_tokenizer_file_counts_in_the_hash(tiny: Path, name: str) -> None:
    before = tokenizer_hash(tiny)
    with (tiny / name).open("ab") as file:
        file.write(b" ")
    assert tokenizer_hash(tiny) != before


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("config.json", True),
        ("generation_config.json", True),
        ("origin.json", False),
        ("tokenizer.json", False),
    ],
)
def test_json_files_that_decide_answers_count_in_the_hash_of_settings(
    tiny: Path, name: str, counts: bool
) -> None:
    before = settings_hash(tiny)
    with (tiny / name).open("ab") as file:
        file.write(b" ")
    assert (settings_hash(tiny) != before) is counts


def test_a_tensor_of_an_npy_file_stays_within_its_storage(tmp_path: Path) -> None:
    import numpy as np  # noqa: PLC0415

    from telechat_kit.model.unpickling import _tensor, read_dictionary  # noqa: PLC0415

    storage = torch.zeros(4).storage()
    for offset, size, stride in [
        (0, (5,), (1,)),
        (2, (3,), (1,)),
        (0, (2, 2), (3, 1)),
        (-1, (1,), (1,)),
        (0, (2,), (-1,)),
    ]:
        with pytest.raises(Exception, match="larger than its storage"):
            _tensor(storage, offset, size, stride)
    assert _tensor(storage, 1, (3,), (1,)).shape == (3,)
    assert _tensor(storage, 0, (2, 2), (2, 1)).shape == (2, 2)
    values = np.empty((), dtype=object)
    values[()] = {"a": torch.arange(4.0)[1:]}
    np.save(tmp_path / "a.npy", values, allow_pickle=True)
    assert torch.equal(read_dictionary(tmp_path / "a.npy")["a"], torch.tensor([1.0, 2.0, 3.0]))


@pytest.mark.parametrize(
    "values",
    [
        {"ignore": "lm_head"},
        {"ignore": [3]},
        {"ignore": ["re:("]},
        {"ignore": ["re:(a+)+$"]},
        {"config_groups": []},
        {"config_groups": {"group_0": []}},
        {"config_groups": {"group_0": {"weights": 8}}},
    ],
)
def test_a_quantization_of_other_types_is_refused(tiny: Path, values: dict[str, Any]) -> None:
    kind = {"quant_method": "compressed-tensors", "format": "int-quantized"}
    change(tiny / "config.json", quantization_config=kind | values)
    assert "quantization_config cannot be read" in error_of(lambda: load_model(tiny, "cpu"))

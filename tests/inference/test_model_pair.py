"""The two models of a comparison: whether they belong together, and how many are in memory."""

import gc
import hashlib
import json
import shutil
import weakref
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from telechat_kit.errors import CheckpointError, DataError, ParameterError
from telechat_kit.inference.model_pair import Pair
from telechat_kit.precision import evaluation_blocks

TOPICS = "pydoc_data.topics"


def test_checkpoints_of_different_vocabularies_do_not_belong_together(
    tiny_folder: Path, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(tiny_folder, tmp_path / "other"))
    tensors = load_file(other / "model.safetensors")
    name = next(name for name in tensors if name.endswith("word_embeddings.weight"))
    tensors[name] = tensors[name][:200].clone()
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "vocab_size": 200}))
    for model_path, quant_path in [(tiny_folder, other), (other, tiny_folder), (other, other)]:
        with pytest.raises(
            CheckpointError, match=r"Give a pair of one model|tokenizer that belongs to the weights"
        ):
            Pair(model_path, quant_path, "cpu")


def test_calibration_blocks_are_left_out_of_the_evaluation(pair: Pair) -> None:
    recipe = json.loads((pair.w8a8_folder / "quantize.json").read_text())["recipe"]
    seen = {position for low, high in recipe["calibration_blocks"] for position in range(low, high)}
    blocks = evaluation_blocks(pair, TOPICS, 64, 2000, seed=0)
    assert not seen & {position for block in blocks for position in range(block.start, block.stop)}
    everything = evaluation_blocks(Pair(pair.float_folder, pair.float_folder), TOPICS, 64, 2000, seed=0)
    assert [block.start for block in blocks] != [block.start for block in everything]


def test_only_blocks_of_the_calibrated_text_itself_are_left_out(
    pair: Pair, tiny_folder: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(pair.w8a8_folder, tmp_path / "w8a8"))
    details = json.loads((folder / "quantize.json").read_text())
    (tmp_path / "seen.txt").write_text("y" * 40)
    (tmp_path / "other.txt").write_text("z" * 40)
    digest = hashlib.sha256(b"y" * 40 + b"\n").hexdigest()
    details["recipe"].update(calibration_sha256=digest, calibration_blocks=[[0, 10], [15, 40]])
    (folder / "quantize.json").write_text(json.dumps(details))
    calibrated = Pair(tiny_folder, folder, "cpu")
    assert len(evaluation_blocks(calibrated, str(tmp_path / "other.txt"), 10, 4, seed=0)) == 4
    with pytest.raises(DataError, match=r"seen\.txt gives 0 free blocks"):
        evaluation_blocks(calibrated, str(tmp_path / "seen.txt"), 10, 1, seed=0)


@pytest.mark.parametrize(
    "recipe", ["[]", '{"calibration_blocks": [1]}', '{"calibration_kinds": [{"sha256": 1}]}']
)
def test_a_recipe_that_tells_nothing_readable_is_refused(
    pair: Pair, tiny_folder: Path, tmp_path: Path, recipe: str
) -> None:
    folder = Path(shutil.copytree(pair.w8a8_folder, tmp_path / "w8a8"))
    (folder / "quantize.json").write_text(f'{{"recipe": {recipe}}}')
    if recipe == "[]":  # as good as none
        assert evaluation_blocks(Pair(tiny_folder, folder, "cpu"), TOPICS, 10, 1, seed=0)
        return
    with pytest.raises(CheckpointError, match=r"quantize\.json: recipe\.calibration_"):
        evaluation_blocks(Pair(tiny_folder, folder, "cpu"), TOPICS, 10, 1, seed=0)


def test_sequences_longer_than_the_trained_length_are_refused(pair: Pair) -> None:
    with pytest.raises(ParameterError, match="trained on at most 512"):
        evaluation_blocks(pair, TOPICS, 513, 1, 0)


def test_sequences_of_one_token_are_refused(pair: Pair) -> None:
    with pytest.raises(ParameterError, match="at least 2 tokens"):
        evaluation_blocks(pair, TOPICS, 1, 4, 0)


def test_tokenizers_that_know_other_tokens_do_not_belong_together(pair: Pair, tmp_path: Path) -> None:
    other = Path(shutil.copytree(pair.w8a8_folder, tmp_path / "other"))
    path = other / "tokenizer.json"
    details = json.loads(path.read_text(encoding="utf-8"))
    vocabulary = details["model"]["vocab"]
    first, second = list(vocabulary)[20:22]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    path.write_text(json.dumps(details), encoding="utf-8")
    with pytest.raises(CheckpointError, match="know different tokens"):
        Pair(pair.float_folder, other, "cpu")


def test_one_at_a_time_frees_the_first_model_before_the_second_is_loaded(pair: Pair) -> None:
    def load(name: str) -> "weakref.ref[object]":
        with short.model(name) as model:
            return weakref.ref(model)

    short = Pair(pair.float_folder, pair.w8a8_folder, "cpu", memory="one")
    first = load("float")
    gc.collect()
    assert first() is None
    both = Pair(pair.float_folder, pair.w8a8_folder, "cpu", memory="both")
    with both.model("float") as one, both.model("float") as again:
        assert one is again


def test_an_unknown_memory_mode_is_refused(pair: Pair) -> None:
    with pytest.raises(ParameterError, match=r'memory "half" is unknown. Use one of both, one, auto'):
        Pair(pair.float_folder, pair.w8a8_folder, "cpu", memory="half")

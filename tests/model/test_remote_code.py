"""Folders of the kit in a process that has not imported it, as lm-evaluation-harness's own command is one."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from grouped import grouped_config
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from telechat_kit.files import read_json, write_json
from telechat_kit.inference.loading import load_model
from telechat_kit.model import Telechat3Config, TelechatConfig
from telechat_kit.model.folder import read_config
from telechat_kit.model.remote_code import REMOTE_CODE
from telechat_kit.model.tiny import write_random
from telechat_kit.quantization import Calibration, Recipe, export, quantize

PUBLISHED = {"AutoConfig": "configuration_telechat.TelechatConfig"}
FEW = Calibration("pydoc_data.topics", calibration_samples=4, calibration_tokens=64)

#: Loads FOLDER without the flag, without the kit's package, and with both; leaves logits and a saved copy of the float one
STRANGER = """
import json, sys
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

class Hidden:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == "telechat_kit":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

def told(folder, **options):
    try:
        AutoModelForCausalLM.from_pretrained(folder, **options)
    except Exception as error:
        return f"{type(error).__name__}: {error}"

folders, target = sys.argv[1:-1], sys.argv[-1]
found = {"unasked": [told(folder, trust_remote_code=False) for folder in folders]}
found["asked"] = told(folders[0])
sys.meta_path.insert(0, Hidden)
found["not installed"] = told(folders[0], trust_remote_code=True)
sys.meta_path.remove(Hidden)
assert "telechat_kit" not in sys.modules
found["models"], found["tokenizers"] = [], []
for number, folder in enumerate(folders):
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    with torch.inference_mode():
        save_file({"logits": model(torch.arange(4, 40)[None]).logits}, f"{target}/{number}.safetensors")
    found["models"].append(f"{type(model).__module__}.{type(model).__name__}")
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    found["tokenizers"].append(type(tokenizer).__name__)
    if number == 0:
        model.save_pretrained(f"{target}/saved")
with open(f"{target}/found.json", "w") as file:
    json.dump(found, file)
"""


@pytest.fixture(scope="module")
def strange(
    tiny_folder: Path, tiny_w8a8_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[Path], Path, dict[str, Any]]:
    """Folders, what a process that has not imported the kit leaves of them, and what it says."""
    target = tmp_path_factory.mktemp("strange")
    telechat3 = write_random(target / "telechat3", grouped_config("telechat3", 6, 2))
    quantize(telechat3, target / "telechat3-w8a8", Recipe("L0", anti_outlier="m1"), FEW, device="cpu")
    folders = [tiny_folder, tiny_w8a8_folder, telechat3, target / "telechat3-w8a8"]
    done = subprocess.run(
        [sys.executable, "-c", STRANGER, *map(str, folders), str(target)],
        env={**os.environ, "HF_MODULES_CACHE": str(target / "modules")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folders, target, read_json(target / "found.json")


def test_without_an_import_the_kit_s_networks_give_the_kit_s_logits(strange: Any) -> None:
    folders, target, found = strange
    for number, folder in enumerate(folders):
        with torch.inference_mode():
            expected = load_model(folder, "cpu")(torch.arange(4, 40)[None]).logits
        assert torch.equal(load_file(target / f"{number}.safetensors")["logits"], expected)
    networks = ("network.TelechatForCausalLM", "telechat3.Telechat3ForCausalLM")
    assert found["models"] == [f"telechat_kit.model.{name}" for name in networks for _ in range(2)]
    assert set(found["tokenizers"]) == {"TelechatTokenizerFast"}


def test_code_runs_only_where_it_is_trusted(strange: Any) -> None:
    found = strange[2]
    for said in [*found["unasked"], found["asked"]]:
        assert said.startswith("ValueError") and "trust_remote_code=True" in said


def test_a_package_that_is_not_there_is_named(strange: Any) -> None:
    said = strange[2]["not installed"]
    assert said.startswith("ImportError") and "pip install telechat_kit" in said


def test_what_such_a_process_saves_can_be_loaded_as_before(strange: Any) -> None:
    saved = strange[1] / "saved"
    assert [path.name for path in saved.glob("*.py")] == [REMOTE_CODE]
    assert (
        read_json(saved / "config.json")["auto_map"]["AutoConfig"] == "modeling_telechat_kit.TelechatConfig"
    )
    model = AutoModelForCausalLM.from_pretrained(saved)
    with torch.inference_mode():
        logits = model(torch.arange(4, 40)[None]).logits
    assert torch.equal(logits, load_file(strange[1] / "0.safetensors")["logits"])


@pytest.mark.parametrize("form", ["telechat2", "telechat3"])
def test_w8a8_of_a_published_folder_names_the_kit_s_code_instead(form: str, tmp_path: Path) -> None:
    folder = write_random(tmp_path / "float", grouped_config(form, 4, 4))
    config = read_json(folder / "config.json")
    named = {"AutoConfig": f"configuration_{form}.Config", "AutoModelForCausalLM": f"modeling_{form}.Model"}
    if form == "telechat2":  # its auto_map alone tells what it is
        del config["num_key_value_heads"], config["architectures"]
    write_json(folder / "config.json", {**config, "auto_map": named})
    (folder / REMOTE_CODE).unlink()
    (folder / f"modeling_{form}.py").write_text("# published")
    expected = read_config(folder)
    quantize(folder, tmp_path / "w8a8", Recipe("L0", anti_outlier="m1"), FEW, device="cpu")
    found = read_json(tmp_path / "w8a8" / "config.json")
    kind = Telechat3Config if form == "telechat3" else TelechatConfig
    assert found["auto_map"]["AutoConfig"] == f"modeling_telechat_kit.{kind.__name__}"
    assert (tmp_path / "w8a8" / REMOTE_CODE).is_file()
    again = read_config(tmp_path / "w8a8")
    assert (type(again), again.kv_heads, again.keys_keep_tables) == (kind, 4, expected.keys_keep_tables)
    assert again.keys_keep_tables


@pytest.mark.parametrize("form", ["safetensors", "ascendV1", "compressed-tensors"])
def test_exports_under_own_names_carry_it_and_those_of_llama_do_not(
    form: str, tiny_w8a8_folder: Path, tmp_path: Path
) -> None:
    source = shutil.copytree(tiny_w8a8_folder, tmp_path / "source")
    config = read_json(source / "config.json")
    (source / REMOTE_CODE).unlink()
    write_json(source / "config.json", {**config, "auto_map": PUBLISHED})
    export(source, tmp_path / "own", form)
    assert read_json(tmp_path / "own" / "config.json")["auto_map"] == config["auto_map"]
    assert (tmp_path / "own" / REMOTE_CODE).is_file()
    if form != "safetensors":
        export(tiny_w8a8_folder, tmp_path / "llama", form, names="llama")
        assert "auto_map" not in read_json(tmp_path / "llama" / "config.json")
        assert not (tmp_path / "llama" / REMOTE_CODE).exists()


def test_float_parts_of_exports_carry_it_and_float_llamas_do_not(
    tiny_folder: Path, tiny_w8a8_folder: Path, tmp_path: Path
) -> None:
    export(tiny_w8a8_folder, tmp_path / "numpy", "numpy")
    assert (tmp_path / "numpy" / "float" / REMOTE_CODE).is_file()
    export(tiny_folder, tmp_path / "llama", "float", names="llama")
    assert "auto_map" not in read_json(tmp_path / "llama" / "config.json")
    assert not (tmp_path / "llama" / REMOTE_CODE).exists()

"""Machines as recorded under tests/data/environment, and checkpoints of TeleChat's shapes that take no room."""

import json
import shutil
import struct
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any

import torch

from telechat_kit.environment.probe import Outcome, Probe
from telechat_kit.model.configuration import TelechatConfig
from telechat_kit.model.network import TelechatForCausalLM

MACHINES = Path(__file__).parents[1] / "data" / "environment"
NAMES = sorted(path.parent.name for path in MACHINES.glob("*/machine.json"))
#: The shapes of the published config.json of TeleChat-7B
SEVEN_B = {
    "architectures": ["TelechatForCausalLM"],
    "model_type": "telechat",
    "vocab_size": 160256,
    "hidden_size": 4096,
    "n_layer": 30,
    "n_head": 32,
    "ffn_hidden_size": 12288,
    "training_seqlen": 8192,
    "torch_dtype": "float16",
}
TWELVE_B = SEVEN_B | {
    "vocab_size": 120000,
    "hidden_size": 5120,
    "n_layer": 38,
    "tie_word_embeddings": False,
}


def recorded(name: str) -> Probe:
    """The probe of a recorded machine; a command that was not recorded is one that it does not have."""
    folder = MACHINES / name
    machine = json.loads((folder / "machine.json").read_text())

    def npu_smi(arguments: Sequence[str]) -> Outcome:
        command: dict[str, Any] | None = machine["npu_smi"].get(" ".join(arguments))
        if command is None:
            return Outcome(127, "", "npu-smi: command not found")
        file = command["output_file"]
        return Outcome(command["code"], (folder / file).read_text() if file else "", command["error"])

    return Probe(
        root=folder / "root",
        environ=machine["environ"],
        arch=machine["arch"],
        python=machine["python"],
        package=machine["packages"].get,
        npu_smi=npu_smi,
        import_torch_npu=lambda: Outcome(**machine["import_torch_npu"]),
        free_memory=lambda: machine["free_memory"],
        free_disk=lambda _: machine["free_disk"],
    )


def write_shaped(folder: Path, config: dict[str, object], tokenizer: Path) -> Path:
    """A float16 checkpoint of that configuration whose values are a hole in the file: no room on the disk."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    for path in tokenizer.glob("*token*"):
        shutil.copy(path, folder)
    with torch.device("meta"):
        model = TelechatForCausalLM(TelechatConfig.from_pretrained(folder))
    header, end = {}, 0
    for name, parameter in model.named_parameters():
        size = 2 * prod(parameter.shape)
        header[name] = {"dtype": "F16", "shape": list(parameter.shape), "data_offsets": [end, end + size]}
        end += size
    table = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(table)) + table)
        file.truncate(8 + len(table) + end)
    return folder

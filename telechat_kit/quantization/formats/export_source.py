"""A quantized model that is to be written in another format: its weights, read and checked, and what stands beside."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, PreTrainedModel

from telechat_kit.errors import CheckpointError
from telechat_kit.files import read_json, write_json
from telechat_kit.messages import Message
from telechat_kit.model.checkpoint import config_folder, read_w8a8
from telechat_kit.model.compressed_tensors import recovered_bias
from telechat_kit.model.folder import DYNAMIC, STATIC, is_w8a8, read_config
from telechat_kit.model.int8_linears import DYNAMIC_TENSORS, decode_scale
from telechat_kit.model.remote_code import write_config
from telechat_kit.model.telechat3 import network_of
from telechat_kit.model.w8a8 import LINEAR_TENSORS, W8A8Weights, linear_names, norm_names, place, stored_name


@dataclass(frozen=True)
class Source:
    """A quantized model that has passed every check of reading.

    Attributes:
        folder: that of the weights.
        beside: that of the config and the tokenizer.
        model: the network on the meta device; says which tensors there must be.
        config: `config.json` without what only its own format says.
    """

    folder: Path
    beside: Path
    model: PreTrainedModel
    weights: W8A8Weights
    config: dict[str, Any]

    @property
    def kind(self) -> str:
        """The type of the whole model: dynamic if all of its int8 linears are."""
        return DYNAMIC if self.weights.dynamic and not self.static else STATIC

    @property
    def static(self) -> frozenset[str]:
        """The int8 linears with static activations."""
        return self.weights.linears - self.weights.dynamic

    def parameters(self) -> list[str]:
        """Stored names of the parameters of the network."""
        return [stored_name(name, self.model.config) for name, _ in self.model.named_parameters()]

    def float_names(self) -> list[str]:
        """Stored names of the parameters that no int8 linear owns."""
        return [name for name in self.parameters() if name.rpartition(".")[0] not in self.weights.linears]

    def float_linears(self) -> list[str]:
        """Module names of the linears that are not int8, without the head."""
        names = linear_names(self.model)
        return [name for name in names if stored_name(name, self.model.config) not in self.weights.linears]

    def packed(self, linear: str) -> dict[str, Tensor]:
        """The tensors of an int8 linear as they are there."""
        parts = DYNAMIC_TENSORS if linear in self.weights.dynamic else LINEAR_TENSORS
        tensors = self.weights.tensors
        return {part: tensors[f"{linear}.{part}"] for part in parts if f"{linear}.{part}" in tensors}

    def complete(self, linear: str) -> dict[str, Tensor]:
        """Those of a static one with the scale and bias that some files leave out because their runtime needs none."""
        packed = self.packed(linear)
        offset = packed["input_offset"]
        if not torch.equal(offset.float(), offset.float().round().clamp(-128, 127)):
            self.weights.refuse(
                Message("{linear}.input_offset is {item}, no int8 number", linear=linear, item=offset.item())
            )
        if "weight_scale" not in packed:
            packed["weight_scale"] = (decode_scale(packed["deq_scale"]) / packed["input_scale"].float())[
                :, None
            ]
        if "bias" not in packed and f"{linear}.bias" in self.parameters():
            packed["bias"] = recovered_bias(packed)
        return packed

    def write_config(self, folder: Path, **more: Any) -> None:
        """Write config.json with `more` of what the format says; under TeleChat's names the code of the kit with it."""
        values = {**self.config, **more}
        if isinstance(self.model.config, LlamaConfig):
            write_json(folder / "config.json", values)
        else:
            write_config(folder, values, self.model.config)

    def shifts(self) -> dict[str, Tensor]:
        """The biases of norms whose channels were shifted."""
        biases = {f"{norm}.bias": self.weights.tensors.get(f"{norm}.bias") for norm in norm_names(self.model)}
        return {name: bias for name, bias in biases.items() if bias is not None and bool(bias.any())}


def read_source(folder: Path, float_folder: Path | None) -> Source:
    """The source, once placed into a network: that is the check that it can be loaded."""
    needed = folder.is_dir() and not (folder / "config.json").is_file()
    beside = config_folder(folder, float_folder if needed else None)
    config = read_config(beside)
    if not is_w8a8(folder):
        raise CheckpointError("{folder} is not quantized. Quantize it first, then export.", folder=folder)
    with torch.device("meta"):
        model, probe = (network_of(config)(config) for _ in range(2))
    weights = read_w8a8(folder, beside, model)
    place(probe, weights, config.dtype or torch.float32)
    embedding = weights.tensors[stored_name(config.layout.embedding, config)]
    kept = {
        key: value
        for key, value in read_json(beside / "config.json").items()
        if key not in ("quantize", "quantization_config")
    }
    return Source(folder, beside, model, weights, with_dtype(kept, embedding.dtype))


def with_dtype(config: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """`config` with the dtype under both of its names."""
    name = str(dtype).removeprefix("torch.")
    return {**config, "torch_dtype": name, "dtype": name}

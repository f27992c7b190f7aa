"""W8A8 folders for transformers: `AutoModelForCausalLM.from_pretrained` gives the int8 model that `load_model` gives.

transformers finds out here what a quantized model is, and gives up its own reading of the weights: the kit's reader
has the checks, and knows every file format.
"""

import logging
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.quantizers import HfQuantizer
from transformers.quantizers.auto import (
    AUTO_QUANTIZER_MAPPING,
    register_quantization_config,
    register_quantizer,
)
from transformers.utils.loading_report import LoadStateDictInfo
from transformers.utils.quantization_config import QuantizationConfigMixin

from telechat_kit.errors import CheckpointError, DeviceError
from telechat_kit.model.checkpoint import read_w8a8
from telechat_kit.model.folder import require_fitting
from telechat_kit.model.network import W8A8_METHOD, TelechatForCausalLM
from telechat_kit.model.w8a8 import place, prepare

_log = logging.getLogger(__name__)


class TelechatW8A8Config(QuantizationConfigMixin):
    """Says that a model's folder holds W8A8 weights; the rest is in the folder's description."""

    def __init__(self, quant_method: str = W8A8_METHOD) -> None:
        self.quant_method = quant_method


class TelechatW8A8Quantizer(HfQuantizer):
    """Fills a model with the int8 weights of its folder. It does not quantize: `telechat_kit.quantize` does."""

    requires_calibration = True

    def validate_environment(self, device_map: Any = None, **_: Any) -> None:
        """Refuse weights on the disk or on no device: the kernels read them where they lie."""
        places = device_map.values() if isinstance(device_map, dict) else [device_map]
        if found := {"disk", "meta"} & {str(place) for place in places}:
            raise DeviceError(
                "a W8A8 model cannot run with weights on {device}. Give a device_map of devices, or use load_model "
                "with several devices.",
                device=found.pop(),
            )

    def load(
        self, model: PreTrainedModel, folder: Path, dtype: torch.dtype, device_map: Any
    ) -> LoadStateDictInfo:
        """Fill `model`, which lies on the meta device, and bring every part to its device, ready to run.

        Returns:
            transformers' report, which has nothing to tell: what is missing or left over has been refused.

        Raises:
            CheckpointError: the folder does not fit the model; names the tensor.
        """
        if not isinstance(model, TelechatForCausalLM):
            raise CheckpointError(
                "{folder} is quantized and holds a model with its head. Load it with AutoModelForCausalLM.",
                folder=folder,
            )
        require_fitting(folder, model.config)
        model.tie_weights()  # transformers ties when all has been read, `place` expects it before
        place(model, read_w8a8(folder, folder, model), dtype)
        for name, device in (device_map or {}).items():
            model.get_submodule(name).to(device)
        prepare(model)
        _mark_as_filled(model)
        empty = {"error_msgs": list, "conversion_errors": dict}
        return LoadStateDictInfo(
            **{field.name: empty.get(field.name, set)() for field in fields(LoadStateDictInfo)}
        )

    def is_serializable(self) -> bool:
        """No: transformers would write other names than the format's."""
        _log.warning("A W8A8 folder is copied as it is, or written in another format by telechat-kit export.")
        return False

    @property
    def is_trainable(self) -> bool:
        return False


def _mark_as_filled(model: nn.Module) -> None:
    """Keep transformers from initializing what it has not read itself."""
    for module in model.modules():
        module._is_hf_initialized = True  # type: ignore[assignment]
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            tensor._is_hf_initialized = True  # type: ignore[attr-defined]


def register_w8a8() -> None:
    """Make transformers know W8A8 folders, once."""
    if W8A8_METHOD not in AUTO_QUANTIZER_MAPPING:
        register_quantization_config(W8A8_METHOD)(TelechatW8A8Config)
        register_quantizer(W8A8_METHOD)(TelechatW8A8Quantizer)

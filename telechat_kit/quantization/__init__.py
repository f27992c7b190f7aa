"""W8A8 quantization of TeleChat: the pipeline, and its steps by themselves on plain tensors."""

from telechat_kit.quantization.conversion import ExportRecord, export
from telechat_kit.quantization.observers import activation_range
from telechat_kit.quantization.packing import int8_linear, pack_linear, quantize_weight
from telechat_kit.quantization.pipeline import QuantizeRecord, check_given_weights, quantize
from telechat_kit.quantization.sensitivity import sensitivity_score
from telechat_kit.quantization.smoothing import smoothing_scale

__all__ = [
    "ExportRecord",
    "QuantizeRecord",
    "activation_range",
    "check_given_weights",
    "export",
    "int8_linear",
    "pack_linear",
    "quantize",
    "quantize_weight",
    "sensitivity_score",
    "smoothing_scale",
]

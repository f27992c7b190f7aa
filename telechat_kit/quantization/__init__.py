"""W8A8 quantization of TeleChat: the pipeline, and its steps by themselves on plain tensors."""

from telechat_kit.quantization.calibration.sensitivity import sensitivity_score
from telechat_kit.quantization.formats.conversion import ExportRecord, export
from telechat_kit.quantization.int8.observers import activation_range
from telechat_kit.quantization.int8.packing import int8_linear, pack_linear, quantize_weight
from telechat_kit.quantization.methods.smoothing import smoothing_scale
from telechat_kit.quantization.pipeline import QuantizeRecord, check_given_weights, quantize
from telechat_kit.quantization.request import Calibration, Recipe

__all__ = [
    "Calibration",
    "ExportRecord",
    "QuantizeRecord",
    "Recipe",
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

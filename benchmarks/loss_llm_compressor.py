"""llm-compressor for the loss table: SmoothQuant or SpinQuant, then nearest rounding or GPTQ, W8A8 of every block linear."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.gptq import GPTQModifier
from llmcompressor.modifiers.quantization import QuantizationModifier
from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier
from llmcompressor.modifiers.transform.spinquant import SpinQuantModifier
from loss_row import Network, Quantized
from transformers import AutoModelForCausalLM

PACKAGES = ("transformers", "llmcompressor", "compressed-tensors")
#: What norms feed, as the tool's own mapping of a Llama
NORMS = [
    [["re:.*q_proj", "re:.*k_proj", "re:.*v_proj"], "re:.*input_layernorm"],
    [["re:.*gate_proj", "re:.*up_proj"], "re:.*post_attention_layernorm"],
]


class Uncentered(SpinQuantModifier):
    """Leaves the embeddings as they are."""

    def _center_embeddings(self, model: Any) -> None:
        pass


def load(folder: Path) -> Any:
    """transformers' Llama."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def network(model: Any) -> Network:
    """Its states behind the final norm, and its head."""

    def states(ids: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = model.model(ids, use_cache=False).last_hidden_state
        return found

    return Network(states, model.lm_head)


def quantize(
    model: Any,
    samples: Sequence[Sequence[int]],
    smoothing: float = 0.0,
    rotations: Sequence[str] = (),
    rounding: str = "nearest",
    activations: str = "dynamic",
    centered: bool = True,
) -> Quantized:
    """`oneshot` on the samples as they are.

    Args:
        centered: as the tool does it. SpinQuant takes the mean out of each embedding, which a LayerNorm would not
            notice, and the RMSNorm of a Llama does.
    """
    recipe: list[Any] = []
    if smoothing:
        recipe.append(SmoothQuantModifier(smoothing_strength=smoothing, mappings=NORMS))
    if rotations:
        # "hadamard" takes powers of two only, and 576 is none
        kind = SpinQuantModifier if centered else Uncentered
        recipe.append(kind(rotations=list(rotations), transform_type="random-hadamard"))
    rounded = {"nearest": QuantizationModifier, "gptq": GPTQModifier}[rounding]
    recipe.append(rounded(config_groups={"all": scheme(activations)}, ignore=["lm_head"]))
    oneshot(
        model=model,
        dataset=Dataset.from_dict({"input_ids": [list(ids) for ids in samples]}),
        recipe=recipe,
        max_seq_length=max(map(len, samples)),
        num_calibration_samples=len(samples),
        shuffle_calibration_samples=False,
    )
    return Quantized(lambda: network(model.eval()))


def scheme(activations: str) -> QuantizationScheme:
    """Weights int8 per channel, activations int8: a scale for each token, or one range for a linear."""
    weights = QuantizationArgs(num_bits=8, type="int", symmetric=True, strategy="channel")
    inputs = (
        QuantizationArgs(num_bits=8, type="int", symmetric=True, strategy="token", dynamic=True)
        if activations == "dynamic"
        else QuantizationArgs(num_bits=8, type="int", symmetric=True, strategy="tensor", dynamic=False)
    )
    return QuantizationScheme(targets=["Linear"], weights=weights, input_activations=inputs)

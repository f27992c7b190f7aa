"""NNCF for the loss table: static int8 of OpenVINO's graph with SmoothQuant, run by OpenVINO on the CPU.

Embedding and head stay outside the graph, which maps embeddings to the states behind the final norm.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nncf
import numpy as np
import openvino
import torch
from loss_row import Levels, Network, Quantized
from nncf.quantization.advanced_parameters import (
    AdvancedQuantizationParameters,
    AdvancedSmoothQuantParameters,
    OverflowFix,
)
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

PACKAGES = ("transformers", "nncf", "openvino")
#: One thread as the other tools, and no bfloat16 beside the int8 products
COMPILED = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
#: What may stand between a range and the product
PASSED = ("Reshape", "Transpose", "Convert", "Multiply")


class Body(nn.Module):
    """From embeddings to states, block by block: OpenVINO has no rule for what transformers makes its masks with."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.body = model.model

    def forward(self, embedded: Tensor) -> Tensor:
        positions = torch.arange(embedded.shape[1])[None]
        rotary = self.body.rotary_emb(embedded, position_ids=positions)
        for block in self.body.layers:
            embedded = block(embedded, attention_mask=None, position_embeddings=rotary)  # none: causal
        states: Tensor = self.body.norm(embedded)
        return states


@dataclass(frozen=True)
class Loaded:
    """The graph, and what stays outside of it."""

    graph: openvino.Model
    embedding: nn.Module
    head: nn.Module


def load(folder: Path) -> Loaded:
    """transformers' Llama, converted by OpenVINO."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    size = model.config.hidden_size
    with torch.no_grad():
        graph = openvino.convert_model(
            Body(model), example_input=torch.randn(1, 16, size), input=[openvino.PartialShape([-1, -1, size])]
        )
    return Loaded(graph, model.get_input_embeddings(), model.lm_head)


def network(model: Loaded) -> Network:
    """The graph as OpenVINO compiles it."""
    compiled = openvino.compile_model(model.graph, "CPU", COMPILED)

    def states(ids: Tensor) -> Tensor:
        # a sequence at a time: the whole batch takes gigabytes in the graph
        rows = [compiled(embedded(model, row[None]))[0] for row in ids]
        return torch.from_numpy(np.concatenate(rows))

    return Network(states, model.head)


def embedded(model: Loaded, ids: Tensor) -> np.ndarray:
    with torch.inference_mode():
        found: np.ndarray = model.embedding(ids).numpy()
    return found


def quantize(model: Loaded, samples: Sequence[Sequence[int]], smoothing: float = 0.95) -> Quantized:
    """`nncf.quantize`, attention's products left in float."""
    inputs = [embedded(model, torch.tensor([list(ids)])) for ids in samples]
    graph = nncf.quantize(
        model.graph,
        nncf.Dataset(inputs),
        preset=nncf.QuantizationPreset.MIXED,
        model_type=nncf.ModelType.TRANSFORMER,
        fast_bias_correction=True,
        subset_size=len(inputs),
        ignored_scope=nncf.IgnoredScope(types=["ScaledDotProductAttention"]),
        advanced_parameters=AdvancedQuantizationParameters(
            overflow_fix=OverflowFix.DISABLE,  # int8 products of today's processors do not overflow
            smooth_quant_alphas=AdvancedSmoothQuantParameters(matmul=smoothing),
        ),
    )
    quantized = Loaded(graph, model.embedding, model.head)
    return Quantized(lambda: network(quantized), levels_of(graph))


def levels_of(graph: openvino.Model) -> Levels:
    """Levels of both sides of every product with a weight, as the graph states them.

    Raises:
        ValueError: a product with a weight has a side that is not quantized.
    """
    found = [
        (source_levels(node, 0), source_levels(node, 1))
        for node in graph.get_ordered_ops()
        if node.get_type_name() == "MatMul" and any(each == "Constant" for each in _sources(node, 1))
    ]
    return Levels(len(found), max(x for x, _ in found), max(w for _, w in found))


def source_levels(node: Any, side: int) -> int:
    """The levels of what reaches an input of `node`."""
    for source in _walk(node, side):
        if source.get_type_name() == "FakeQuantize":
            return int(source.get_attributes()["levels"])
        if source.get_type_name() == "Constant" and source.get_element_type() in (
            openvino.Type.i8,
            openvino.Type.u8,
        ):
            return 256
    raise ValueError(f"input {side} of {node.get_friendly_name()} is not quantized")


def _walk(node: Any, side: int) -> Iterator[Any]:
    source = node.input_value(side).get_node()
    yield source
    while source.get_type_name() in PASSED:
        source = source.input_value(0).get_node()
        yield source


def _sources(node: Any, side: int) -> list[str]:
    names = [source.get_type_name() for source in _walk(node, side)]
    last = list(_walk(node, side))[-1]
    if last.get_type_name() == "FakeQuantize":
        names.append(last.input_value(0).get_node().get_type_name())
    return names

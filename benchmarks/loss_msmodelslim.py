"""msModelSlim for the loss table, on the CPU: iter_smooth, flex_smooth_quant or QuaRot, then W8A8 of every block linear.

The adapter says what the tool's own adapter of qwen3 says of a Llama: which linears belong together.
"""

from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import torch
from loss_row import Network, Quantized
from msmodelslim.core.const import DeviceType
from msmodelslim.core.graph.adapter_types import AdapterConfig, MappingConfig
from msmodelslim.core.quantizer.base import QConfig
from msmodelslim.core.quantizer.linear import LinearQConfig
from msmodelslim.core.runner.generated_runner import GeneratedRunner
from msmodelslim.ir.w8a8_dynamic import W8A8DynamicPerChannelFakeQuantLinear
from msmodelslim.model.common.layer_wise_forward import (
    generated_decoder_layer_visit_func,
    transformers_generated_forward_func,
)
from msmodelslim.model.qwen3.model_adapter import qwen3_get_ln_fuse_map, qwen3_get_rotate_map
from msmodelslim.processor import (
    AutoProcessorConfig,
    FlexSmoothQuantProcessorConfig,
    IterSmoothProcessorConfig,
    LinearProcessorConfig,
)
from msmodelslim.processor.anti_outlier.flex_smooth.interface import FlexSmoothQuantInterface
from msmodelslim.processor.anti_outlier.iter_smooth.interface import IterSmoothInterface
from msmodelslim.processor.quarot import QuaRotInterface, QuaRotProcessorConfig
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

PACKAGES = ("transformers", "msmodelslim")
INT8_STEPS = 127


class LlamaAdapter(IterSmoothInterface, FlexSmoothQuantInterface, QuaRotInterface):
    """What the runner asks of a model."""

    def __init__(self, model: Any) -> None:
        self.config = model.config

    def handle_dataset(self, dataset: list[Tensor], _device: DeviceType) -> list[list[Tensor]]:
        """A list of arguments for each call of the model."""
        return [[ids] for ids in dataset]

    def enable_kv_cache(self, _model: nn.Module, need_kv_cache: bool) -> None:
        """No sample is continued."""
        self.config.use_cache = need_kv_cache

    def generate_model_visit(self, model: nn.Module) -> Generator[Any, Any, None]:
        yield from generated_decoder_layer_visit_func(model)

    def generate_model_forward(self, model: nn.Module, inputs: Any) -> Generator[Any, Any, None]:
        yield from transformers_generated_forward_func(model, inputs)

    def get_adapter_config_for_subgraph(self) -> list[AdapterConfig]:
        """Norms and what they feed, values and their readers, up_proj and down_proj."""
        return [
            config
            for index in range(self.config.num_hidden_layers)
            for config in _groups(f"model.layers.{index}")
        ]

    def get_ln_fuse_map(self) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
        return {}, qwen3_get_ln_fuse_map(self.config)

    def get_rotate_map(self, block_size: int) -> tuple[list[Any], list[Any]]:
        before, pairs, _, _ = qwen3_get_rotate_map(self.config, block_size)
        return [before], list(pairs.values())


def _groups(block: str) -> list[AdapterConfig]:
    attention, mlp = f"{block}.self_attn", f"{block}.mlp"
    groups = [
        ("norm-linear", f"{block}.input_layernorm", [f"{attention}.{name}_proj" for name in "kqv"], None),
        ("norm-linear", f"{block}.post_attention_layernorm", [f"{mlp}.gate_proj", f"{mlp}.up_proj"], None),
        ("ov", f"{attention}.v_proj", [f"{attention}.o_proj"], {"group_method": "max"}),
        ("up-down", f"{mlp}.up_proj", [f"{mlp}.down_proj"], None),
    ]
    return [
        AdapterConfig(
            subgraph_type=kind, mapping=MappingConfig(source=source, targets=targets), extra_config=extra
        )
        for kind, source, targets, extra in groups
    ]


def load(folder: Path) -> Any:
    """transformers' Llama, its head a tensor of its own: rotations change head and embedding apart."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model.config.tie_word_embeddings = False
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone(), requires_grad=False)
    return model


def network(model: Any) -> Network:
    """Its states behind the final norm, and its head."""

    def states(ids: Tensor) -> Tensor:
        found: Tensor = model.model(ids, use_cache=False).last_hidden_state
        return found

    return Network(states, model.lm_head)


def quantize(
    model: Any,
    samples: Sequence[Sequence[int]],
    method: str,
    rounding: str = "minmax",
    activations: str = "static",
    **settings: Any,
) -> Quantized:
    """The processors of the tool one after the other, block by block."""
    W8A8DynamicPerChannelFakeQuantLinear.forward = per_token_forward
    runner = GeneratedRunner(LlamaAdapter(model))
    runner.add_processor(METHODS[method](**settings))
    runner.add_processor(LinearProcessorConfig(qconfig=scheme(rounding, activations), exclude=["lm_head"]))
    runner.run(model, [torch.tensor([list(ids)]) for ids in samples], DeviceType.CPU)
    for module in model.modules():
        if hasattr(
            module, "variance_epsilon"
        ):  # the tool's own norms forget the model's, which what it exports keeps
            module.variance_epsilon = model.config.rms_norm_eps
    return Quantized(lambda: network(model.eval()))


METHODS: dict[str, type[AutoProcessorConfig]] = {
    "iter_smooth": IterSmoothProcessorConfig,
    "flex_smooth_quant": FlexSmoothQuantProcessorConfig,
    "quarot": QuaRotProcessorConfig,
}


def scheme(rounding: str, activations: str) -> LinearQConfig:
    """Weights int8 per channel; activations one asymmetric range a linear, or a symmetric scale a token."""
    dynamic = activations == "dynamic"
    scope = "per_token" if dynamic else "per_tensor"
    return LinearQConfig(
        act=QConfig(dtype="int8", scope=scope, symmetric=dynamic, method="minmax"),
        weight=QConfig(dtype="int8", scope="per_channel", symmetric=True, method=rounding),
    )


def per_token_forward(self: Any, x: Tensor) -> Tensor:
    """The dynamic linear with the scale a token that its kernel has: the tool's module takes it over all tokens."""
    scale = x.abs().amax(-1, keepdim=True).clamp(min=1e-12) / INT8_STEPS
    rounded = (x / scale).round().clamp(-INT8_STEPS - 1, INT8_STEPS) * scale
    weight = self.weight.to(x.dtype) * self.weight_scale.reshape(-1, 1)
    return nn.functional.linear(rounded, weight, self.bias)

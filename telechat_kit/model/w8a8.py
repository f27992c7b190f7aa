"""Tensors of a quantized TeleChat, whichever file format they came from: checked, then placed into the network.

The readers of the formats end in a `W8A8Weights`; here is what all of them must satisfy.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor, nn

from telechat_kit.errors import CheckpointError
from telechat_kit.messages import Message
from telechat_kit.model.config_files import read_object
from telechat_kit.model.configuration import TelechatConfig
from telechat_kit.model.folder import (
    DYNAMIC,
    DYNAMIC_WEIGHTS,
    FLOAT,
    QUANT_NAMES,
    STATIC,
    description_path,
    load_tensors,
    weight_files,
)
from telechat_kit.model.int8_linears import (
    RUNTIME_TENSORS,
    DynamicW8A8Linear,
    FloatLinear,
    W8A8Linear,
    decode_scale,
)
from telechat_kit.model.joined_linears import prepare_linear, prepare_linears
from telechat_kit.model.network import TelechatForCausalLM, TelechatRMSNorm

#: Every tensor that a quantized linear may have on disk
LINEAR_TENSORS = (*RUNTIME_TENSORS, "weight_scale", "weight_offset", "bias")


@dataclass(frozen=True)
class W8A8Weights:
    """Tensors of a quantized model by stored name, the names of its int8 linears, and the file that errors name.

    `dynamic` are those of `linears` whose activations are quantized token by token.
    """

    tensors: dict[str, Tensor]
    linears: frozenset[str]
    path: Path
    dynamic: frozenset[str] = frozenset()

    def refuse(self, problem: str) -> NoReturn:
        raise CheckpointError(
            "{path} does not fit config.json: {problem}. Quantize again.", path=self.path, problem=problem
        )

    def tensor(self, name: str) -> Tensor:
        if name not in self.tensors:
            self.refuse(Message("tensor {name} is missing", name=name))
        return self.tensors[name]

    def checked(self, name: str, shape: tuple[int, ...], dtypes: tuple[torch.dtype, ...] = ()) -> Tensor:
        """The tensor `name`, which must have `shape` and one of `dtypes` (any float if none are given)."""
        value = self.tensor(name)
        if tuple(value.shape) != shape:
            self.refuse(
                Message(
                    "{name} has shape {shape}, expected {expected}",
                    name=name,
                    shape=tuple(value.shape),
                    expected=shape,
                )
            )
        if value.dtype not in dtypes if dtypes else not value.is_floating_point():
            expected = " or ".join(map(str, dtypes)) or "float"
            self.refuse(
                Message(
                    "{name} holds {dtype}, expected {expected}",
                    name=name,
                    dtype=value.dtype,
                    expected=expected,
                )
            )
        if not is_finite(value):
            self.refuse(Message("{name} holds NaN or infinite values", name=name))
        return value


def is_finite(value: Tensor) -> bool:
    """Whether a tensor holds neither NaN nor infinity, without a copy of it."""
    return not value.is_floating_point() or bool(torch.isfinite(torch.stack(torch.aminmax(value))).all())


def stored_name(name: str, config: TelechatConfig) -> str:
    """Name in the file of the module or tensor `name`: a tied head (the 7B layout) goes without prefix."""
    return name.removeprefix("transformer.") if config.tie_word_embeddings else name


def linear_names(model: nn.Module) -> list[str]:
    """Names of the linears of a model or of one block, in the order of the network, without the head."""
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | W8A8Linear | DynamicW8A8Linear) and name != "lm_head"
    ]


def norm_names(model: TelechatForCausalLM) -> list[str]:
    """Stored names of the norms."""
    return [
        stored_name(name, model.config)
        for name, norm in model.named_modules()
        if isinstance(norm, TelechatRMSNorm)
    ]


def read_described(folder: Path, model: TelechatForCausalLM) -> W8A8Weights:
    """The weights of a folder with msModelSlim's description, of the older ("safetensors") or newer form ("ascendV1")."""
    first = weight_files(folder)[0]
    expected = QUANT_NAMES[DYNAMIC if first.name == DYNAMIC_WEIGHTS else STATIC].description
    path = description_path(folder) or folder / expected
    kinds = read_object(path)
    # what has no dot is about the whole model: version, model_quant_type ...
    kinds = {stored_name(name, model.config): kind for name, kind in kinds.items() if "." in name}
    tensors = {stored_name(name, model.config): value for name, value in load_tensors(folder).items()}
    _check_description(path, kinds, model)
    static, dynamic = (
        frozenset(name for name in _stored_linears(model) if kinds.get(f"{name}.weight") == kind)
        for kind in (STATIC, DYNAMIC)
    )
    weights = W8A8Weights(tensors, static | dynamic, first, dynamic)
    for name in kinds:
        weights.tensor(name)
    return _with_folded_norms(weights, model)


def _stored_linears(model: TelechatForCausalLM) -> list[str]:
    return [stored_name(name, model.config) for name in linear_names(model)]


def _check_description(path: Path, kinds: Mapping[str, object], model: TelechatForCausalLM) -> None:
    known = {stored_name(name, model.config) for name, _ in model.named_parameters()} | {"lm_head.weight"}
    known |= {f"{name}.{part}" for name in _stored_linears(model) for part in LINEAR_TENSORS}
    known |= {
        f"{name}{part}" for name in norm_names(model) for part in (".bias", ".module.weight", ".module.bias")
    }
    for name, kind in kinds.items():
        if name not in known:
            raise CheckpointError(
                "{path} names {name}, which this model does not have. Copy the folder again, with its "
                "config.json.",
                path=path,
                name=name,
            )
        if kind not in (STATIC, DYNAMIC, FLOAT):
            raise CheckpointError(
                '{path}: {name} is "{kind}", only {static}, {dynamic} and {float} can be read.',
                path=path,
                name=name,
                kind=kind,
                static=STATIC,
                dynamic=DYNAMIC,
                float=FLOAT,
            )


def _with_folded_norms(weights: W8A8Weights, model: TelechatForCausalLM) -> W8A8Weights:
    """`weights` with each block norm as its readers need it.

    msModelSlim of 2024-08 keeps the original norm for float linears, whose weights it leaves as they were, and
    puts the folded one under `.module` for int8 linears. Later versions write the folded norm in both places.
    """
    tensors = dict(weights.tensors)
    for block in range(model.config.n_layer):
        layout = model.config.layout
        prefix = stored_name(layout.block(block), model.config)
        for norm, group in zip(layout.norms, layout.shared_inputs, strict=True):
            name, readers = prefix + norm, {prefix + reader for reader in group}
            folded = tensors.get(f"{name}.module.weight")
            if folded is None or torch.equal(folded, weights.tensor(f"{name}.weight")):
                continue
            if readers & weights.linears and readers - weights.linears:
                weights.refuse(
                    Message(
                        "{name} and {name}.module differ, but of {readers} one is int8 and one float",
                        name=name,
                        readers=" and ".join(sorted(readers)),
                    )
                )
            if readers <= weights.linears:
                tensors[f"{name}.weight"] = folded
                tensors[f"{name}.bias"] = weights.tensor(f"{name}.module.bias")
    return replace(weights, tensors=tensors)


def place(model: TelechatForCausalLM, weights: W8A8Weights, dtype: torch.dtype) -> None:
    """Fill `model`, which lies on the meta device, with `weights`; float tensors become `dtype`."""
    _place_int8(model, weights)
    _check_shared_inputs(model, weights)
    _place_float(model, weights, dtype)


def _place_int8(model: TelechatForCausalLM, weights: W8A8Weights) -> None:
    for name in linear_names(model):
        linear = model.get_submodule(name)
        out, size = linear.weight.shape
        if (stored := stored_name(name, model.config)) not in weights.linears:
            model.set_submodule(name, FloatLinear(size, out, linear.bias is not None, device="meta"))
        elif stored in weights.dynamic:
            parts = _dynamic_parts(stored, weights, out, size, linear.bias is not None)
            model.set_submodule(name, DynamicW8A8Linear(parts))
        else:
            model.set_submodule(name, W8A8Linear(_static_parts(stored, weights, out, size)))


def _static_parts(linear: str, weights: W8A8Weights, out: int, size: int) -> dict[str, Tensor]:
    parts = {
        "weight": weights.checked(f"{linear}.weight", (out, size), (torch.int8,)),
        "input_scale": weights.checked(f"{linear}.input_scale", (1,)),
        "input_offset": weights.checked(f"{linear}.input_offset", (1,), _OFFSET_DTYPES),
        "quant_bias": weights.checked(f"{linear}.quant_bias", (out,), (torch.int32,)),
        "deq_scale": weights.checked(f"{linear}.deq_scale", (out,), (torch.int64, torch.float32)),
    }
    if not is_finite(decode_scale(parts["deq_scale"])):
        weights.refuse(Message("{linear}.deq_scale holds NaN or infinite values", linear=linear))
    _check_rest(linear, weights, out)
    return parts


def _dynamic_parts(linear: str, weights: W8A8Weights, out: int, size: int, biased: bool) -> dict[str, Tensor]:
    parts = {
        "weight": weights.checked(f"{linear}.weight", (out, size), (torch.int8,)),
        "weight_scale": weights.checked(f"{linear}.weight_scale", (out, 1)),
    }
    if biased:
        parts["bias"] = weights.checked(f"{linear}.bias", (out,))
    scale, offset = parts["weight_scale"], weights.tensors.get(f"{linear}.weight_offset")
    if not bool((scale > 0).all()):
        weights.refuse(Message("{linear}.weight_scale holds values that are not positive", linear=linear))
    if offset is not None and bool(offset.any()):
        weights.refuse(
            Message("{linear}.weight_offset is not zero: asymmetric weights cannot be read", linear=linear)
        )
    return parts


def _check_rest(linear: str, weights: W8A8Weights, out: int) -> None:
    """What the arithmetic does not need but another format may, and a scale that cannot divide."""
    for part, shape in (("weight_scale", (out, 1)), ("bias", (out,))):
        if f"{linear}.{part}" in weights.tensors:
            weights.checked(f"{linear}.{part}", shape)
    scale = weights.tensor(f"{linear}.input_scale").item()
    if not scale > 0:
        weights.refuse(Message("{linear}.input_scale is {scale}", linear=linear, scale=scale))


#: vllm-ascend declares the offset as int8, msModelSlim writes it as a float
_OFFSET_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.int8, torch.int32)


def _check_shared_inputs(model: TelechatForCausalLM, weights: W8A8Weights) -> None:
    """Loaders fuse linears that read one input and keep one scale: all must carry the same (MindIE refuses others too).

    Nor can a static and a dynamic one be fused.
    """
    for block in range(model.config.n_layer):
        prefix = stored_name(model.config.layout.block(block), model.config)
        groups = [[prefix + linear for linear in group] for group in model.config.layout.shared_inputs]
        for first, second in [pair for group in groups for pair in combinations(group, 2)]:
            if {first, second} <= weights.linears and len({first, second} & weights.dynamic) == 1:
                weights.refuse(
                    Message(
                        "of {first} and {second}, which read the same input, one is {dynamic}",
                        first=first,
                        second=second,
                        dynamic=DYNAMIC,
                    )
                )
            if {first, second} <= weights.linears - weights.dynamic:
                for part in ("input_scale", "input_offset"):
                    one, other = (weights.tensor(f"{linear}.{part}") for linear in (first, second))
                    if not torch.equal(one, other):
                        weights.refuse(
                            Message(
                                "{first}.{part} and {second}.{part} differ ({one}, {other}), but both read the same input",
                                first=first,
                                part=part,
                                second=second,
                                one=one.item(),
                                other=other.item(),
                            )
                        )


def _place_float(model: TelechatForCausalLM, weights: W8A8Weights, dtype: torch.dtype) -> None:
    """Fill what is still on the meta device, tie the head, and give norms the bias of shifted channels."""
    for name, norm in model.named_modules():
        bias = f"{stored_name(name, model.config)}.bias"
        if isinstance(norm, TelechatRMSNorm) and bias in weights.tensors:
            shift = weights.checked(bias, tuple(norm.weight.shape))
            norm.bias = nn.Parameter(shift.to(dtype)) if bool(shift.any()) else None
    values = {
        name: nn.Parameter(
            _as(dtype, stored_name(name, model.config), tuple(value.shape), weights), requires_grad=False
        )
        for name, value in model.named_parameters()
        if value.device.type == "meta"
    }
    model.load_state_dict(values, strict=False, assign=True)
    model.tie_weights()


def _as(dtype: torch.dtype, name: str, shape: tuple[int, ...], weights: W8A8Weights) -> Tensor:
    value = weights.checked(name, shape).to(dtype)
    if not is_finite(value):
        raise CheckpointError(
            "{path}: {name} holds values that {dtype} cannot. Load it in a wider dtype.",
            path=weights.path,
            name=name,
            dtype=dtype,
        )
    return value


def prepare(model: TelechatForCausalLM) -> None:
    """Bring the weights of `model` into the form that the devices on which they lie multiply with.

    The head keeps its own: it may be tied to the embedding, whose rows are looked up.
    """
    for block in model.transformer.h:
        for group in model.config.layout.shared_inputs:
            parents = {name.rpartition(".")[0] for name in group}
            prepare_linears(block.get_submodule(parents.pop()), [name.rpartition(".")[2] for name in group])
        for name in model.config.layout.exits:
            prepare_linear(block.get_submodule(name))

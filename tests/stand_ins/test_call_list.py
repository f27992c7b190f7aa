"""The list of operator calls is what the kit makes, and real shape functions are known to accept such calls."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import call_list
import npu_operators  # noqa: F401  defines the operators whose schemas name the arguments
import pytest
import torch
from npu_registry import Call

DATA = Path(__file__).parents[1] / "data" / "npu"
CALLS = json.loads((DATA / "calls.json").read_text(encoding="utf-8"))
META = json.loads((DATA / "meta_calls.json").read_text(encoding="utf-8"))
#: Accepted by the real shape functions too (make npu-shapes), but not among the recorded ones
NOT_RECORDED = {
    ("npu_rms_norm", "float32 float32"),  # calibration runs in float32
    ("npu_add_rms_norm", "float32 float32 float32"),
    ("npu_quantize", "bfloat16 float32 int32"),  # a bfloat16 model on a 910B
    ("npu_rms_norm", "bfloat16 bfloat16"),
    ("npu_prompt_flash_attention", "bfloat16 bfloat16 bfloat16 bool"),
    ("npu_incre_flash_attention", "bfloat16 bfloat16 bfloat16"),
}


def kind(call: dict[str, Any]) -> str:
    return Call(call["operator"], call["arguments"], call["result"]).kind


@pytest.mark.parametrize("chip", call_list.CHIPS)
def test_the_list_is_what_a_small_model_calls(chip: str) -> None:
    listed = {kind(call) for call in CALLS if call["chip"] == chip}
    assert {kind(call) for call in call_list.calls_on(chip)} == listed


def dtypes(name: str, args: tuple[Any, ...], options: dict[str, Any]) -> dict[str, str]:
    """Arguments by name: the dtype of tensors, "value" for others."""
    schema = getattr(torch.ops.npu, name).default._schema.arguments
    given = {item.name: value for item, value in zip(schema, args, strict=False)} | options
    return {
        key: str(value.dtype).removeprefix("torch.") if isinstance(value, torch.Tensor) else "value"
        for key, value in given.items()
        if value is not None
    }


def accepted(name: str) -> list[dict[str, str]]:
    """Arguments of the calls of `name` that the real shape functions took."""
    found: list[dict[str, str]] = []

    def note(*args: Any, **options: Any) -> None:
        found.append(dtypes(name, args, options))

    parameter = SimpleNamespace(npu_trans_quant_param=lambda scale: scale.to(torch.int64))
    for entry in META[name]["accepted"]:
        module = SimpleNamespace(**{**vars(parameter), name: note})
        eval(entry["call"], {"torch": torch, "torch_npu": module})
    return found


def listed_dtypes(call: dict[str, Any]) -> dict[str, str]:
    return {
        name: value["dtype"] if isinstance(value, dict) else "value"
        for name, value in call["arguments"].items()
    }


def test_every_call_has_the_names_and_dtypes_of_one_that_real_shape_functions_accepted() -> None:
    unknown = set()
    for call in CALLS:
        name, ours = call["operator"], listed_dtypes(call)
        if META.get(name, {}).get("has_meta_kernel"):
            others = accepted(name)
            tensors = {key: value for key, value in ours.items() if value != "value"}
            known = any(tensors.items() <= other.items() for other in others)
            known &= ours.keys() <= set().union(*others)
            unknown |= set() if known else {(name, " ".join(tensors.values()))}
    assert unknown == NOT_RECORDED


def test_a_310p_gets_blocked_weights_only_and_int64_scales_but_for_tokens() -> None:
    products = [c for c in CALLS if c["chip"] == "Ascend310P3" and c["operator"] == "npu_quant_matmul"]
    found = set()
    for product in products:
        arguments = product["arguments"]
        weight, scale, bias = (arguments.get(name) or {} for name in ("x2", "scale", "bias"))
        assert (weight["format"], weight["transposed"]) == ("FRACTAL_NZ", True)
        found.add(("pertoken_scale" in arguments, scale["dtype"], bias.get("dtype")))
    assert found == {(False, "int64", "int32"), (True, "float32", None)}

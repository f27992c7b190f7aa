"""The chip and the CANN that a process pretends to have, and how a stand-in refuses what they refuse.

Each refusal names its source: a file of CANN's published host sources (`hicann/ops-nn`, `hicann/ops-transformer`),
of op-plugin, a page of the operator documentation, or a report from a card.
"""

import os
from typing import ClassVar

import torch
from torch import Tensor

#: Soc numbers of torch_npu for the chips that can be stood in for
SOCS = {"Ascend310P3": 202, "Ascend910B4": 224, "Ascend910_9391": 250}
#: Error code of CANN for parameters that an operator refuses
PARAMETERS_REFUSED = 561103
DOCUMENTATION = "operator documentation of torch_npu"


class Chip:
    """The chip that this process pretends to have, its CANN, and what its matrix unit added up last.

    With `TORCH_NPU_STAND_IN_COLLECT` set, rules that are broken are noted in `broken` only, and the calls go on.
    """

    name = "Ascend310P3"
    collecting = bool(os.environ.get("TORCH_NPU_STAND_IN_COLLECT"))
    broken: ClassVar[set[str]] = set()
    cann = os.environ.get("TORCH_NPU_STAND_IN_CANN", "9.1.0")
    accumulator: Tensor | None = None

    @classmethod
    def is_310p(cls) -> bool:
        return cls.name.startswith("Ascend310P")

    @classmethod
    def cann_is_at_least(cls, *version: int) -> bool:
        return tuple(int(part) for part in cls.cann.split(".")[:2]) >= version


def demand(condition: bool, operator: str, rule: str, source: str = DOCUMENTATION) -> None:
    """Refuse a call that breaks a rule, as torch_npu reports CANN's refusals."""
    if not condition:
        Chip.broken.add(f"{operator}: {rule} [{source}]")
        if not Chip.collecting:
            raise RuntimeError(
                f"{operator}: {rule} [{source}], error code is {PARAMETERS_REFUSED} (stand-in for {Chip.name})"
            )


def floats() -> tuple[torch.dtype, ...]:
    """Float dtypes of the chip."""
    return (torch.float16, torch.float32) + (() if Chip.is_310p() else (torch.bfloat16,))


def halves() -> tuple[torch.dtype, ...]:
    """16-bit dtypes of the chip."""
    return (torch.float16,) if Chip.is_310p() else (torch.float16, torch.bfloat16)


def to_half(values: Tensor, dtype: torch.dtype) -> Tensor:
    """float32 `values` rounded to `dtype`; a 310P has no infinity and stops at the largest finite number."""
    if Chip.is_310p() and dtype == torch.float16:
        values = values.clamp(-65504, 65504)
    return values.to(dtype)

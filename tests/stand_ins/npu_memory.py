"""A stand-in for `torch_npu.npu`: one device, its chip and its memory; what the kit asks of it and no more."""

import types
from typing import Any

import torch
from npu_operators import SOCS, Chip
from npu_sabotage import read


class Memory(types.ModuleType):
    """The module `torch.npu` of the stand-in: device 0 with the memory of an Atlas 300I Pro."""

    total_bytes = 21527 << 20
    held_bytes = 0
    devices = 1

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.config = types.SimpleNamespace(allow_internal_format=False)
        self.jit_compile = True

    def is_available(self) -> bool:
        return self.devices > 0

    def is_initialized(self) -> bool:
        return True

    def device_count(self) -> int:
        return self.devices

    def current_device(self) -> int:
        return 0

    def set_device(self, index: int) -> None:
        if not 0 <= index < self.devices:
            raise RuntimeError(f"Invalid device ID {index}")

    def set_compile_mode(self, *, jit_compile: bool) -> None:
        self.jit_compile = jit_compile

    def get_soc_version(self) -> int:
        return SOCS.get(Chip.name, 999)

    def get_device_name(self, index: Any = None) -> str:
        return Chip.name

    def synchronize(self, device: Any = None) -> None:
        """Operators are done when they return; those that failed on the way are told now."""
        read()

    def mem_get_info(self, device: Any = None) -> tuple[int, int]:
        return self.total_bytes - self.held_bytes, self.total_bytes

    def memory_reserved(self) -> int:
        return 0

    def memory_allocated(self) -> int:
        return 0

    def max_memory_allocated(self) -> int:
        return self.held_bytes

    def get_rng_state(self, device: Any = None) -> torch.Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: torch.Tensor, device: Any = None) -> None:
        """Random numbers are drawn on the CPU."""

    def manual_seed_all(self, seed: int) -> None:
        """Random numbers are drawn on the CPU."""

    def _is_in_bad_fork(self) -> bool:
        return False

"""What devices can do by their makers: limits beside what is measured on devices that are not probed."""

from dataclasses import dataclass

NVIDIA, UNCONFIRMED = "data sheet", "published figure, not confirmed"


@dataclass(frozen=True)
class DataSheet:
    """Memory, bandwidth and peaks of one device; `device` is the name that torch gives, without its maker's.

    Operations per second count a multiplication and an addition as two, without sparsity; None where figures are not
    known. `half_operations` are those of 16-bit floats.
    """

    name: str
    device: str
    memory_bytes: int
    bandwidth: float
    int8_operations: float | None
    half_operations: float | None
    basis: str


#: Memory of Ascend chips as npu-smi reports it; figures for the 910B contradict each other
SHEETS = (
    DataSheet(
        "Atlas 300I Pro",
        "310P3",
        21527 << 20,
        204.8e9,
        140e12,
        70e12,
        "data sheet (LPDDR4X, 384 bit x 4266 MT/s)",
    ),
    DataSheet("910B4", "910B4", 32768 << 20, 0.8e12, 560e12, 280e12, UNCONFIRMED),
    DataSheet("910B3", "910B3", 65536 << 20, 1.6e12, None, 313e12, UNCONFIRMED),
    DataSheet("910B2", "910B2", 65536 << 20, 1.6e12, None, 376e12, UNCONFIRMED),
    DataSheet("T4", "Tesla T4", 16 << 30, 320e9, 130e12, 65e12, NVIDIA),
    DataSheet("A10", "A10", 24 << 30, 600.2e9, 250e12, 125e12, NVIDIA),
    DataSheet("L4", "L4", 24 << 30, 300e9, 242e12, 121e12, NVIDIA),
    DataSheet("L40S", "L40S", 48 << 30, 864e9, 733e12, 362e12, NVIDIA),
    DataSheet("A100 40 GB", "A100-SXM4-40GB", 40 << 30, 1555e9, 624e12, 312e12, NVIDIA),
    DataSheet("A100 80 GB", "A100-SXM4-80GB", 80 << 30, 2039e9, 624e12, 312e12, NVIDIA),
    DataSheet("H100", "H100 80GB HBM3", 80 << 30, 3.35e12, 1979e12, 989e12, NVIDIA),
    DataSheet("H200", "H200", 141 * 10**9, 4.8e12, 1979e12, 989e12, NVIDIA),
)


def data_sheet(name: str) -> DataSheet | None:
    """The sheet of the device that torch calls `name`, such as "Ascend310P3" or "NVIDIA A10"; None if there is none."""
    device = name.removeprefix("Ascend").removeprefix("NVIDIA ")
    return next((sheet for sheet in SHEETS if sheet.device == device), None)

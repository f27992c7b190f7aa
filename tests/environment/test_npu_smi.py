"""npu-smi's tables, in the layouts of a 310P, a two-chip card, a 910B and an A3."""

from recorded import MACHINES

from telechat_kit.environment.npu_smi import DeviceProcess, parse

DUO = """
| npu-smi 24.1.rc2                                Version: 24.1.rc2                                      |
| NPU     Name                  | Health          | Power(W)     Temp(C)           Hugepages-Usage(page) |
| Chip    Device                | Bus-Id          | AICore(%)    Memory-Usage(MB)                        |
+===============================+=================+======================================================+
| 32      310P3                 | OK              | NA           51                0     / 0             |
| 0       0                     | 0000:05:00.0    | 0            1844 / 44280                            |
+-------------------------------+-----------------+------------------------------------------------------+
| 32      310P3                 | Warning         | NA           50                0     / 0             |
| 1       1                     | 0000:05:00.0    | 0            9000 / 43693                            |
+===============================+=================+======================================================+
| NPU     Chip                  | Process id      | Process name             | Process memory(MB)        |
+===============================+=================+======================================================+
| 32      1                     | 4242            |                          | 7156                      |
+===============================+=================+======================================================+
"""
A3 = """
| NPU   Name                | Health        | Power(W)    Temp(C)           Hugepages-Usage(page)|
| Chip  Phy-ID              | Bus-Id        | AICore(%)   Memory-Usage(MB)  HBM-Usage(MB)        |
+===========================+===============+====================================================+
| 0     Ascend910           | OK            | 178.5       36                0    / 0             |
| 0     0                   | 0000:9D:00.0  | 0           0    / 0          3416 / 65536         |
+------------------------------------------------------------------------------------------------+
| 0     Ascend910           | OK            | -           36                0    / 0             |
| 1     1                   | 0000:9F:00.0  | 0           0    / 0          3195 / 65536         |
"""


def test_the_two_chips_of_a_card_are_two_devices_with_their_own_processes() -> None:
    smi = parse(DUO)
    assert smi.version == "24.1.rc2"
    assert [(c.card, c.place, c.name, c.health, c.used, c.total) for c in smi.chips] == [
        (32, 0, "310P3", "OK", 1844, 44280),
        (32, 1, "310P3", "Warning", 9000, 43693),
    ]
    assert smi.chips[0].processes == ()
    assert smi.chips[1].processes == (DeviceProcess(4242, "no name", 7156),)


def test_device_memory_is_the_hbm_where_there_is_some() -> None:
    assert [(c.name, c.used, c.total) for c in parse(A3).chips] == [
        ("Ascend910", 3416, 65536),
        ("Ascend910", 3195, 65536),
    ]
    (chip,) = parse((MACHINES / "broken-unknown-chip" / "npu-smi-info.txt").read_text()).chips
    assert (chip.name, chip.free) == ("910B", 32768 - 1365)


def test_a_chip_without_a_bus_number_is_a_chip() -> None:
    (chip,) = parse((MACHINES / "broken-310b" / "npu-smi-info.txt").read_text()).chips
    assert (chip.name, chip.used, chip.total) == ("310B4", 2512, 15609)


def test_a_chip_whose_health_is_not_known_is_one_chip() -> None:
    text = (MACHINES / "healthy-310p-older-driver" / "npu-smi-info.txt").read_text()
    assert len(parse(text.replace("| OK ", "| NA ")).chips) == 2


def test_text_that_is_no_table_holds_no_chip() -> None:
    for text in ("", "dcmi module initialize failed. ret is -8005", "| a | b |\n| c | 0000:82:00.0 |"):
        assert parse(text).chips == ()


def test_rows_whose_numbers_are_none_are_left_out() -> None:
    for number in ("²", "9" * 5000, "٣", "x"):
        (first, second) = parse(DUO.replace("7156", number)).chips
        assert (first.processes, second.processes) == ((), ())
        assert len(parse(DUO.replace("1844 /", f"{number} /")).chips) == 1
        assert len(parse(DUO.replace("| 32      1  ", f"| {number}  ")).chips) == 2

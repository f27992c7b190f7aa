"""What models need of a device's memory: counted from shapes, refused before loading, explained when it runs out."""

from pathlib import Path

import pytest
import torch

from telechat_kit.backends import cpu
from telechat_kit.errors import DeviceError
from telechat_kit.inference import memory
from telechat_kit.inference.loading import load_model
from telechat_kit.inference.memory import TELECHAT, explained, fits, needs, require_room
from telechat_kit.model.configuration import TelechatConfig
from telechat_kit.performance.measurement import model_size
from telechat_kit.reports import setup_views


@pytest.mark.parametrize("quantized", [False, True])
def test_needs_are_those_of_a_loaded_model(
    quantized: bool, tiny_folder: Path, tiny_w8a8_folder: Path
) -> None:
    model = load_model(tiny_w8a8_folder if quantized else tiny_folder, "cpu")
    loaded, counted = model_size("any", model), needs(model.config, quantized, 4)
    # on the CPU no linear keeps the NPU's int64 scale, and each has an input scale and offset of 4 bytes
    outputs = sum(linear.out_features for linear in model.modules() if hasattr(linear, "input_scale"))
    linears = sum(hasattr(linear, "input_scale") for linear in model.modules())
    assert loaded.weight_bytes == counted.weight_bytes - 8 * outputs + 8 * linears
    assert loaded.cache_bytes_per_token == counted.cache_bytes_per_token


def test_a_float16_telechat_12b_is_the_only_one_that_a_310p_cannot_hold_and_two_can() -> None:
    longest = {(row.devices, row.model, row.precision): row.largest_context for row in fits()}
    assert [case for case, tokens in longest.items() if tokens == 0] == [(1, "TeleChat-12B", "float16")]
    assert set(longest.values()) == {0, 8192}


def test_two_devices_split_linears_and_cache_and_both_hold_the_rest() -> None:
    for config in TELECHAT.values():
        one, two = needs(config, True), needs(config, True, devices=2)
        assert two.cache_bytes_per_token * 2 == one.cache_bytes_per_token
        tables = (1 if config.tie_word_embeddings else 2) * config.vocab_size * config.hidden_size * 2
        assert 2 * two.weight_bytes - one.weight_bytes > tables
        assert 2 * two.weight_bytes - one.weight_bytes < 1.01 * tables


def test_the_limit_is_bandwidth_over_what_a_token_reads() -> None:
    model = needs(TELECHAT["TeleChat-7B"], w8a8=True)
    assert model.tokens_per_second(model.read_bytes_per_token) == 1
    assert model.tokens_per_second(1e12, context=100) < model.tokens_per_second(1e12)
    seven = next(row for row in fits() if (row.model, row.precision) == ("TeleChat-7B", "W8A8"))
    assert 25 < seven.limit_tokens_per_second < 27  # the guide publishes 15


def test_the_table_says_what_does_not_fit() -> None:
    shown = setup_views.fits(fits()).to_html()
    assert shown.count("does not fit") == 1
    assert "TeleChat-12B" in shown


def test_the_page_on_the_npu_holds_the_same_table() -> None:
    page = (Path(__file__).parents[2] / "docs" / "npu.md").read_text(encoding="utf-8")
    for row in setup_views.fits(fits()).data.itertuples(index=False):  # type: ignore[attr-defined]
        assert f"| {' | '.join(row)} |" in page


class SmallDevice:
    """A backend with 1 GB free."""

    def free_memory_bytes(self) -> int:
        return 10**9

    def peak_memory_bytes(self) -> int:
        return 2 * 10**9

    def device_name(self) -> str:
        return "Ascend310P3"


def test_a_model_too_large_is_refused_before_it_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "backend_for", lambda _: SmallDevice())
    told = (
        r"float16 weights take 14.40 GB and the cache of 1024 tokens 0.50 GB, 1.00 GB are free on Ascend310P3"
    )
    with pytest.raises(DeviceError, match=told):
        require_room(TELECHAT["TeleChat-7B"], False, torch.float16, torch.device("cuda"))
    tiny = TelechatConfig(vocab_size=300, hidden_size=64, n_layer=2, n_head=4, ffn_hidden_size=128)
    require_room(tiny, False, torch.float16, torch.device("cuda"))


def test_a_device_out_of_memory_names_the_case_and_how_much() -> None:
    told = (
        r"input 2000, output 100 tokens: Ascend310P3 is out of memory \(NPU out of memory. Tried .*20.00 MiB"
    )
    with pytest.raises(DeviceError, match=told), explained("input 2000, output 100 tokens", SmallDevice()):  # type: ignore[arg-type]
        raise RuntimeError(
            "NPU out of memory. Tried to allocate 20.00 MiB (NPU 0; 21.02 GiB total)\nTraceback"
        )


def test_other_errors_pass() -> None:
    with pytest.raises(RuntimeError, match="shape"), explained("a case", cpu):
        raise RuntimeError("shape mismatch")

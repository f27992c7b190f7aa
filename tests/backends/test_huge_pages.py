"""Weights and caches in huge pages: what moves, what stays as it was, and where there are none."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from telechat_kit import load_model
from telechat_kit.backends.cpu_kernels import huge_pages

SIZE = 1 << 21


@pytest.fixture
def pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if there were huge pages; where there are none, the memory is a common one."""
    monkeypatch.setattr(huge_pages, "page_size", lambda: SIZE)


@pytest.fixture
def enabled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """The file, not there yet, in which the system says whether there are huge pages."""
    monkeypatch.setattr(huge_pages, "ENABLED", tmp_path / "enabled")
    huge_pages.page_size.cache_clear()
    yield tmp_path / "enabled"
    huge_pages.page_size.cache_clear()


def network() -> nn.Module:
    """Two linears of more than a huge page, the second tied to the first, and a small one."""
    model = nn.Sequential(nn.Linear(1024, 600), nn.Linear(1024, 600, bias=False), nn.Linear(3, 5))
    model[1].weight = model[0].weight
    return model


@pytest.mark.usefixtures("pages")
def test_tensors_lie_one_behind_the_other_and_are_what_they_were() -> None:
    model = network()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    parameters = list(model.parameters())
    huge_pages.gather(parameters)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model[1].weight is model[0].weight
    assert list(model.parameters()) == parameters
    addresses = [parameter.data_ptr() for parameter in parameters]
    assert addresses[0] % SIZE == 0
    assert addresses == sorted(addresses)
    assert addresses[-1] + parameters[-1].nbytes - addresses[0] <= sum(
        -(-p.nbytes // 64) * 64 for p in parameters
    )


@pytest.mark.usefixtures("pages")
def test_what_shares_its_data_still_does_and_strided_tensors_stay() -> None:
    whole = torch.randn(1024, 1024)
    same, columns = whole.view(1024, 1024), torch.randn(1024, 1024)[:, ::2]
    stays = columns.data_ptr()
    huge_pages.gather([whole, same, columns])
    same[0, 0] = 7
    assert whole[0, 0] == 7
    assert columns.data_ptr() == stays


def test_nothing_moves_where_there_are_none(enabled: Path) -> None:
    enabled.write_text("always madvise [never]\n")
    tensor = torch.randn(1024, 1024)
    address = tensor.data_ptr()
    huge_pages.gather([tensor])
    assert tensor.data_ptr() == address
    assert huge_pages.empty((1024, 1024), torch.float32).shape == (1024, 1024)


@pytest.mark.usefixtures("enabled")
def test_a_kernel_without_them_is_no_error() -> None:
    assert huge_pages.page_size() is None


@pytest.mark.usefixtures("pages")
def test_empty_begins_at_a_page_and_small_ones_are_plain() -> None:
    large, small = huge_pages.empty((3, 1 << 20), torch.float16), huge_pages.empty((3,), torch.float32)
    assert (large.shape, large.dtype, large.data_ptr() % SIZE) == ((3, 1 << 20), torch.float16, 0)
    assert large.is_contiguous()
    assert small.shape == (3,)


@pytest.mark.skipif(huge_pages.page_size() is None, reason="no huge pages here")
def test_a_gathered_memory_is_huge() -> None:
    before = _huge_bytes()
    tensor = torch.ones(1 << 25)
    huge_pages.gather([tensor])
    assert _huge_bytes() - before >= tensor.nbytes / 2


def test_a_model_gives_the_same_logits_in_them_and_loads_in_inference_mode_too(
    tiny_w8a8_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for size in (None, 1 << 12):
        monkeypatch.setattr(huge_pages, "page_size", lambda size=size: size)
        model = load_model(tiny_w8a8_folder, "cpu")
        with torch.inference_mode():
            for each in (model, load_model(tiny_w8a8_folder, "cpu")):
                found.append(each(torch.tensor([[5, 9, 3, 2]])).logits)
    assert all(torch.equal(logits, found[0]) for logits in found)


def _huge_bytes() -> int:
    lines = Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines()
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("AnonHugePages"))

"""A part of a model: which slices it holds, that parts make up the whole, and what it needs of a device."""

from pathlib import Path

import pytest
import torch

from telechat_kit.errors import DeviceError
from telechat_kit.inference.loading import load_part
from telechat_kit.inference.memory import TELECHAT, needs
from telechat_kit.model.sharding import Shard, split_axis


@pytest.mark.parametrize("kind", ["tiny_folder", "tiny_w8a8_folder"])
def test_the_parts_of_every_tensor_make_up_the_whole(kind: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(kind)
    whole = load_part(folder, None, None, "cpu")
    parts = [load_part(folder, None, None, "cpu", Shard(rank, 2)) for rank in range(2)]
    for name, tensor in whole.state_dict().items():
        shares, axis = [part.state_dict()[name] for part in parts], split_axis(name)
        assert torch.equal(tensor, shares[0] if axis is None else torch.cat(shares, axis)), name
    assert split_axis("transformer.h.0.self_attention.key_value.deq_scale") == 0
    assert split_axis("h.3.mlp.down_proj.weight") == 1
    assert split_axis("h.3.mlp.down_proj.quant_bias") is split_axis("lm_head.weight") is None


def test_a_part_counts_for_what_memory_says_it_needs(tiny_folder: Path) -> None:
    part = load_part(tiny_folder, None, None, "cpu", Shard(1, 2))
    held = sum(p.nbytes for p in part.parameters())
    assert held == needs(part.config, False, 4, devices=2).weight_bytes


def test_a_part_keeps_no_more_of_the_files_than_its_slices(tiny_w8a8_folder: Path) -> None:
    part = load_part(tiny_w8a8_folder, None, None, "cpu", Shard(1, 2))
    for name in ("query", "dense"):
        weight = part.transformer.h[0].get_submodule(f"self_attention.{name}").weight
        assert weight.untyped_storage().nbytes() == weight.nbytes == 64 * 64 // 2


def test_heads_that_cannot_be_split_evenly_are_refused() -> None:
    with pytest.raises(DeviceError, match="32 heads cannot be split evenly over 3 devices"):
        Shard(0, 3).require_even(TELECHAT["TeleChat-12B"])

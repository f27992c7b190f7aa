"""Write a TeleChat checkpoint of random weights and any shape: float16 `.bin` shards and an index, as published.

Memory holds one shard at a time. The shape of TeleChat-7B, 14.4 GB on the disk:

    python benchmarks/make_shaped_checkpoint.py models/shaped-7b --blocks 30 --hidden 4096 --ffn 12288 --vocab 160256
"""

from collections.abc import Iterator
from pathlib import Path

import click
import torch
from torch import Tensor

from telechat_kit.files import atomic_folder, require_space, write_json
from telechat_kit.model import TelechatConfig
from telechat_kit.model.folder import ORIGIN
from telechat_kit.model.network import TelechatForCausalLM
from telechat_kit.model.tiny import byte_tokenizer


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--blocks", default=30, show_default=True)
@click.option("--hidden", default=4096, show_default=True)
@click.option("--ffn", default=12288, show_default=True)
@click.option("--heads", default=32, show_default=True)
@click.option("--vocab", default=160256, show_default=True)
@click.option("--blocks-per-shard", default=3, show_default=True)
@click.option("--seed", default=0, show_default=True)
def main(
    folder: Path, blocks: int, hidden: int, ffn: int, heads: int, vocab: int, blocks_per_shard: int, seed: int
) -> None:
    """Write a random checkpoint of the given shape to FOLDER."""
    config = TelechatConfig(
        architectures=["TelechatForCausalLM"],
        vocab_size=vocab,
        hidden_size=hidden,
        n_layer=blocks,
        n_head=heads,
        ffn_hidden_size=ffn,
        dtype="float16",
    )
    make_shaped_checkpoint(folder, config, blocks_per_shard, seed)
    print(folder)


def make_shaped_checkpoint(folder: Path, config: TelechatConfig, blocks_per_shard: int, seed: int) -> None:
    """Write the checkpoint; equal arguments give equal weights."""
    shapes = _shapes(config)
    needed = sum(2 * shape.numel() for shape in shapes.values())
    require_space(folder, needed, "the random checkpoint")
    generator, weight_map = torch.Generator().manual_seed(seed), {}
    with atomic_folder(folder) as temporary:
        shards = list(_shards(list(shapes), config.n_layer, blocks_per_shard))
        for number, names in enumerate(shards, start=1):
            file = f"pytorch_model_{number:05d}-of-{len(shards):05d}.bin"
            values = {name: _values(name, shapes[name], config, generator) for name in names}
            torch.save(values, temporary / file)
            del values
            weight_map |= dict.fromkeys(names, file)
        index = {"metadata": {"total_size": needed}, "weight_map": weight_map}
        write_json(temporary / "pytorch_model.bin.index.json", index)
        config.save_pretrained(temporary)
        byte_tokenizer().save_pretrained(temporary)
        write_json(temporary / ORIGIN, {"name": "random TeleChat", "license": "none (random numbers)"})


def _shapes(config: TelechatConfig) -> dict[str, torch.Size]:
    """Shape of each tensor by its name in the published 7B checkpoints."""
    with torch.device("meta"):
        model = TelechatForCausalLM(config)
    return {
        name.removeprefix("transformer."): value.shape
        for name, value in model.named_parameters()
        if name != "lm_head.weight"
    }


def _shards(names: list[str], blocks: int, blocks_per_shard: int) -> Iterator[list[str]]:
    """Names of the tensors of each shard: what stands outside the blocks, then some blocks at a time."""
    yield [name for name in names if not name.startswith("h.")]
    for start in range(0, blocks, blocks_per_shard):
        numbers = {str(number) for number in range(start, start + blocks_per_shard)}
        yield [name for name in names if name.startswith("h.") and name.split(".")[1] in numbers]


def _values(name: str, shape: torch.Size, config: TelechatConfig, generator: torch.Generator) -> Tensor:
    """Random weights; norms near 1 with a few strong channels, as trained networks have them."""
    if "norm" not in name and "ln_f" not in name:
        return torch.empty(shape, dtype=torch.float16).normal_(
            0, config.initializer_range, generator=generator
        )
    values = torch.empty(shape).normal_(1, 0.1, generator=generator)
    values[torch.randint(shape[0], (4,), generator=generator)] *= 10
    return values.half()


if __name__ == "__main__":
    main()

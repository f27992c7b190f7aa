"""What keys and values in half precision lose: KL(float || model with such a cache), by kind of text.

The reference is the float model with its keys and values in float32; judged are it and its W8A8 form with each type of
cache. In nats per token with 95 % intervals over sequences, beside the bytes of a position. The kinds are the kit's
evaluation texts and `pydoc_data.topics`. A third model is W8A8 with its float tensors in bfloat16. What it gains: `benchmarks/precisions.py --caches`.

    python benchmarks/cache_loss.py models/smollm2-135m-telechat models/smollm2-135m-telechat-w8a8
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import click
import numpy as np
import torch

from telechat_kit.inference.engine import CACHE_DTYPES, engine_for, set_cache_dtype
from telechat_kit.inference.loading import load_model
from telechat_kit.inference.model_pair import Pair
from telechat_kit.model.network import TelechatForCausalLM
from telechat_kit.precision import evaluation_blocks
from telechat_kit.precision.divergence import summarize
from telechat_kit.precision.positions import compare_with, reference_of
from telechat_kit.texts import PYDOC_TOPICS, kit_texts
from telechat_kit.token_samples import Block, joined_ids, token_blocks

KIND_TOKENS = 256
#: Linears that W8A8 keeps in float, the embedding and the head, all rounded to bfloat16
HALF = "w8a8, float parts in bfloat16"


@click.command()
@click.argument("model_path", type=click.Path(exists=True, path_type=Path))
@click.argument("quant_path", type=click.Path(exists=True, path_type=Path))
@click.option("--half", type=click.Choice(["development", "sealed"]), default="development")
@click.option("--tokens", default=512, show_default=True, help="Of a sequence of pydoc_data.topics.")
@click.option("--sequences", default=16, show_default=True, help="Of pydoc_data.topics.")
@click.option("--kind-sequences", default=16, show_default=True, help="Of each of the kit's texts, at most.")
def main(
    model_path: Path, quant_path: Path, half: str, tokens: int, sequences: int, kind_sequences: int
) -> None:
    """Judge MODEL_PATH and QUANT_PATH with each type of cache against MODEL_PATH with float32."""
    print("| text | model | keys and values | bytes a position | KL, nats per token | other top-1 |")
    print("|---|---|---|---|---|---|")
    pair = Pair(model_path.resolve(), quant_path.resolve(), "cpu")
    kinds = {"pydoc": evaluation_blocks(pair, PYDOC_TOPICS, tokens, sequences, 0)}
    models = {**pair.models, HALF: load_model(pair.w8a8_folder, "cpu", torch.bfloat16)}
    for kind, blocks in {**kinds, **of_kinds(pair, half, kind_sequences)}.items():
        report(pair, models, kind, blocks)


def of_kinds(pair: Pair, half: str, most: int) -> dict[str, list[Block]]:
    """Blocks of each of the kit's evaluation texts."""
    found = {}
    for kind, text in kit_texts(f"evaluation/{half}").items():
        count = min(most, len(joined_ids(pair.tokenizer, text)) // KIND_TOKENS)
        found[kind] = token_blocks(pair.tokenizer, text, KIND_TOKENS, count, 0)
    return found


def report(pair: Pair, models: Mapping[str, TelechatForCausalLM], kind: str, blocks: Sequence[Block]) -> None:
    """A row for each model and type of cache; that of the reference itself must be 0."""
    with reference_of(pair, blocks) as reference:
        for name, model in models.items():
            for cache_dtype in CACHE_DTYPES:
                set_cache_dtype(model, cache_dtype)
                engine = engine_for(model)
                assert engine is not None
                found = compare_with(reference, model)
                kl, same = (
                    summarize(found).kl_mean,
                    np.mean([figures.row("top1").mean() for figures in found]),
                )
                print(
                    f"| {kind} | {name} | {cache_dtype} | {engine.cache_bytes_per_position} | "
                    f"{kl:.7f} | {1 - same:.2%} |",
                    flush=True,
                )
            set_cache_dtype(model, CACHE_DTYPES[0])


if __name__ == "__main__":
    main()

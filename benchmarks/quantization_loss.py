"""What each method loses on a checkpoint, as rows of a Markdown table: KL, perplexity and top-1 agreement.

Every row is what `02_quantize` and `03_precision` give with these parameters: 16 x 512 tokens each of calibration and
evaluation, disjoint, drawn by seed.

    python benchmarks/quantization_loss.py models/smollm2-135m-telechat                   # methods
    python benchmarks/quantization_loss.py models/smollm2-135m-telechat --ingredients     # of method best
"""

import tempfile
from pathlib import Path

import click

from telechat_kit.inference.model_pair import Pair
from telechat_kit.precision import evaluation_blocks, measure_divergence
from telechat_kit.quantization import Calibration, Recipe, quantize

METHODS = ("none", "m1", "m2", "m3", "m4", "best")
WAYS = (("L0", "static"), ("L5", "static"), ("L0", "dynamic"))
INGREDIENTS = (
    "up_proj, values",
    "up_proj, values, signs, random_tokens",
    "up_proj, values, signs, random_tokens, splitting",
    "up_proj, values, signs, random_tokens, splitting, rounding",
    "all",
)


@click.command()
@click.argument("checkpoint_path", type=click.Path(path_type=Path))
@click.option("--ingredients", is_flag=True, help="Take method best apart, static at L0.")
@click.option("--only", multiple=True, help="Only these methods.")
def main(checkpoint_path: Path, ingredients: bool, only: tuple[str, ...]) -> None:
    """Quantize CHECKPOINT_PATH in each way, and print a row as soon as it is measured."""
    print("| method | level | activations | KL, nats per token [95 %] | perplexity | top-1 |")
    print("|---|---|---|---|---|---|")
    if ingredients:
        rows = [("best", name, "L0", "static") for name in INGREDIENTS]
    else:
        rows = [(method, "all", *way) for way in WAYS for method in only or METHODS]
    for method, used, level, activations in rows:
        label = f"{method}: {used}" if ingredients else method
        print(
            f"| {label} | {level} | {activations} | {_row(checkpoint_path.resolve(), method, used, level, activations)} |",
            flush=True,
        )


def _row(source: Path, method: str, used: str, level: str, activations: str) -> str:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "w8a8"
        quantize(
            source,
            folder,
            Recipe(level=level, anti_outlier=method, ingredients=used, activations=activations),
            Calibration("pydoc_data.topics"),
        )
        pair = Pair(source, folder)
        found = measure_divergence(pair, evaluation_blocks(pair, "pydoc_data.topics", 512, 16, 0))
    kl = found.kl_mean
    return f"{kl:.4f} | {found.perplexity_w8a8.value:.3f} | {found.top1_agreement.value:.1%}"


if __name__ == "__main__":
    main()

"""What a recipe loses on text that took no part in making it, by kind, the worst first.

KL(float || W8A8) in nats per token with 95 % intervals over sequences. The kinds are the kit's evaluation texts and
`pydoc_data.topics`. Develop on one half, and read the sealed one once, at the end:

    python benchmarks/generalization.py models/smollm2-135m-telechat --recipe "best L0 dynamic"
    python benchmarks/generalization.py models/smollm2-135m-telechat --half sealed
    python benchmarks/generalization.py models/smollm2-135m-telechat --harder    # the same network, made harder
"""

import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import torch
from safetensors.torch import save_file
from torch import Tensor

from telechat_kit.inference.model_pair import Pair, calibrated_on
from telechat_kit.model.folder import load_tensors, read_config
from telechat_kit.model.tokenization import load_tokenizer
from telechat_kit.precision import measure_divergence
from telechat_kit.quantization import Calibration, Recipe, quantize
from telechat_kit.statistics import Estimate
from telechat_kit.texts import PYDOC_TOPICS, kit_texts, load_text
from telechat_kit.token_samples import Block, joined_ids, token_blocks

#: Every method of the kit; best with what every format carries, and with what the kit alone runs
METHODS: dict[str, dict[str, Any]] = {
    **{method: {"anti_outlier": method} for method in ("none", "m1", "m2", "m3", "m4", "best")},
    "best online": {"anti_outlier": "best", "ingredients": "online"},
}
FORMS = (("L0", "static"), ("L5", "static"), ("L0", "dynamic"))
RECIPES: dict[str, dict[str, Any]] = {
    f"{name} {level} {activations}": {**method, "level": level, "activations": activations}
    for name, method in METHODS.items()
    for level, activations in FORMS
}
TOKENS, SEQUENCES = 256, 16
#: How many channels of a norm, rows of up_proj and rows of each head's values are enlarged, and by about how much
HARDER_NORMS, HARDER_ROWS, HARDER_VALUES, HARDER = 12, 24, 2, 30.0


@click.command()
@click.argument("checkpoint_path", type=click.Path(exists=True, path_type=Path))
@click.option("--recipe", multiple=True, help="Only these rows; all by default.")
@click.option("--half", type=click.Choice(["development", "sealed"]), default="development")
@click.option("--calibration", default=Calibration.calibration_path, help="As `calibration_path`.")
@click.option("--samples", default=16)
@click.option(
    "--harder", is_flag=True, help="Enlarge channels of CHECKPOINT_PATH, exactly, before quantizing."
)
def main(
    checkpoint_path: Path, recipe: tuple[str, ...], half: str, calibration: str, samples: int, harder: bool
) -> None:
    """Quantize CHECKPOINT_PATH by each recipe, and print a row as soon as it is judged."""
    with tempfile.TemporaryDirectory() as scratch:
        source = checkpoint_path.resolve()
        if harder:
            source = harden(source, Path(scratch) / "harder")
        samples_of = Calibration(calibration, calibration_samples=samples)
        for index, name in enumerate(recipe or RECIPES):
            target = Path(scratch) / "w8a8"
            start = time.perf_counter()
            quantize(source, target, Recipe(**RECIPES[name]), samples_of)
            seconds = time.perf_counter() - start
            found = judge(Pair(source, target), half)
            if index == 0:
                print(f"| recipe | worst / own source | {' | '.join(found)} | seconds |")
                print("|---|---|" + "---|" * (len(found) + 1))
            print(_row(name, found, seconds), flush=True)
            shutil.rmtree(target)


def judge(pair: Pair, half: str) -> dict[str, Estimate]:
    """KL by kind over the evaluation texts of `half` and the documentation topics."""
    judged = judged_blocks(pair.tokenizer, half, pair.recipe)
    return {kind: measure_divergence(pair, blocks).kl_mean for kind, blocks in judged.items()}


def judged_blocks(tokenizer: Any, half: str, recipe: Mapping[str, Any]) -> dict[str, list[Block]]:
    """The sequences of each kind; of the documentation topics those that the calibration of `recipe` has not seen."""
    topics = load_text(PYDOC_TOPICS)
    found = {"pydoc": token_blocks(tokenizer, topics, 512, 16, 0, calibrated_on(recipe, topics))}
    for kind, text in kit_texts(f"evaluation/{half}").items():
        count = min(SEQUENCES, len(joined_ids(tokenizer, text)) // TOKENS)
        found[kind] = token_blocks(tokenizer, text, TOKENS, count, 0)
    return found


def _row(name: str, found: Mapping[str, Estimate], seconds: float) -> str:
    worst = max(kl.value for kl in found.values())
    cells = [f"{kl:.4f}" for kl in found.values()]
    return f"| {name} | {worst / found['pydoc'].value:.1f} | {' | '.join(cells)} | {seconds:.0f} |"


def harden(source: Path, target: Path, seed: int = 0) -> Path:
    """A checkpoint folder that computes what `source` does, with outlier channels of every kind in all blocks."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.safetensors", "*.bin", "*.index.json"))
    tensors, config = load_tensors(source), read_config(source)
    generator = torch.Generator().manual_seed(seed)
    prefix = "transformer." if "transformer.h.0.input_layernorm.weight" in tensors else ""
    for block in range(config.n_layer):
        _harden_block(tensors, f"{prefix}h.{block}.", config.head_dim, generator)
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    assert load_tokenizer(target)
    return target


def _harden_block(tensors: dict[str, Tensor], prefix: str, head_dim: int, generator: torch.Generator) -> None:
    def take(name: str) -> Tensor:
        return tensors[f"{prefix}{name}.weight"]

    for norm, readers in (
        ("input_layernorm", ("self_attention.query", "self_attention.key_value")),
        ("post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj")),
    ):
        factors = _factors(take(norm).numel(), HARDER_NORMS, generator)
        take(norm).mul_(factors)
        for reader in readers:
            take(reader).div_(factors)
    rows = _factors(take("mlp.up_proj").shape[0], HARDER_ROWS, generator)
    take("mlp.up_proj").mul_(rows[:, None])
    take("mlp.down_proj").div_(rows)
    values = _factors(head_dim, HARDER_VALUES, generator)  # alike in all heads: some may repeat others
    heads = take("self_attention.key_value").view(-1, 2, head_dim, take("self_attention.dense").shape[0])
    heads[:, 1].mul_(values[:, None])
    take("self_attention.dense").div_(values.repeat(take("self_attention.dense").shape[1] // head_dim))


def _factors(size: int, count: int, generator: torch.Generator) -> Tensor:
    """Ones, but for `count` channels at about `HARDER` (log-normal)."""
    factors = torch.ones(size)
    chosen = torch.randperm(size, generator=generator)[:count]
    factors[chosen] = HARDER * torch.exp(0.3 * torch.randn(count, generator=generator))
    return factors


if __name__ == "__main__":
    main()

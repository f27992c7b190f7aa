"""Quantize a checkpoint with 8 x 512 tokens; print the peak resident memory and the time per block.

python benchmarks/quantize_memory.py models/shaped-7b /tmp/shaped-7b-w8a8
"""

from pathlib import Path

import click

from telechat_kit.backends import cpu
from telechat_kit.model.weight_shards import Shards
from telechat_kit.quantization import Calibration, Recipe, quantize


@click.command()
@click.argument("checkpoint_path", type=click.Path(path_type=Path))
@click.argument("quant_path", type=click.Path(path_type=Path))
@click.option("--anti-outlier", default="m1", show_default=True)
@click.option("--level", default="L5", show_default=True)
@click.option("--samples", default=8, show_default=True)
@click.option("--tokens", default=512, show_default=True)
def main(
    checkpoint_path: Path, quant_path: Path, anti_outlier: str, level: str, samples: int, tokens: int
) -> None:
    """Quantize CHECKPOINT_PATH into QUANT_PATH and print what it took."""
    shards = Shards(checkpoint_path.resolve())
    before = cpu.peak_memory_bytes()
    record = quantize(
        checkpoint_path.resolve(),
        quant_path.resolve(),
        Recipe(level=level, anti_outlier=anti_outlier),
        Calibration("pydoc_data.topics", calibration_samples=samples, calibration_tokens=tokens),
        device="cpu",
    )
    blocks, hidden = shards.config.n_layer, shards.config.hidden_size
    elements = sum(stored.shape.numel() for stored in shards.tensors.values())
    outer = sum(
        stored.shape.numel()
        for name, stored in shards.tensors.items()
        if not name.startswith("transformer.h.")
    )
    rows = {
        "blocks, hidden size": f"{blocks}, {hidden}",
        "calibration": f"{samples} x {tokens} tokens, {anti_outlier}, {level}",
        "the float32 model would need": f"{4 * elements / 1e9:.2f} GB",
        "one float32 block": f"{4 * (elements - outer) / blocks / 1e9:.2f} GB",
        "hidden states": f"{4 * samples * tokens * hidden / 1e9:.3f} GB",
        "resident before (interpreter, libraries)": f"{before / 1e9:.2f} GB",
        "peak resident": f"{record.peak_memory_bytes / 1e9:.2f} GB",
        "time, hashing included": f"{record.seconds:.0f} s, {record.seconds / blocks:.1f} s a block",
    }
    for name, value in rows.items():
        print(f"{name:42}{value}")


if __name__ == "__main__":
    main()

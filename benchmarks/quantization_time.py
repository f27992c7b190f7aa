"""What a quantization costs: seconds of one core and peak memory, of a checkpoint or of one block of a shape.

Each recipe runs in a process of its own with one thread. CPU seconds do not depend on what else the machine does,
as far as caches and memory allow:

    python benchmarks/quantization_time.py models/smollm2-135m-telechat
    python benchmarks/quantization_time.py --shape 7b --recipe "best L0 static"
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import click

#: Block shapes: hidden size, feed-forward, heads. Vocabulary and number of blocks are small: a block is of interest.
SHAPES = {"7b": (4096, 12288, 32), "12b": (5120, 12288, 40), "tiny": (64, 176, 4)}
RECIPES = {
    "m1 L5 static": {"anti_outlier": "m1", "level": "L5"},
    "best L5 static": {"anti_outlier": "best", "level": "L5"},
    "best L0 static": {"anti_outlier": "best", "level": "L0"},
    "best online L0 static": {"anti_outlier": "best", "level": "L0", "ingredients": "online"},
    "best L0 dynamic": {"anti_outlier": "best", "level": "L0", "activations": "dynamic"},
}
#: Quantizes argv[1] by the recipe argv[2] on argv[3] with argv[4] samples of argv[5] tokens; prints what it took
PROCESS = """
import json, resource, sys, tempfile
from pathlib import Path
from telechat_kit.quantization import Calibration, Recipe, quantize

source, recipe, text, samples, tokens = sys.argv[1:]
calibration = Calibration(text, calibration_samples=int(samples), calibration_tokens=int(tokens))
start = resource.getrusage(resource.RUSAGE_SELF)
with tempfile.TemporaryDirectory() as scratch:
    quantize(source, Path(scratch) / "w8a8", Recipe(**json.loads(recipe)), calibration, device="cpu")
end = resource.getrusage(resource.RUSAGE_SELF)
print(end.ru_utime + end.ru_stime - start.ru_utime - start.ru_stime, end.ru_maxrss * 1024)
"""


@click.command()
@click.argument("checkpoint_path", required=False, type=click.Path(exists=True, path_type=Path))
@click.option(
    "--shape", type=click.Choice(list(SHAPES)), help="One block of random weights, of this model's shape."
)
@click.option("--recipe", multiple=True, type=click.Choice(list(RECIPES)), help="All but L0 by default.")
@click.option("--calibration", default="kit, pydoc_data.topics", show_default=True)
@click.option("--samples", default=16, show_default=True)
@click.option("--tokens", default=512, show_default=True)
def main(
    checkpoint_path: Path | None,
    shape: str | None,
    recipe: tuple[str, ...],
    calibration: str,
    samples: int,
    tokens: int,
) -> None:
    """Quantize CHECKPOINT_PATH, or a block of --shape, by each recipe: CPU seconds of one core, peak memory."""
    if (checkpoint_path is None) == (shape is None):
        raise click.UsageError("Give either CHECKPOINT_PATH or --shape.")
    with tempfile.TemporaryDirectory() as scratch:
        source = checkpoint_path or shaped_block(shape or "", Path(scratch) / "shaped")
        print("| recipe | CPU seconds of one core | peak memory |\n|---|---|---|")
        for name in recipe or list(RECIPES)[:2]:
            seconds, peak = measured(source, name, calibration, samples, tokens)
            print(f"| {name} | {seconds:.1f} | {peak / 1e9:.2f} GB |", flush=True)


def shaped_block(shape: str, folder: Path) -> Path:
    """A checkpoint of one block, made by `make_shaped_checkpoint.py`."""
    hidden, ffn, heads = SHAPES[shape]
    sizes = {"blocks": 1, "hidden": hidden, "ffn": ffn, "heads": heads, "vocab": 4096}
    options = [f"--{name}={value}" for name, value in sizes.items()]
    maker = Path(__file__).with_name("make_shaped_checkpoint.py")
    subprocess.run([sys.executable, maker, folder, *options], check=True, stdout=subprocess.DEVNULL)
    return folder


def measured(source: Path, recipe: str, calibration: str, samples: int, tokens: int) -> tuple[float, int]:
    """CPU seconds and peak resident bytes of one quantization, loading and hashing included."""
    command = [sys.executable, "-c", PROCESS, str(source.resolve()), json.dumps(RECIPES[recipe]), calibration]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(samples), str(tokens)], env=environment, check=True, stdout=subprocess.PIPE, text=True
    )
    seconds, peak = done.stdout.split()[-2:]
    return float(seconds), int(peak)


if __name__ == "__main__":
    main()

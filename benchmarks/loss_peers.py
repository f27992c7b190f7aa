"""What W8A8 of the kit and of other tools loses on the same weights, calibration and texts, the worst kind first.

    make bench-loss        # installs the tools into an environment of their own first
    build/bench-loss/bin/python benchmarks/loss_peers.py --half development --sequences 2 --row "SpinQuant R1 R2, *"
    build/bench-loss/bin/python benchmarks/loss_peers.py --half sealed --row "kit *"

Every tool gets the demo model in float32 under Llama's names, whose logits are held to the kit's, and the 16 x 512
ids that the kit's default calibration draws. Texts, formula and intervals are those of `generalization.py`. Each row
has a process of its own with one thread; its reply is kept in build/bench-loss-kept with a log beside it, so a run
that stopped goes on with what is missing. A tool that fails is named at the end, with its own last words.
"""

import importlib.metadata
import json
import os
import sys
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from clients import Replies, run
from generalization import RECIPES, judged_blocks
from loss_row import Levels, Request, Row
from safetensors.torch import save_file
from torch import Tensor

from telechat_kit import export, load_model, load_tokenizer
from telechat_kit.files import atomic_path, resolve, sha256, write_json
from telechat_kit.inference.whole_sequences import hidden_states
from telechat_kit.model.demo import build_demo
from telechat_kit.model.folder import read_config
from telechat_kit.precision.divergence import figures_of_means
from telechat_kit.provenance import code_hash, combined_hash, machine
from telechat_kit.quantization import Calibration
from telechat_kit.quantization.calibration.samples import CalibrationSet, calibration_set
from telechat_kit.statistics import Estimate

SCHEMA = "telechat-kit/loss-peers/1"
FLOAT, LLAMA = "models/smollm2-135m-telechat", "build/bench-loss-float"
KEPT, RESULT = "build/bench-loss-kept", "build/bench-loss-{half}.json"
#: Source of the rows' processes: a reply of another one is not kept
SHARED = ("loss_row.py",)


@dataclass(frozen=True)
class Entry:
    """A row to be made: the module that runs the tool, and what it is told."""

    tool: str
    arguments: dict[str, Any]


def _compressor(**arguments: Any) -> Entry:
    return Entry("loss_llm_compressor", arguments)


def _modelslim(method: str, **arguments: Any) -> Entry:
    return Entry("loss_msmodelslim", {"method": method, **arguments})


#: Settings: the tools' defaults where nothing is said, chosen before any of these texts was looked at
PEERS = {
    "llm-compressor, SpinQuant R1 R2 R4, nearest, dynamic": _compressor(rotations=["R1", "R2", "R4"]),
    "llm-compressor, SpinQuant R1 R2 R4, GPTQ, dynamic": _compressor(
        rotations=["R1", "R2", "R4"], rounding="gptq"
    ),
    "llm-compressor, SmoothQuant 0.8, GPTQ, dynamic": _compressor(smoothing=0.8, rounding="gptq"),
    "llm-compressor, SpinQuant R1 R2, nearest, dynamic": _compressor(rotations=["R1", "R2"]),
    "llm-compressor, SpinQuant R1 R2 R4 uncentered, nearest, dynamic": _compressor(
        rotations=["R1", "R2", "R4"], centered=False
    ),
    "msModelSlim, iter_smooth 0.9, nearest, static": _modelslim("iter_smooth", alpha=0.9),
    "msModelSlim, iter_smooth 0.5, GPTQ, dynamic": _modelslim(
        "iter_smooth", alpha=0.5, rounding="gptq", activations="dynamic"
    ),
    "NNCF, SmoothQuant 0.95, nearest, static": Entry("loss_nncf", {}),
    "llm-compressor, SmoothQuant 0.8, GPTQ, static": _compressor(
        smoothing=0.8, rounding="gptq", activations="static"
    ),
    "msModelSlim, flex_smooth_quant, nearest, dynamic": _modelslim(
        "flex_smooth_quant", activations="dynamic"
    ),
    "msModelSlim, QuaRot, nearest, dynamic": _modelslim(
        "quarot", export_extra_info=False, activations="dynamic"
    ),
    "llm-compressor, nearest, dynamic": _compressor(),
}
KIT = {f"kit, {name}": recipe for name, recipe in RECIPES.items()}


@dataclass(frozen=True)
class Judged:
    """A row of the table."""

    name: str
    kinds: dict[str, Estimate]
    row: Row

    @property
    def worst(self) -> str:
        return max(self.kinds, key=lambda kind: self.kinds[kind].value)


@click.command()
@click.option("--half", type=click.Choice(["development", "sealed"]), default="sealed", show_default=True)
@click.option("--row", multiple=True, help="Only rows of these names, with * and ?; all by default.")
@click.option("--sequences", default=16, show_default=True, help="At most so many of each kind.")
@click.option("--calibration", default=str(Calibration().calibration_path), show_default=True)
@click.option("--samples", default=16, show_default=True, help="Calibration samples; fewer for a first look.")
def main(half: str, row: tuple[str, ...], sequences: int, calibration: str, samples: int) -> None:
    """Quantize the demo model by every tool, judge all on HALF, and write build/bench-loss-HALF.json."""
    own, llama = folders()
    drawn = samples_of(own, calibration, samples)
    replies = Replies(resolve(KEPT))
    replies.folder.mkdir(parents=True, exist_ok=True)
    kinds = sequences_of(own, half, drawn, sequences)
    reference = float_reference(own, drawn.ids[0], kinds)
    entries = PEERS | {
        name: Entry("loss_kit", {"calibration": calibration, **recipe}) for name, recipe in KIT.items()
    }
    found = []
    for name in (name for name in entries if not row or any(fnmatch(name, pattern) for pattern in row)):
        entry = entries[name]
        folder = own if entry.tool == "loss_kit" else llama
        asked = Request(entry.tool, entry.arguments, str(folder), str(reference), lists(drawn.ids), kinds)
        if reply := reply_of(replies, f"{half}, {name}", asked):
            found.append(judged(name, reply))
            click.echo(line(found[-1]))
    record = {"schema": SCHEMA, "machine": machine(), "half": half, "failures": replies.failures}
    rows = [{"name": each.name, "kinds": kinds_of(each), **asdict(each.row)} for each in found]
    write_json(resolve(RESULT.format(half=half)), record | {"rows": rows})
    click.echo(table(found))
    for name, said in replies.failures.items():
        click.echo(f"- left out: {name} ({said})")


def folders() -> tuple[Path, Path]:
    """The demo model, and its float export under Llama's names; made where they are missing."""
    own, llama = resolve(FLOAT), resolve(LLAMA)
    if not own.is_dir():
        build_demo(own)
    export(own, llama, "float", names="llama", overwrite=True)
    return own, llama


def samples_of(own: Path, calibration: str, samples: int) -> CalibrationSet:
    """The samples that `02_quantize` draws."""
    asked = Calibration(calibration, calibration_samples=samples)
    return calibration_set(
        load_tokenizer(own), asked.source,
        format=asked.calibration_format, lines=asked.calibration_lines, samples=samples,
        tokens=asked.calibration_tokens, seed=asked.seed, context=read_config(own).training_seqlen,
    )  # fmt: skip


def sequences_of(own: Path, half: str, drawn: CalibrationSet, most: int) -> dict[str, list[list[int]]]:
    """Ids to judge by, by kind, none of which calibration has seen."""
    blocks = judged_blocks(load_tokenizer(own), half, drawn.recipe())
    return {kind: lists(block.ids for block in part[:most]) for kind, part in blocks.items()}


def lists(rows: Any) -> list[list[int]]:
    return [list(ids) for ids in rows]


def float_reference(own: Path, sample: tuple[int, ...], kinds: dict[str, list[list[int]]]) -> Path:
    """The file of the kit's float states `[n, T - 1, H]` of the sample and of each kind, and of its head."""
    asked = {"sample": [list(sample)], **kinds}
    path = resolve(KEPT) / f"float-{combined_hash([json.dumps(asked), code_hash()])[:12]}.safetensors"
    if not path.exists():
        model = load_model(own, "cpu")
        tensors = {kind: stacked(model, rows) for kind, rows in asked.items()}
        with atomic_path(path) as temporary:
            save_file(tensors | {"head": model.lm_head.weight.detach().clone()}, temporary)
    return path


def stacked(model: Any, rows: list[list[int]]) -> Tensor:
    return torch.stack([hidden_states(model, [ids])[0][:-1] for ids in rows])


def reply_of(replies: Replies, name: str, asked: Request) -> Row | None:
    """The reply of a row's process; None if it fails."""
    own, request = Path(__file__), json.dumps(asdict(asked))
    sources = [sha256(own.with_name(file)) for file in (*SHARED, f"{asked.tool}.py")]
    code = [code_hash()] if asked.tool == "loss_kit" else []

    def ask(result: Path, log: Path) -> None:
        file = result.with_suffix(".request.json")
        file.write_text(request, encoding="utf-8")
        os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        run([sys.executable, str(own.with_name("loss_row.py")), str(file), str(result)], log)
        file.unlink()

    path = replies.get(name, [request, *sources, *code, json.dumps(versions())], ask)
    if path is None:
        return None
    values = json.loads(path.read_text(encoding="utf-8"))
    return Row(**{**values, "levels": Levels(**values["levels"])})


def versions() -> dict[str, str]:
    """Of what is installed here of the tools."""
    names = (
        "torch",
        "transformers",
        "llmcompressor",
        "compressed-tensors",
        "msmodelslim",
        "nncf",
        "openvino",
    )
    installed = {
        found.metadata["Name"].lower(): found.version for found in importlib.metadata.distributions()
    }
    return {name: installed[name] for name in names if name in installed}


def judged(name: str, row: Row) -> Judged:
    """KL of every kind with its interval, from the means of the sequences."""
    return Judged(
        name,
        {kind: figures_of_means(np.array(means))["kl_mean"] for kind, means in row.by_sequence.items()},
        row,
    )


def kinds_of(judged: Judged) -> dict[str, dict[str, float]]:
    return {kind: asdict(kl) for kind, kl in judged.kinds.items()}


def table(found: list[Judged]) -> str:
    """Markdown; those that lose least on their worst kind first."""
    if not found:
        return "no row"
    kinds = list(found[0].kinds)
    ordered = sorted(found, key=lambda each: each.kinds[each.worst].value)
    head = ["recipe", "worst kind", "over pydoc", *kinds, "CPU seconds", "peak memory"]
    return "\n".join([f"| {' | '.join(head)} |", "|---" * len(head) + "|", *map(line, ordered)])


def line(judged: Judged) -> str:
    """One row of the table."""
    row, worst = judged.row, judged.kinds[judged.worst].value
    cells = [f"{kl:.4f}" for kl in judged.kinds.values()]
    ratio = f"{worst / judged.kinds['pydoc'].value:.1f}"
    spent = [f"{row.cpu_seconds:.0f}", f"{row.peak_bytes / 1e9:.2f} GB"]
    return f"| {' | '.join([judged.name, f'{judged.worst} {worst:.4f}', ratio, *cells, *spent])} |"


if __name__ == "__main__":
    main()

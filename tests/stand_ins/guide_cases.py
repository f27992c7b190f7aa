"""Which of the guide's 25 cases each chip takes: run on the stand-ins, refusals by operator and rule.

    python tests/stand_ins/guide_cases.py [CHIP ...]

The model has the 7B's head size and its lengths, little else. Of each case the prompt, the first and the last tokens
are calculated: between them nothing changes but the position. A case counts as refused if a call breaks any rule, whether
or not a slower way then takes its place. With TORCH_NPU_STAND_IN_COLLECT=1 such calls go on, so that every rule that a
case breaks is listed and not just the first.
"""

import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from call_list import environment

LENGTHS = (10, 100, 500, 1000, 2000)
CHIPS = ("Ascend310P3", "Ascend910B4", "Ascend910_9391")
PRECISIONS = ("float", "w8a8", "dynamic")


def build(folder: Path) -> None:
    """Float, static and dynamic W8A8 folders of a one-block model with heads of 128, quantized on the CPU."""
    from telechat_kit.model import TelechatConfig, TelechatForCausalLM  # noqa: PLC0415  only children import the kit
    from telechat_kit.model.tiny import byte_tokenizer  # noqa: PLC0415
    from telechat_kit.quantization import Calibration, Recipe, quantize  # noqa: PLC0415

    tokenizer = byte_tokenizer()
    config = TelechatConfig(
        len(tokenizer),
        hidden_size=256,
        n_layer=1,
        n_head=2,
        ffn_hidden_size=352,
        training_seqlen=4096,
        base_seqlen=4096,
    )
    TelechatForCausalLM(config).save_pretrained(folder / "float")
    tokenizer.save_pretrained(folder / "float")
    recipe, sample = (
        Recipe("L0"),
        Calibration("pydoc_data.topics", calibration_samples=1, calibration_tokens=16),
    )
    quantize(folder / "float", folder / "w8a8", recipe, sample, device="cpu")
    quantize(
        folder / "float", folder / "dynamic", replace(recipe, activations="dynamic"), sample, device="cpu"
    )


def run_cases(folder: Path, precision: str) -> dict[str, Any]:
    """Refusals of each case, by operator and rule, and what the backend used."""
    import torch  # noqa: PLC0415
    from npu_chip import Chip  # noqa: PLC0415

    from telechat_kit.backends import npu  # noqa: PLC0415
    from telechat_kit.inference.loading import load_model  # noqa: PLC0415

    model = load_model(folder / precision, "npu:0")
    refused = {}
    with torch.inference_mode():
        for case in [(i, o) for i in LENGTHS for o in LENGTHS]:
            Chip.broken.clear()
            try:
                _run(model, *case)
            except RuntimeError:
                if not Chip.broken:  # stopped by something else
                    raise
            refused[case] = sorted({_without_sizes(rule) for rule in Chip.broken})
    rules = Counter(rule for rules in refused.values() for rule in rules)
    return {"refused": sum(map(bool, refused.values())), "rules": rules, "operators": npu.operators()}


def _without_sizes(rule: str) -> str:
    """The same text for a rule whatever the lengths that broke it."""
    return re.sub(r", Qs = \d+, Kvs = \d+|(?<=: )\d+ (?=positions)", "", rule)


def _run(model: Any, inputs: int, outputs: int) -> None:
    from telechat_kit.inference.network_run import NetworkRun  # noqa: PLC0415

    run = NetworkRun(model, inputs + outputs)
    token = run.best([7 + i % 90 for i in range(inputs)])
    token = run.best([token])
    run.cache.length = inputs + outputs - 2
    for _ in range(2):
        token = run.best([token])


def main(chips: list[str]) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "calls").mkdir()
        _child(["build", str(folder)], CHIPS[0], folder)
        for chip in chips:
            for precision in PRECISIONS:
                found = json.loads(_child(["run", str(folder), precision], chip, folder))
                print(f"{chip:<15} {precision:<8} {25 - found['refused']} of 25 cases")
                for rule, count in sorted(found["rules"].items()):
                    print(f"    {count:>2} cases: {rule}")
                for verb, way in found["operators"].items():
                    print(f"       {verb}: {way}")


def _child(arguments: list[str], chip: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, __file__, *arguments],
        env=environment(chip, folder / "calls"),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    return done.stdout.splitlines()[-1] if done.stdout else ""


if __name__ == "__main__":
    if sys.argv[1:2] == ["build"]:
        build(Path(sys.argv[2]))
    elif sys.argv[1:2] == ["run"]:
        print(json.dumps(run_cases(Path(sys.argv[2]), sys.argv[3])))
    else:
        main(sys.argv[1:] or list(CHIPS))

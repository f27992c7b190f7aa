"""A small project with the five steps as notebooks of a few plain cells, so that a run takes seconds."""

from pathlib import Path
from typing import Any

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from telechat_kit.runs.execution import Outcome, run_profile
from telechat_kit.runs.plan import Selection
from telechat_kit.runs.profile import load_profile

FOLDER = "from pathlib import Path\nfolder = Path(run_folder)"
STARTED = '(folder / "started.log").open("a").write("{name} ")'
PARAMETERS = {
    "01_setup": 'checkpoint_path: str = "model"  # folder of weights',
    "02_quantize": 'calibration_path: str = "params/data/lines.txt"  # text\nquant_path: str = "quantized"  # folder',
    "03_precision": 'quant_path: str = "quantized"  # folder\ntext_path: str = "params/data/lines.txt"  # text',
    "04_performance": 'repeats: int = 3  # timed runs\nending: str = "good"  # how the step ends',
    "05_report": 'title: str = "Report"  # of the page',
}
WORK = {
    "01_setup": 'Path(checkpoint_path).mkdir(exist_ok=True)\nassert not Path("break-the-setup").exists(), "set-up broken"',
    "02_quantize": 'Path(quant_path).mkdir(exist_ok=True)\n(Path(quant_path) / "weights").write_text(calibration_path)',
    "03_precision": 'import sys\nprint("halfway:  50%|##  |", file=sys.stderr)',
    "04_performance": (
        "import os, time\n"
        'if ending == "raise":\n    raise ValueError("no speed <b>today</b>")\n'
        'if ending == "kill":\n    os.kill(os.getpid(), 9)\n'
        'if ending == "wait":\n    (folder / "waiting").touch(); time.sleep(600)'
    ),
    "05_report": "title",
}
WRITES = {
    "01_setup": ["setup.json"],
    "02_quantize": ["quantize.json"],
    "03_precision": ["precision.json", "answers.jsonl", "infer_float.jsonl", "infer_w8a8.jsonl"],
    "04_performance": ["performance.json", "samples.jsonl"],
    "05_report": ["report.html", "report.md"],
}


def write_notebook(path: Path) -> None:
    name = path.stem
    record = f'for name in {WRITES[name]}:\n    (folder / name).write_text("{name}")'
    cells = [
        new_markdown_cell(f"# Step {name}"),
        new_code_cell(
            f'{PARAMETERS[name]}\nrun_folder: str = "out"  # where records are written',
            metadata={"tags": ["parameters"]},
        ),
        new_markdown_cell("## Begin"),
        new_code_cell(f"{FOLDER}\n{STARTED.format(name=name)}"),
        new_markdown_cell("## Work"),
        new_code_cell(WORK[name]),
        new_code_cell(record),
    ]
    notebook = new_notebook(cells=cells)
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, path)


def run(*overrides: tuple[str, str], timeouts: dict[str, float] | None = None, **selection: Any) -> Outcome:
    """Run the profile of the project that the working directory is in."""
    return run_profile(load_profile(Path("params/small.yaml"), overrides), Selection(**selection), timeouts)


def started(root: Path) -> list[str]:
    """Steps whose notebooks were really started, since the last call."""
    log = root / "out" / "started.log"
    names = log.read_text().split() if log.exists() else []
    log.unlink(missing_ok=True)
    return names


def write_project(root: Path) -> Path:
    """The five notebooks, a profile that leaves most to their defaults, and its data under `root`."""
    (root / "notebooks").mkdir(parents=True)
    (root / "params" / "data").mkdir(parents=True)
    for name in PARAMETERS:
        write_notebook(root / "notebooks" / f"{name}.ipynb")
    (root / "params" / "data" / "lines.txt").write_text("some text")
    (root / "params" / "small.yaml").write_text("run_folder: out\nquant_path: quantized\n")
    return root

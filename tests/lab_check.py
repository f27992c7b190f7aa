"""`make lab-check`: the notebooks in a real JupyterLab, driven in Chromium as a person would.

    lab_check.py [--pictures FOLDER] [--python INTERPRETER]

In a new project (`telechat-kit init`) with the tiny profile: Run All of the five notebooks; an interrupt in the middle
of the quantization, and Run All again; an error on purpose, whose message must be the first that is seen. Exit code 1
if a cell fails that should not, or does not that should, if the screen shows red blocks of stderr, or if the notebooks
of the project itself were changed.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from page_check import find_browser
from playwright.sync_api import Page, sync_playwright

NOTEBOOKS = ("01_setup", "02_quantize", "03_precision", "04_performance", "05_report")
#: Enough that the quantization of random weights can be met in its middle
MANY_SAMPLES = 256
STARTS, RUNS = 180, 600  # seconds
_PANEL = ".jp-NotebookPanel:not(.lm-mod-hidden)"
_READY = f"""() => {{
  const panel = document.querySelector('{_PANEL}');
  const context = window.jupyterapp?.shell.currentWidget?.context;
  return !!panel && !!context && context.isReady && context.sessionContext.session?.kernel?.status === 'idle';
}}"""
_BUSY = f"""() => [...document.querySelectorAll('{_PANEL} .jp-InputPrompt')].some(e => e.textContent.includes('[*]'))"""
_OUTPUTS = """() => window.jupyterapp.shell.currentWidget.context.model.toJSON().cells
  .flatMap((cell, number) => (cell.outputs ?? []).map(output => ({number, ...output})))"""
#: Cells whose text is cut off at the right, without a box to scroll in
_CUT_OFF = f"""() => [...document.querySelectorAll('{_PANEL} .jp-OutputArea-output')].filter(e =>
  e.scrollWidth > e.clientWidth + 2 && !['auto', 'scroll'].includes(getComputedStyle(e).overflowX)).length"""


class Lab:
    """A JupyterLab with the notebooks of one run open in a browser."""

    def __init__(self, page: Page, address: str, pictures: Path | None) -> None:
        self.page, self.address, self.pictures, self.findings = page, address, pictures, list[str]()

    def open(self, run: str, name: str) -> None:
        """The notebook in front, its kernel at rest."""
        self.page.goto(self.address)
        self._command("docmanager:open", {"path": f"results/{run}/notebooks/{name}.ipynb"})
        self.page.wait_for_function(_READY, timeout=1000 * STARTS)

    def begin(self) -> None:
        """Run All, without waiting for its end."""
        self.page.evaluate("() => { window.jupyterapp.commands.execute('notebook:run-all-cells'); }")
        self.page.wait_for_function(_BUSY, timeout=1000 * STARTS)

    def run_all(self) -> list[dict[str, object]]:
        """Run All to its end; what the cells left."""
        self.begin()
        return self.wait()

    def wait(self) -> list[dict[str, object]]:
        """The outputs, as soon as no cell is at work."""
        self.page.wait_for_function(f"() => !({_BUSY})()", timeout=1000 * RUNS)
        time.sleep(1)  # the last output may still be on its way
        found: list[dict[str, object]] = self.page.evaluate(_OUTPUTS)
        return found

    def interrupt(self) -> None:
        """What the stop button does."""
        self._command("notebook:interrupt-kernel", {})

    def show(self, cell: int) -> None:
        """Bring a cell into sight."""
        self.page.evaluate(
            "number => { const { content } = window.jupyterapp.shell.currentWidget;"
            " content.activeCellIndex = number; return content.scrollToItem(number, 'start'); }",
            cell,
        )
        time.sleep(1)

    def picture(self, name: str) -> None:
        """Keep what is seen."""
        if self.pictures is not None:
            self.pictures.mkdir(parents=True, exist_ok=True)
            self.page.screenshot(path=self.pictures / f"{name}.png")

    def show_error(self, outputs: list[dict[str, object]]) -> None:
        """Bring the cell that failed into sight."""
        for one in outputs:
            if one["output_type"] == "error":
                self.show(int(str(one["number"])))

    def expect(self, holds: object, finding: str) -> None:
        """Note a finding unless it holds."""
        if not holds:
            self.findings.append(finding)
            print(f"finding: {finding}", flush=True)

    def _command(self, name: str, arguments: dict[str, str]) -> None:
        self.page.wait_for_function("() => !!window.jupyterapp", timeout=1000 * STARTS)
        self.page.evaluate(
            "([name, given]) => window.jupyterapp.restored.then(() => window.jupyterapp.commands.execute(name, given))",
            [name, arguments],
        )


def errors(outputs: list[dict[str, object]]) -> list[str]:
    """What IPython shows of each error."""
    return ["\n".join(map(str, one["traceback"])) for one in outputs if one["output_type"] == "error"]


def red(outputs: list[dict[str, object]]) -> list[str]:
    """What JupyterLab paints red: stderr."""
    return [str(one["text"])[:120] for one in outputs if one.get("name") == "stderr"]


def check_run_all(lab: Lab) -> None:
    """Run All of the five notebooks in their order."""
    for name in NOTEBOOKS:
        begin = time.monotonic()
        lab.open("check", name)
        outputs = lab.run_all()
        lab.picture(f"{name}-end")
        for number in (1, 5):  # the parameters, and what comes first of the outputs
            lab.show(number)
            lab.picture(f"{name}-{number}")
        lab.expect(not errors(outputs), f"{name}: {errors(outputs)[:1]}")
        lab.expect(not red(outputs), f"{name}: red: {red(outputs)[:3]}")
        lab.expect(not lab.page.evaluate(_CUT_OFF), f"{name}: outputs cut off at the right")
        print(f"{name}: Run All, {len(outputs)} outputs, {time.monotonic() - begin:.0f} s", flush=True)


def check_interrupt(lab: Lab, project: Path) -> None:
    """Stop in the middle of the quantization: nothing half written; Run All again completes it."""
    lab.open("long", "02_quantize")
    lab.begin()
    lab.page.wait_for_selector(f"{_PANEL} .jp-OutputArea-output progress", timeout=1000 * STARTS)
    lab.interrupt()
    left = lab.wait()
    stopped = errors(left)
    lab.show_error(left)
    lab.picture("interrupted")
    lab.expect(
        len(stopped) == 1 and stopped[0].startswith("Interrupted. The blocks"), f"interrupt: {stopped[:1]}"
    )
    record = project / "results" / "long" / "quantize.json"
    lab.expect(not record.exists(), "interrupt: a record of a quantization that did not end")
    again = lab.run_all()
    lab.expect(not errors(again), f"after the interrupt: {errors(again)[:1]}")
    lab.expect(record.exists(), "after the interrupt: no record")
    print("02_quantize: interrupted, then completed", flush=True)


def check_error(lab: Lab) -> None:
    """03_precision without W8A8 weights: the message first, with the notebook that makes them."""
    lab.open("missing", "03_precision")
    left = lab.run_all()
    found = errors(left)
    lab.show_error(left)
    lab.picture("error")
    lab.expect(len(found) == 1, f"an error on purpose: {len(found)} errors")
    first = found[0].splitlines()[0] if found else ""
    lab.expect("Error: " in first and "02_quantize" in first, f"an error on purpose begins with: {first}")
    print(f"03_precision without weights: {first}", flush=True)


@contextmanager
def served(python: str, project: Path, scratch: Path) -> Iterator[str]:
    """A JupyterLab at the root of the project; its address."""
    runtime = scratch / "runtime"
    given = {
        "JUPYTER_RUNTIME_DIR": runtime,
        "JUPYTER_CONFIG_DIR": scratch / "c",
        "JUPYTERLAB_SETTINGS_DIR": scratch / "s",
    }
    quiet = scratch / "s" / "@jupyterlab" / "apputils-extension" / "notification.jupyterlab-settings"
    quiet.parent.mkdir(parents=True)
    quiet.write_text('{"fetchNews": "false"}')  # no question about news over what is looked at
    given |= {"JUPYTERLAB_WORKSPACES_DIR": scratch / "w"}
    options = [
        f"--ServerApp.root_dir={project}", "--ServerApp.port=0", "--ServerApp.open_browser=False", "--allow-root",
        "--LabApp.expose_app_in_browser=True", "--LabApp.news_url=None",
    ]  # fmt: skip
    environment = os.environ | {name: str(place) for name, place in given.items()}
    with (scratch / "server.log").open("w") as log:
        command = [python, "-m", "jupyterlab", *options]
        server = subprocess.Popen(command, cwd=project, env=environment, stdout=log, stderr=log)
        try:
            yield _address(server, runtime, scratch / "server.log")
        finally:
            server.terminate()
            server.wait(60)


def _address(server: "subprocess.Popen[bytes]", runtime: Path, log: Path) -> str:
    begin = time.monotonic()
    while time.monotonic() < begin + STARTS:
        for path in runtime.glob("jpserver-*.json"):
            told = json.loads(path.read_text())
            return f"{told['url']}lab?token={told['token']}&reset"
        if server.poll() is not None:
            break
        time.sleep(0.5)
    sys.exit(f"JupyterLab did not start:\n{log.read_text()[-2000:]}")


def make_project(python: str, folder: Path) -> None:
    """A new project with three runs to step through."""
    runs = {
        "check": [],
        "long": ["-p", f"calibration_samples={MANY_SAMPLES}", "-p", "quant_path=models/long-w8a8"],
        "missing": ["-p", "quant_path=models/never-made"],
    }
    kit = [python, "-m", "telechat_kit"]
    subprocess.run([*kit, "init", str(folder)], check=True, stdout=subprocess.DEVNULL)
    for name, further in runs.items():
        command = [*kit, "lab", name, "--profile", "params/tiny.yaml", "--no-start", *further]
        subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)


def main() -> None:
    """Drive JupyterLab, say what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=Path, help="folder for a screenshot of each step")
    parser.add_argument("--python", default=".venv/bin/python", help="interpreter that has telechat-kit[lab]")
    asked = parser.parse_args()
    python = str(
        Path(asked.python).absolute()
    )  # not resolved: a link into an environment means that environment
    with tempfile.TemporaryDirectory(prefix="lab-") as scratch, sync_playwright() as driver:
        project = Path(scratch) / "project"
        make_project(python, project)
        sources = {path: path.read_bytes() for path in (project / "notebooks").iterdir()}
        browser = driver.chromium.launch(executable_path=find_browser(), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        with served(python, project, Path(scratch)) as address:
            lab = Lab(page, address, asked.pictures)
            check_run_all(lab)
            check_interrupt(lab, project)
            check_error(lab)
            browser.close()
        lab.expect(all(path.read_bytes() == text for path, text in sources.items()), "sources were changed")
        shutil.rmtree(project)
    print(f"{len(lab.findings)} findings")
    sys.exit(1 if lab.findings else 0)


if __name__ == "__main__":
    main()

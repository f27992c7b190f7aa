"""The main job beside busy loops: seconds of the whole run alone, beside one and beside two loops per core.

A loop is a process that only counts. Each run quantizes and measures anew, in a copy of PROFILE with folders of its own
and the checkpoint made before; a run that ends with an error stops the comparison. On an otherwise idle machine:

    python benchmarks/busy_machine.py                                    # params/demo.yaml: 25 to 60 minutes on two cores
    python benchmarks/busy_machine.py --profile params/tiny.yaml         # a first look
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import yaml

from telechat_kit import make_embedded
from telechat_kit.backends.cores import CoreClock, usable_cores
from telechat_kit.files import project_root

#: Ends with the process that started it, however that one ends
LOOP = "import os\nparent = os.getppid()\nwhile os.getppid() == parent: sum(range(1_000_000))"
#: Seconds between two runs, for the processor and its clock to settle
PAUSE = 5.0


@click.command()
@click.option("--profile", default="params/demo.yaml", show_default=True)
@click.option("--loops", default="0,1,2", show_default=True, help="Busy loops for each usable core.")
def main(profile: str, loops: str) -> None:
    """Run PROFILE beside so many loops, each once; print the seconds and how many times as long that is."""
    settings = yaml.safe_load((project_root() / profile).read_text(encoding="utf-8"))
    cores, first = usable_cores(), 0.0
    with tempfile.TemporaryDirectory(dir=project_root() / "build") as scratch:
        copy = own_profile(settings, Path(scratch))
        print(
            f"{cores} cores, load {os.getloadavg()[0]:.2f}\n\n| loops per core | seconds | times as long | cores in use |"
        )
        print("|---|---|---|---|", flush=True)
        for count in map(int, loops.split(",")):
            time.sleep(PAUSE)
            with busy_loops(count * cores):
                clock, seconds = CoreClock.now(), run(copy, Path(scratch) / f"run-{count}")
            first = first or seconds
            busy = clock.busy_since()
            taken = f"{busy.taken:.1f} of {busy.cores} cores" if busy else ""
            print(f"| {count} | {seconds:.0f} | {seconds / first:.2f} | {taken} |", flush=True)


def own_profile(settings: dict[str, object], scratch: Path) -> Path:
    """The profile with its quantized folder in `scratch`; the checkpoint is made now, so that no run makes it."""
    model = make_embedded(str(settings["checkpoint_path"]), str(settings.get("embedded_model", "")))
    own = {**settings, "checkpoint_path": str(model), "quant_path": str(scratch / "w8a8")}
    if settings.get("model_path") == settings["checkpoint_path"]:
        own["model_path"] = str(model)
    path = scratch / "profile.yaml"
    path.write_text(yaml.safe_dump(own, allow_unicode=True), encoding="utf-8")
    return path


@contextmanager
def busy_loops(count: int) -> Iterator[None]:
    """So many processes that take a core each, while the context lasts."""
    loops = [subprocess.Popen([sys.executable, "-c", LOOP]) for _ in range(count)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def run(profile: Path, run_folder: Path) -> float:
    """Seconds of the run, from the command to its end."""
    command = [sys.executable, "-m", "telechat_kit", "run", str(profile), "-p", "run_folder", str(run_folder)]
    start = time.perf_counter()
    done = subprocess.run(command, cwd=project_root(), capture_output=True, text=True, check=False)
    if done.returncode:
        raise click.ClickException(f"the run failed: {(done.stderr or done.stdout).strip()[-500:]}")
    return time.perf_counter() - start


if __name__ == "__main__":
    main()

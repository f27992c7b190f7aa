"""Sweeps: every combination of parameter values and profiles as a run of its own, resumed like any other run."""

import itertools
import json
import math
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from telechat_kit.errors import ParameterError
from telechat_kit.files import project_root, relative, resolve
from telechat_kit.messages import marked
from telechat_kit.runs.many import Job, check_jobs, ended_by, prepare_checkpoints, run_jobs
from telechat_kit.runs.profile import load_profile, read_mapping
from telechat_kit.runs.signals import PARENT, orderly_end

#: What a run writes to: a sweep gives each run its own
_OWN = ("run_folder", "quant_path")

#: Runs that a sweep may mean; each takes minutes
MOST_RUNS = 1000
#: A value of a parameter, as profiles have them
Value = bool | int | float | str | list[int] | list[str]


@dataclass(frozen=True)
class Resources:
    """What one run takes of a machine; Ray places runs by it."""

    cpus: float = 1
    gpus: float = 0
    npus: float = 0


@dataclass(frozen=True)
class Sweep:
    """A sweep file: `profiles` times every combination of `parameters`, into folders below `results`."""

    profiles: list[str]
    parameters: dict[str, list[Value]]
    results: str
    resources: Resources = field(default_factory=Resources)


def load_sweep(path: Path) -> Sweep:
    """Read a sweep file.

    Raises:
        ParameterError: no such file, no YAML, a key that sweeps do not have, or a list that is empty.
    """
    values, _ = read_mapping(path, marked("sweep"), "params/sweeps")
    known = list(Sweep.__dataclass_fields__)
    if unknown := sorted(set(values) - set(known)):
        raise ParameterError(
            "{path}: {unknown}: a sweep has {known}.",
            path=path,
            unknown=unknown[0][:80],
            known=", ".join(known),
        )
    try:
        sweep = TypeAdapter(Sweep).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise ParameterError("{path}: {key}: {first}.", path=path, key=key, first=first["msg"]) from error
    empty = [key for key, options in sweep.parameters.items() if not options]
    if empty or not sweep.profiles:
        raise ParameterError(
            "{path}: {empty} is an empty list. Name at least one value.",
            path=path,
            empty=", ".join(empty) or "profiles",
        )
    return sweep


def sweep_jobs(sweep: Sweep) -> list[Job]:
    """A job for every combination, each with a run folder and quantized weights of its own.

    Raises:
        ParameterError: a profile or a value is wrong, or a swept parameter is one that every run must have its own of.
    """
    shared = [key for key in _OWN if key in sweep.parameters]
    if shared:
        raise ParameterError("a sweep cannot vary {shared}: it gives every run its own.", shared=shared[0])
    count = len(sweep.profiles) * math.prod(map(len, sweep.parameters.values()))
    if count > MOST_RUNS:
        raise ParameterError(
            "a sweep of {count:,} runs: at most {most:,} can be made at a time. Take values away.",
            count=count,
            most=MOST_RUNS,
        )
    twice = [key for key, options in sweep.parameters.items() if len(set(map(repr, options))) < len(options)]
    if twice:
        raise ParameterError("parameters.{key}: one value stands there twice. Take it away.", key=twice[0])
    choices = [[(key, value) for value in options] for key, options in sweep.parameters.items()]
    jobs = [
        _job(sweep, resolve(profile), values)
        for profile in sweep.profiles
        for values in itertools.product(*choices)
    ]
    check_jobs(jobs, at_once=2)
    return jobs


def _job(sweep: Sweep, profile: Path, values: Sequence[tuple[str, Any]]) -> Job:
    label = "_".join([profile.stem, *(f"{key}-{_word(value)}" for key, value in values)])
    overrides = [(key, json.dumps(value)) for key, value in values]
    weights = load_profile(profile, overrides).values.get("quant_path", f"models/{profile.stem}-w8a8")
    own = [("run_folder", f"{sweep.results}/{label}"), ("quant_path", f"{weights}.{label}")]
    return Job(label, profile, (*overrides, *own))


def _word(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return "".join(sign if sign.isalnum() or sign in ".-" else "-" for sign in text).strip("-") or "empty"


def run_sweep(
    sweep: Sweep, at_once: int = 1, ray: bool = False, options: Sequence[str] = ()
) -> dict[str, int]:
    """Run all combinations; the exit code of each by its label. What is done already is kept.

    Args:
        ray: place the runs on a Ray cluster, whose machines all see the project under the same path.
    """
    jobs = sweep_jobs(sweep)
    return _run_on_ray(jobs, sweep.resources, options) if ray else run_jobs(jobs, options, at_once)


def _run_on_ray(jobs: Sequence[Job], needed: Resources, options: Sequence[str]) -> dict[str, int]:
    try:
        import ray  # noqa: PLC0415  (an extra: sweeps mean the same without it)
    except ImportError as error:
        raise ParameterError(
            "Ray is not installed. `pip install 'telechat-kit[ray]'`, or leave out --ray."
        ) from error
    # by default its workers give way to all other processes, and what they time would not be what a run alone times
    os.environ.setdefault("RAY_worker_niceness", "0")
    ray.init(ignore_reinit_error=True, log_to_driver=True)
    custom = {"NPU": needed.npus} if needed.npus else {}
    remote = ray.remote(_run_here).options(num_cpus=needed.cpus, num_gpus=needed.gpus, resources=custom)
    prepare_checkpoints(jobs)
    root = str(project_root())
    with orderly_end():
        try:
            codes = ray.get([remote.remote(job.command(options), root, needed.cpus) for job in jobs])
        except KeyboardInterrupt as signal:
            ray.shutdown()  # ends the workers, and with them their runs
            return ended_by(signal, jobs)
    return {job.label: code for job, code in zip(jobs, codes, strict=True)}


def _run_here(command: list[str], folder: str, cpus: float) -> int:
    """What a Ray worker does: the same command as on local processes, with the threads that it was given."""
    threads = str(max(1, int(cpus)))
    environment = {**os.environ, "OMP_NUM_THREADS": threads, PARENT: str(os.getpid())}
    return subprocess.run(command, cwd=folder, env=environment, check=False).returncode


def folders(sweep: Sweep) -> dict[str, Path]:
    """Run folder of every combination by its label."""
    return {job.label: resolve(f"{sweep.results}/{job.label}") for job in sweep_jobs(sweep)}


def describe(sweep: Sweep) -> str:
    """The combinations in a few lines, for a dry run."""
    return "\n".join(f"{label} -> {relative(folder)}" for label, folder in folders(sweep).items())

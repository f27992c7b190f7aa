"""Cores: what affinity and control groups leave, what others take, and threads that sleep while they wait."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from telechat_kit.backends import cores, resolve_device
from telechat_kit.backends.cores import CoreClock, granted_cores, usable_cores


@pytest.fixture
def groups(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Control groups of version 2, this process two folders deep, nothing limited."""
    own = tmp_path / "own"
    own.write_text("0::/pod/container\n")
    (tmp_path / "groups" / "pod" / "container").mkdir(parents=True)
    monkeypatch.setattr(cores, "CONTROL_GROUPS", tmp_path / "groups")
    monkeypatch.setattr(cores, "OWN_GROUPS", own)
    return tmp_path / "groups"


@pytest.fixture(autouse=True)
def keep_threads() -> object:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_without_a_limit_the_affinity_counts(groups: Path) -> None:
    (groups / "pod" / "cpu.max").write_text("max 100000\n")
    assert granted_cores() is None
    assert usable_cores() == len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("quota", "granted", "usable"), [(150_000, 1.5, 2), (50_000, 0.5, 1), (10_000, 0.1, 1)]
)
def test_a_granted_part_of_a_core_counts_as_a_whole(
    groups: Path, monkeypatch: pytest.MonkeyPatch, quota: int, granted: float, usable: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    (groups / "pod" / "container" / "cpu.max").write_text(f"{quota} 100000\n")
    assert (granted_cores(), usable_cores()) == (granted, usable)


def test_the_tightest_of_the_groups_around_counts(groups: Path) -> None:
    (groups / "pod" / "container" / "cpu.max").write_text("300000 100000\n")
    (groups / "pod" / "cpu.max").write_text("50000 100000\n")
    assert granted_cores() == 0.5


def test_groups_of_version_1_are_read(monkeypatch: pytest.MonkeyPatch, groups: Path) -> None:
    cores.OWN_GROUPS.write_text("5:memory:/here\n4:cpu,cpuacct:/here\n")
    folder = groups / "cpu,cpuacct" / "here"
    folder.mkdir(parents=True)
    (folder / "cpu.cfs_period_us").write_text("100000\n")
    (folder / "cpu.cfs_quota_us").write_text("-1\n")
    assert granted_cores() is None
    (folder / "cpu.cfs_quota_us").write_text("120000\n")
    assert granted_cores() == 1.2


@pytest.mark.parametrize("text", ["", "nonsense\n", "100000 0\n"])
def test_a_file_that_says_nothing_is_no_limit(groups: Path, text: str) -> None:
    (groups / "cpu.max").write_text(text)
    assert granted_cores() is None


def test_threads_follow_a_grant_that_shrinks_while_we_run(groups: Path) -> None:
    torch.set_num_threads(2)
    resolve_device("cpu")
    assert torch.get_num_threads() == 2
    (groups / "cpu.max").write_text("100000 100000\n")
    resolve_device("cpu")
    assert torch.get_num_threads() == 1


def test_what_this_process_does_is_not_what_others_take() -> None:
    clock, start = CoreClock.now(), time.perf_counter()
    while time.process_time() < clock.own + 0.3:
        pass
    busy, elapsed = clock.busy_since(), time.perf_counter() - start
    assert busy is not None
    assert 0 <= busy.taken <= busy.cores
    assert busy.taken + 0.3 / elapsed <= busy.cores + 0.3  # clocks tick in hundredths


def test_what_another_process_takes_is_seen() -> None:
    clock = CoreClock.now()
    script = "import time\nend = time.process_time() + 0.4\nwhile time.process_time() < end: pass"
    subprocess.run([sys.executable, "-c", script], check=True)
    busy = clock.busy_since()
    assert busy is not None and busy.taken > 0.05


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, True), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, None)],
)
def test_threads_sleep_soon_unless_the_user_says_otherwise(given: dict[str, str], expected: object) -> None:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("GOMP", "OMP", "KMP"))}
    script = "import os, telechat_kit; print(os.environ.get('GOMP_SPINCOUNT'))"
    run = subprocess.run(
        [sys.executable, "-c", script], env={**kept, **given}, capture_output=True, text=True, check=True
    )
    said = run.stdout.strip()
    assert 100 <= int(said) <= 100_000 if expected is True else said == str(expected)

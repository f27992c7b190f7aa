"""The published version sets: whole, in order, and compared as Ascend numbers its releases."""

import re
import shlex
from pathlib import Path

import pytest
from packaging.version import Version

from telechat_kit.cli import cli
from telechat_kit.environment.releases import allows, ascend_releases, release_key, required_versions
from telechat_kit.errors import KitError
from telechat_kit.inference.memory import fits

ROOT = Path(__file__).parents[2]


def test_releases_are_in_the_order_of_their_numbers() -> None:
    names = list(ascend_releases().cann)
    assert names == sorted(names, key=release_key)
    ascending = ["24.1.RC2", "24.1.rc3", "24.1.0", "24.1.0.1", "25.0.RC1", "25.0.rc1.1", "25.2.0", "26.0.RC1"]
    assert ascending == sorted(ascending, key=release_key)


def test_a_series_holds_its_releases_and_a_release_its_patches() -> None:
    assert allows("25.2.X", "25.2.0")
    assert allows("25.2.X", "25.2.rc1.2")
    assert not allows("25.2.X", "25.20.0")
    assert allows("26.0.RC1", "26.0.rc1")
    assert not allows("26.0.RC1", "26.0.RC2")


def test_every_pair_is_a_torch_and_a_torch_npu_built_on_it() -> None:
    pairs = [pair for release in ascend_releases().cann.values() for pair in release.pairs]
    assert all(Version(pair.torch_npu).base_version == pair.torch for pair in pairs)
    builds = [pair.torch_npu for pair in pairs]
    assert len(builds) == len(set(builds)) == 51


def test_the_recommended_set_is_a_row_that_the_kit_can_use() -> None:
    releases, lowest = ascend_releases(), required_versions("npu")
    best = releases.recommended
    usable = releases.usable(releases.cann[best.cann], lowest["torch"])
    assert (best.torch, best.torch_npu) in [(pair.torch, pair.torch_npu) for pair in usable]


def test_the_guides_row_is_there_and_out_of_use() -> None:
    releases = ascend_releases()
    row = releases.cann[releases.guide.cann]
    assert (row.driver, row.firmware) == ("23.0.0", "7.1.0.3.220")
    assert (releases.guide.torch, releases.guide.torch_npu) == ("2.0.1", "2.0.1.post1")
    assert ("2.0.1", "2.0.1.post1") in [(pair.torch, pair.torch_npu) for pair in row.pairs]
    assert releases.usable(row, required_versions("npu")["torch"]) == []


@pytest.mark.parametrize(
    ("cann", "row"),
    [("8.5.0", "8.5.0"), ("8.5.1", "8.5.0"), ("9.2.1", "9.2.0"), ("9.3.0", None), ("8.0.RC2", "8.0.RC2")],
)
def test_a_patch_is_judged_by_the_release_before_it(cann: str, row: str | None) -> None:
    found = ascend_releases().release(cann)
    assert (found[0] if found else None) == row


@pytest.mark.parametrize(
    ("name", "family"),
    [("310P3", "310P"), ("Ascend310P3", "310P"), ("910B4-1", "910B"), ("Ascend910", "A3"), ("910B", None)],
)
def test_a_chip_is_known_by_npu_smis_name(name: str, family: str | None) -> None:
    assert ascend_releases().family(name) == family


def test_the_pages_name_only_published_versions() -> None:
    """A version that stands beside CANN, torch or torch_npu in the set-up pages is one of versions.yaml."""
    releases = ascend_releases()
    pairs = [pair for release in releases.cann.values() for pair in release.pairs]
    known = {"CANN": set(releases.cann), "torch": {p.torch for p in pairs} | {"2.7"}}
    known["torch_npu"] = {pair.torch_npu for pair in pairs}
    for page in (
        f"docs/{name}{language}.md" for name in ("ascend-setup", "first-day") for language in ("", ".zh-CN")
    ):
        text = (ROOT / page).read_text(encoding="utf-8")
        for name, version in re.findall(r"\b(CANN|torch|torch_npu)(?: |==)(\d[\w.]*\w)", text):
            assert version in known[name], f"{page}: {name} {version}"


def test_every_pair_of_the_four_newest_lines_is_compatible_and_no_older_one() -> None:
    releases = ascend_releases()
    lines = ("8.5.0", "9.0.0", "9.1.0", "9.2.0")
    builds = [releases.cann[line].pairs[0].torch_npu for line in lines]
    assert all(releases.runs_on(build, row) for build in builds for row in lines)
    assert not any(releases.runs_on(build, "8.3.RC1") for build in builds)
    assert not releases.runs_on("2.8.0", "8.5.0")


def test_a_build_between_two_compatible_ones_is_compatible_and_one_behind_the_last_is_not_known() -> None:
    releases = ascend_releases()
    assert releases.runs_on("2.9.0.post4", "8.5.0")
    assert not releases.runs_on("2.9.0.post99", "9.2.0")
    assert not releases.runs_on("2.7.1.post1", "8.5.0")
    assert not releases.newer_than_all("2.9.0.post99")
    assert releases.newer_than_all("2.14.0.post1")


@pytest.mark.parametrize(
    ("name", "why"),
    [("310B4", "a 310B is no 310P"), ("Ascend910A", "first 910 family"), ("910B", "first 910 family")],
)
def test_a_chip_between_families_is_told_from_the_one_it_looks_like(name: str, why: str) -> None:
    releases = ascend_releases()
    assert (releases.family(name), why in releases.outsider(name)) == (None, True)
    assert releases.outsider("910B4") == releases.outsider("950PR") == ""


def test_the_first_day_is_the_same_ten_commands_in_both_languages() -> None:
    pages = [
        (ROOT / "docs" / f"first-day{language}.md").read_text(encoding="utf-8") for language in ("", ".zh-CN")
    ]
    rows = [re.findall(r"^\| (\d+) \| `([^`]+)`", page, re.M) for page in pages]
    assert rows[0] == rows[1]
    assert [int(number) for number, _ in rows[0]] == list(range(1, 11))
    for _, command in rows[0]:
        for path in re.findall(r"(?:params|environment)/[\w.-]+", command):
            assert (ROOT / path).is_file(), path


@pytest.mark.parametrize("language", ["", ".zh-CN"])
def test_every_command_of_the_first_day_exists_with_its_options(language: str) -> None:
    page = (ROOT / "docs" / f"first-day{language}.md").read_text(encoding="utf-8")
    lines = re.findall(r"\.venv/bin/telechat-kit ([^`\n]+)", page)
    assert len(lines) == 8
    for line in lines:
        name, *words = shlex.split(line)
        context = cli.commands[name].make_context(name, words)  # refuses what the command does not know
        assert context.params
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
    assert set(re.findall(r"make ([a-z-]+)", page)) <= set(targets)


def test_the_first_day_names_the_time_that_the_shapes_give() -> None:
    row = next(fit for fit in fits() if (fit.model, fit.precision, fit.devices) == ("TeleChat-7B", "W8A8", 1))
    text = (ROOT / "docs" / "first-day.md").read_text(encoding="utf-8")
    assert f"a token takes {1000 / row.limit_tokens_per_second:.1f} ms" in text
    assert f"which is {row.limit_tokens_per_second:.0f} tokens/s" in text


def test_a_damaged_file_is_named_with_the_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("notebooks", "params"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "environment").mkdir()
    (tmp_path / "environment" / "versions.yaml").write_text("ascend: {operators: []}\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(KitError, match=r"versions\.yaml: ascend\.guide: Field required"):
        ascend_releases()

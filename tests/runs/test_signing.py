"""Signatures over a run: made and checked with a fresh key, and what is said when something is not as it should be."""

import shutil
import subprocess
from pathlib import Path

import pytest

from telechat_kit.comparison.run_data import read_run_data
from telechat_kit.errors import DataError, KitError
from telechat_kit.manifest import NAME, SIGNATURE, renew_manifest
from telechat_kit.runs.signing import check_signature, sign
from telechat_kit.runs.verification import verify
from telechat_kit.runs.verification_tables import signed_lines

with_ssh_keygen = pytest.mark.skipif(
    shutil.which("ssh-keygen") is None, reason="ssh-keygen is not installed (package openssh-client)"
)


@pytest.fixture
def run(tiny_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_run, tmp_path / "tiny"))


def new_key(path: Path) -> Path:
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", str(path)]
    subprocess.run(command, check=True)
    return path


def signers_file(path: Path, **keys: Path) -> Path:
    lines = [f"{name}@example.org {key.with_suffix('.pub').read_text()}" for name, key in keys.items()]
    path.write_text("".join(lines))
    return path


def said(run: Path, signers: Path) -> tuple[str, str]:
    """Verdict on the signature and what was found."""
    (finding,) = check_signature(read_run_data(run), signers)
    return finding.verdict, finding.found


@with_ssh_keygen
def test_a_signed_run_is_verified_and_says_who_signed(run: Path, tmp_path: Path) -> None:
    key, other = new_key(tmp_path / "key"), new_key(tmp_path / "other")
    signers = signers_file(tmp_path / "signers", bob=other, alice=key)
    assert sign(run, key) == run / SIGNATURE
    found = verify(run, repeat=False, signers=signers)
    assert found.good
    assert signed_lines(found)[0].startswith(
        "manifest.json, signed by alice@example.org (ED25519 key SHA256:"
    )
    assert verify(run, repeat=False).good
    assert any(finding.name == SIGNATURE for finding in verify(run, repeat=False).unchecked)
    sign(run, other)  # signing again replaces
    assert "bob@example.org" in signed_lines(verify(run, repeat=False, signers=signers))[0]


@with_ssh_keygen
def test_an_unsigned_run_and_a_key_that_nobody_named_do_not_pass(run: Path, tmp_path: Path) -> None:
    key, other = new_key(tmp_path / "key"), new_key(tmp_path / "other")
    signers = signers_file(tmp_path / "signers", bob=other)
    assert said(run, signers) == ("changed", "there is none")
    assert not verify(run, repeat=False, signers=signers).good
    sign(run, key)
    verdict, reason = said(run, signers)
    assert verdict == "changed"
    assert reason.startswith("ED25519 key SHA256:")
    assert "No principal matched" in reason


@with_ssh_keygen
def test_a_manifest_changed_since_and_a_damaged_signature_do_not_pass(run: Path, tmp_path: Path) -> None:
    key = new_key(tmp_path / "key")
    signers = signers_file(tmp_path / "signers", alice=key)
    signature = sign(run, key).read_text()
    (run / NAME).write_text((run / NAME).read_text().replace("hand", "run"))
    assert said(run, signers)[0] == "changed"
    assert "not a signature over this manifest.json" in said(run, signers)[1]
    assert not verify(run, repeat=False, signers=signers).good
    (run / SIGNATURE).write_text(signature[:100])
    assert said(run, signers)[0] == "changed"


@with_ssh_keygen
def test_a_signature_made_for_something_else_does_not_pass(run: Path, tmp_path: Path) -> None:
    key = new_key(tmp_path / "key")
    command = ["ssh-keygen", "-Y", "sign", "-f", str(key), "-n", "git", str(run / NAME)]
    subprocess.run(command, check=True, capture_output=True)
    assert said(run, signers_file(tmp_path / "signers", alice=key))[0] == "changed"


@with_ssh_keygen
def test_a_manifest_written_anew_has_no_signature(run: Path, tmp_path: Path) -> None:
    sign(run, new_key(tmp_path / "key"))
    (run / "report.md").write_text("another")
    renew_manifest(run)
    assert not (run / SIGNATURE).exists()


@with_ssh_keygen
def test_what_cannot_be_signed_is_said(run: Path, tmp_path: Path) -> None:
    key = new_key(tmp_path / "key")
    with pytest.raises(DataError, match=r"nokey does not exist. Make one with: ssh-keygen"):
        sign(run, tmp_path / "nokey")
    (tmp_path / "nonsense").write_text("no key")
    (tmp_path / "nonsense").chmod(0o600)
    with pytest.raises(KitError, match=r"ssh-keygen cannot sign with .*nonsense: .*Give a private key"):
        sign(run, tmp_path / "nonsense")
    assert not (run / SIGNATURE).exists()
    with pytest.raises(DataError, match=r"is a page alone\. Give the run folder"):
        sign(run / "report.html", key)
    (run / "report.md").write_text("another")
    with pytest.raises(DataError, match=r"is not what its manifest.json says \(report.md is .* run again"):
        sign(run, key)
    (run / NAME).unlink()
    with pytest.raises(DataError, match=r"holds no manifest\.json to sign"):
        sign(run, key)


def test_without_signers_or_ssh_keygen_the_remedy_is_said(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataError, match=r"signers file .*none does not exist. It holds a line for each"):
        verify(run, repeat=False, signers=tmp_path / "none")
    with pytest.raises(DataError, match=r"bears no signature\. Give the run folder"):
        verify(run / "report.html", repeat=False, signers=tmp_path / "none")
    (tmp_path / "key").touch()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(KitError, match=r"ssh-keygen is not installed.*openssh-client"):
        sign(run, tmp_path / "key")

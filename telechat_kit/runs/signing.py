"""Who stands for a run: a signature over its manifest, made and checked by `ssh-keygen -Y` (OpenSSH 8.2 or newer).

The manifest holds the hash of every file of the run, so a signature over it is one over all of them.
"""

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from telechat_kit.comparison.findings import CHANGED, SAME, Finding, unchecked
from telechat_kit.comparison.run_data import RunData, read_run_data
from telechat_kit.errors import DataError, KitError
from telechat_kit.files import resolve, write_text
from telechat_kit.manifest import NAME, SIGNATURE
from telechat_kit.messages import Message, marked
from telechat_kit.runs.bindings import check_manifest

#: What a signature is made for: one made for a letter or a commit does not pass for one over a run
NAMESPACE = "telechat-kit"
PART = marked("signature")
_FINGERPRINT = re.compile(r"\S+ key SHA256:\S+")


def sign(place: str | Path, key: str | Path) -> Path:
    """Sign the run folder `place` with a private SSH key, or a public one whose private half an agent holds.

    Raises:
        KitError: files are not those of the manifest, no key there, or ssh-keygen is missing or refuses.

    Example:
        >>> sign("results/tiny", "~/.ssh/id_ed25519")  # doctest: +SKIP
        PosixPath('results/tiny/manifest.json.sig')
    """
    run, key = read_run_data(place), resolve(key)
    if run.folder is None:
        raise DataError(
            "{place} is a page alone. Give the run folder: what is signed is its manifest.", place=place
        )
    _require_true_manifest(run, run.folder)
    if not key.is_file():
        raise DataError(
            "the key {key} does not exist. Make one with: ssh-keygen -t ed25519 -f {key}", key=key
        )
    ended = _ssh_keygen(run.folder, "sign", "-f", str(key), "-n", NAMESPACE)
    if ended.returncode or "BEGIN SSH SIGNATURE" not in ended.stdout:
        raise KitError(
            "ssh-keygen cannot sign with {key}: {said}. Give a private key of yours.",
            key=key,
            said=_said(ended),
        )
    return write_text(run.folder / SIGNATURE, ended.stdout)


def _require_true_manifest(run: RunData, folder: Path) -> None:
    if not (folder / NAME).is_file():
        raise DataError(
            "{folder} holds no {name} to sign. Run again: it is written at the end of a run.",
            folder=folder,
            name=NAME,
        )
    wrong = [finding for finding in check_manifest(run) if finding.verdict == CHANGED]
    if wrong:
        first = f"{wrong[0].name} is {wrong[0].found}"
        raise DataError(
            "{folder} is not what its {name} says ({first}; {count} in all), so it is not signed. Put the "
            "files back, or run again.",
            folder=folder,
            name=NAME,
            first=first,
            count=len(wrong),
        )


def check_signature(run: RunData, signers: str | Path | None) -> Iterator[Finding]:
    """Whether somebody whom the file `signers` names has signed the manifest as it lies there.

    Args:
        signers: an allowed signers file of OpenSSH: a line `NAME KEY-TYPE KEY` for each of them. None: nobody is
            asked for, and a signature is told as not checked.

    Raises:
        DataError: no such file, or a page alone.
    """
    path = run.folder / SIGNATURE if run.folder else None
    if signers is None:
        if path is not None and path.is_file():
            yield unchecked(PART, SIGNATURE, marked("name whom you trust with --signers FILE"))
        return
    if run.folder is None or path is None:
        raise DataError("{name} is a page alone and bears no signature. Give the run folder.", name=run.name)
    if not resolve(signers).is_file():
        raise DataError(
            "the signers file {resolve} does not exist. It holds a line for each: NAME KEY-TYPE KEY, as in "
            "the .pub file of the key.",
            resolve=resolve(signers),
        )
    if not path.is_file():
        yield Finding(SIGNATURE, marked("a signature"), marked("there is none"), CHANGED, PART)
        return
    yield _judged(run.folder, path, resolve(signers))


def _judged(folder: Path, path: Path, signers: Path) -> Finding:
    whole = _ssh_keygen(folder, "check-novalidate", "-n", NAMESPACE, "-s", str(path))
    if whole.returncode:
        reason = Message("not a signature over this {name}: {said}", name=NAME, said=_said(whole))
        return Finding(SIGNATURE, marked("a signature"), reason, CHANGED, PART)
    key = _FINGERPRINT.search(whole.stdout)
    named = key[0] if key else "a key"
    found = _ssh_keygen(folder, "find-principals", "-f", str(signers), "-s", str(path))
    for name in found.stdout.splitlines():
        words = ("-f", str(signers), "-I", name, "-n", NAMESPACE, "-s", str(path))
        if _ssh_keygen(folder, "verify", *words).returncode == 0:
            return Finding(
                Message("{file}, signed by {signer}", file=NAME, signer=name), named, named, SAME, PART
            )
    return Finding(
        SIGNATURE, Message("by one of {name}", name=signers.name), f"{named}: {_said(found)}", CHANGED, PART
    )


def _ssh_keygen(folder: Path, action: str, *words: str) -> "subprocess.CompletedProcess[str]":
    """Call `ssh-keygen -Y` on the manifest, which it reads from its standard input."""
    program = shutil.which("ssh-keygen")
    if program is None:
        raise KitError(
            "ssh-keygen is not installed: runs are signed, and signatures checked, by it. Install OpenSSH 8.2 or newer "
            "(package openssh-client)."
        )
    content = (
        (folder / NAME).read_text(encoding="utf-8", errors="replace") if (folder / NAME).is_file() else ""
    )
    return subprocess.run(
        [program, "-Y", action, *words], input=content, capture_output=True, text=True, encoding="utf-8",
        errors="replace", check=False,
    )  # fmt: skip


def _said(ended: "subprocess.CompletedProcess[str]") -> str:
    """What ssh-keygen said last, in a line; it ends its lines with CR LF."""
    lines = [line.strip() for line in (ended.stdout + ended.stderr).splitlines() if line.strip()]
    return (
        lines[-1].rstrip(".")[:200]
        if lines
        else Message("it ended with {returncode} and no word", returncode=ended.returncode)
    )

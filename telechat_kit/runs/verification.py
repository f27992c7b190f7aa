"""Verify a run: do its files belong together, do its figures follow from its raw data, and do they come out again?"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from telechat_kit.comparison.findings import CHANGED, LOST, SAME, UNCHECKED, Finding
from telechat_kit.comparison.plausibility import impossible_figures
from telechat_kit.comparison.recomputation import recomputed
from telechat_kit.comparison.run_data import RunData, read_run_data
from telechat_kit.files import resolve
from telechat_kit.messages import marked
from telechat_kit.runs.bindings import check_manifest, check_state
from telechat_kit.runs.origins import check_answer_files, check_origins, check_weights_told, made_again
from telechat_kit.runs.rebuilding import PAGES, check_notebooks, check_pages
from telechat_kit.runs.repetition import NOT, Verdict, judge, repeat_run, same_conditions, same_results
from telechat_kit.runs.signing import check_signature

VERIFIED, NOT_VERIFIED, NOTHING = (
    marked("verified"),
    marked("not verified"),
    marked("nothing could be checked"),
)
#: The same of a page alone: what is sound in the record behind it says nothing of what it shows
NOT_SHOWN = marked("what the page shows could not be checked")
ORIGIN = marked("A record alone cannot prove its origin: give the run folder.")


@dataclass(frozen=True)
class Verification:
    """What `verify` found.

    `good`: nothing that was looked at is otherwise than recorded, and something was. What could not be looked at
    stands in `unchecked`.
    """

    name: str
    findings: list[Finding]
    verdicts: list[Verdict] = field(default_factory=list)
    same_machine: bool = False
    alone: bool = False  # a page without its folder

    @property
    def wrong(self) -> list[Finding]:
        """What is otherwise than recorded."""
        return [finding for finding in self.findings if finding.verdict == CHANGED]

    @property
    def unchecked(self) -> list[Finding]:
        """What could not be checked, with the reason in `found`."""
        return [finding for finding in self.findings if finding.verdict in (LOST, UNCHECKED)]

    @property
    def outcome(self) -> str:
        """`verified`, `not verified`, or that nothing could be checked."""
        if self.wrong or any(v.verdict == NOT and not v.recorded.timed for v in self.verdicts):
            return NOT_VERIFIED
        # of a page alone what it shows must have been looked at: that its record is sound says nothing of it
        passed = any(f.verdict == SAME and (not self.alone or f.part == PAGES) for f in self.findings)
        return VERIFIED if passed or self.verdicts else NOTHING

    @property
    def outcome_said(self) -> str:
        """The outcome as a reader needs it: of a page alone, what could not be checked is what it shows."""
        return NOT_SHOWN if self.alone and self.outcome == NOTHING else self.outcome

    @property
    def good(self) -> bool:
        """Whether the outcome is `verified`."""
        return self.outcome == VERIFIED


def verify(
    place: str | Path, steps: Sequence[str] = (), repeat: bool = True, signers: str | Path | None = None
) -> Verification:
    """Check the run at `place` against itself and against what it was made from, and repeat it.

    Args:
        place: a run folder, or a report.html alone.
        steps: names of steps to repeat; none: all that the run has.
        repeat: without it nothing is run.
        signers: an allowed signers file of OpenSSH; one of those it names must have signed the run.

    Raises:
        DataError: no run there, or one that does not tell its parameters.

    Example:
        >>> verification = verify("results/tiny", repeat=False)
        >>> verification.good
        True
    """
    run = read_run_data(place)
    findings, verdicts, here = (
        list(_checks(run, resolve(place), signers)),
        list[Verdict](),
        same_conditions(run),
    )
    if repeat:
        repeated = repeat_run(run, steps)
        findings = made_again(findings, run, repeated)
        verdicts = judge(run, repeated)
        weights = [f for f in findings if f.name.endswith("weights") or f.name.endswith("made again")]
        if here and all(finding.verdict == SAME for finding in weights):
            findings += same_results(run, repeated)
    return Verification(run.name, findings, verdicts, here, alone=run.folder is None)


def _checks(run: RunData, page: Path, signers: str | Path | None) -> Iterator[Finding]:
    yield from check_signature(run, signers)
    yield from check_manifest(run)
    yield from check_state(run)
    yield from impossible_figures(run)
    yield from recomputed(run)
    yield from check_answer_files(run)
    yield from check_origins(run)
    yield from check_weights_told(run)
    yield from check_pages(run, None if run.folder else page)
    yield from check_notebooks(run)

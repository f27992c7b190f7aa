"""May this be shipped? Each limit of a profile against the figures of a run: pass, look or fail."""

from collections.abc import Sequence
from dataclasses import dataclass

from telechat_kit.comparison.changes import Change, change, figures
from telechat_kit.comparison.comparable import impossible
from telechat_kit.comparison.rules import FLOAT, LIMITED, Limit, parse_limits
from telechat_kit.comparison.run_data import RunData, read_run_data
from telechat_kit.comparison.verdict import KIND_NAMES, Verdict, shown, verdict
from telechat_kit.errors import DataError, ParameterError
from telechat_kit.statistics import Estimate

#: "look": the interval holds the limit, or there is no figure to hold against it
PASS, LOOK, FAIL = LIGHTS = ("pass", "look", "fail")


@dataclass(frozen=True)
class Light:
    """What a limit says of a run: the state, the figure that decides it, and where it was found or why there is none."""

    limit: Limit
    state: str
    figure: str
    where: str

    @property
    def asked(self) -> str:
        """The limit in words."""
        limit, name = self.limit, LIMITED[self.limit.figure][1]
        against = f", times that of {limit.against}" if limit.against else ""
        scope = f", on {_name(limit.where)}" if limit.where else ", on every text" if limit.by_text else ""
        return f"{name}{scope}{against}: {limit.operator} {limit.number:g}"


def judge_limits(run: RunData, texts: Sequence[str]) -> list[Light]:
    """A light for each limit, in their order.

    Raises:
        DataError: the run has no precision record.
        ParameterError: a text is no limit.
    """
    if run.precision is None:
        raise DataError(f"{run.name} has no precision.json, which limits need. Run 03_precision.")
    found = verdict(run.precision, run.quantize, run.performance)
    return [_judge(limit, found, run) for limit in parse_limits(texts)]


def worst_state(lights: Sequence[Light]) -> str:
    """The state of the whole run: the worst of its lights; `pass` only if there is at least one."""
    states = {light.state for light in lights}
    return FAIL if FAIL in states else LOOK if LOOK in states or not states else PASS


def answer(lights: Sequence[Light]) -> str:
    """May this be shipped, in a sentence."""
    state, count = worst_state(lights), len(lights)
    open_ones = sum(light.state == LOOK for light in lights)
    missed = sum(light.state == FAIL for light in lights)
    if not lights:
        return "May this be shipped? Not judged: the profile sets no limits."
    if state == PASS:
        return f"May this be shipped? Yes: all {count} limits are kept."
    if state == FAIL:
        return f"May this be shipped? No: {missed} of {count} limits are not kept, {open_ones} are open."
    return f"May this be shipped? Look first: {open_ones} of {count} limits are open, the others are kept."


def _judge(limit: Limit, found: Verdict, run: RunData) -> Light:
    if limit.by_text:
        return _judge_texts(limit, found)
    if limit.figure == "equal_answers":
        share = found.answers_equal / found.answers if found.answers else None
        return _judge_exact(limit, share, "{:.0%}", f"{found.answers} answers")
    if limit.against != FLOAT:
        return _judge_against(limit, run)
    if limit.figure == "w8a8_bytes":
        return _judge_exact(limit, found.size_ratio, "{:.2f} times", "weight files")
    return _judge_speed(limit, found)


def _judge_exact(limit: Limit, value: float | None, shape: str, where: str) -> Light:
    if value is None:
        return Light(limit, LOOK, "–", "not measured")
    return Light(limit, _exact(limit, value), shape.format(value), where)


def _judge_texts(limit: Limit, found: Verdict) -> Light:
    """The worst light of all texts, or of the one that is named."""
    values = {
        loss.text: {
            "kl_mean": loss.kl,
            "perplexity_ratio": loss.perplexity_ratio,
            "top1_agreement": loss.same_token,
        }[limit.figure]
        for loss in found.losses
    }
    if limit.where:
        name = _name(limit.where)
        if name not in values:
            return Light(limit, LOOK, "–", f"no such text was read; there are {', '.join(values)}")
        values = {name: values[name]}
    sign = 1 if limit.is_ceiling else -1
    if wrong := {
        name: why for name, estimate in values.items() if (why := impossible(limit.figure, estimate))
    }:
        name, why = next(iter(wrong.items()))
        return Light(limit, FAIL, "–", f"{name}: {why}")
    name, estimate = max(
        values.items(), key=lambda item: (LIGHTS.index(_state(limit, item[1])), sign * item[1].value)
    )
    return Light(limit, _state(limit, estimate), shown(estimate), name)


def _judge_speed(limit: Limit, found: Verdict) -> Light:
    if found.speed is None:
        return Light(limit, LOOK, "–", "the run has no performance.json")
    speed = found.speed
    if speed.ratio is None:
        return Light(limit, LOOK, "–", f"the runs of all {speed.unstable} cases vary too much")
    left = f", {speed.unstable} left out: their runs vary too much" if speed.unstable else ""
    return Light(
        limit, _state(limit, speed.ratio), f"{shown(speed.ratio)} times", f"{speed.cases} cases{left}"
    )


def _judge_against(limit: Limit, run: RunData) -> Light:
    """A figure against that of another run, if the two can be compared."""
    try:
        other = read_run_data(limit.against)
    except (DataError, ParameterError) as error:
        return Light(limit, LOOK, "–", str(error))
    before, now = figures(other).get(limit.figure), figures(run).get(limit.figure)
    found = change(limit.figure, before, now, (other, run))
    if not isinstance(found, Change):
        return Light(limit, LOOK, "–", found.reason if found else f"not in both runs: {limit.figure}")
    return Light(limit, _state_of(limit, found), f"{shown(found.ratio)} times", found.basis)


def _state_of(limit: Limit, found: Change) -> str:
    return _state(limit, found.ratio) if found.ratio.coverage else _exact(limit, found.ratio.value)


def _state(limit: Limit, estimate: Estimate) -> str:
    """`look` where the interval holds the limit, or there is no interval."""
    if not estimate.coverage:
        return LOOK
    inside, outside = (estimate.high, estimate.low) if limit.is_ceiling else (estimate.low, estimate.high)
    if limit.keeps(inside):
        return PASS
    return LOOK if limit.keeps(outside) else FAIL


def _exact(limit: Limit, value: float) -> str:
    return PASS if limit.keeps(value) else FAIL


def _name(kind: str) -> str:
    return KIND_NAMES.get(kind, kind)

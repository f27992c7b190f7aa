"""May this be shipped? Each limit of a profile against the figures of a run: pass, look or fail."""

from collections.abc import Sequence
from dataclasses import dataclass

from telechat_kit.comparison.changes import Change, change, figures
from telechat_kit.comparison.comparable import impossible
from telechat_kit.comparison.rules import FLOAT, LIMITED, Limit, parse_limits
from telechat_kit.comparison.run_data import RunData, read_run_data
from telechat_kit.comparison.verdict import Verdict, kind_name, shown, verdict
from telechat_kit.errors import DataError, ParameterError
from telechat_kit.messages import gettext as _
from telechat_kit.messages import marked, ngettext
from telechat_kit.statistics import Estimate

#: "look": the interval holds the limit, or there is no figure to hold against it
PASS, LOOK, FAIL = LIGHTS = (marked("pass"), marked("look"), marked("fail"))


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
        limit = self.limit
        message = (
            _("{figure}, times that of {other}: {bound}")
            if limit.against
            else _("{figure}, on {text}: {bound}")
            if limit.where
            else _("{figure}, on every text: {bound}")
            if limit.by_text
            else _("{figure}: {bound}")
        )
        return message.format(
            figure=_(LIMITED[limit.figure][1]),
            other=_("float") if limit.against == FLOAT else limit.against,
            text=kind_name(limit.where),
            bound=f"{limit.operator} {limit.number:g}",
        )


def judge_limits(run: RunData, texts: Sequence[str]) -> list[Light]:
    """A light for each limit, in their order.

    Raises:
        DataError: the run has no precision record.
        ParameterError: a text is no limit.
    """
    if run.precision is None:
        raise DataError("{name} has no precision.json, which limits need. Run 03_precision.", name=run.name)
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
        return _("May this be shipped? Not judged: the profile sets no limits.")
    if state == PASS:
        message = ngettext(
            "May this be shipped? Yes: the one limit is kept.",
            "May this be shipped? Yes: all {count} limits are kept.",
            count,
        )
    elif state == FAIL:
        message = _("May this be shipped? No: {missed} of {count} limits are not kept, {open} are open.")
    else:
        message = _(
            "May this be shipped? Look first: {open} of {count} limits are open, the others are kept."
        )
    return message.format(count=count, missed=missed, open=open_ones)


def _judge(limit: Limit, found: Verdict, run: RunData) -> Light:
    if limit.by_text:
        return _judge_texts(limit, found)
    if limit.figure == "equal_answers":
        share = found.answers_equal / found.answers if found.answers else None
        return _judge_exact(limit, share, "{:.0%}", _answers(found.answers))
    if limit.against != FLOAT:
        return _judge_against(limit, run)
    if limit.figure == "w8a8_bytes":
        return _judge_exact(limit, found.size_ratio, _("{:.2f} times"), _("weight files"))
    return _judge_speed(limit, found)


def _judge_exact(limit: Limit, value: float | None, shape: str, where: str) -> Light:
    if value is None:
        return Light(limit, LOOK, "–", _("not measured"))
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
        name = kind_name(limit.where)
        if name not in values:
            return Light(
                limit,
                LOOK,
                "–",
                _("no such text was read; there are {texts}").format(texts=", ".join(values)),
            )
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
        return Light(limit, LOOK, "–", _("the run has no performance.json"))
    speed = found.speed
    if speed.ratio is None:
        why = ngettext(
            "the runs of the only case vary too much",
            "the runs of all {count} cases vary too much",
            speed.unstable,
        )
        return Light(limit, LOOK, "–", why.format(count=speed.unstable))
    where = ngettext("{count} case", "{count} cases", speed.cases).format(count=speed.cases)
    if speed.unstable:
        message = _("{cases}, {left} left out: their runs vary too much")
        where = message.format(cases=where, left=speed.unstable)
    return Light(limit, _state(limit, speed.ratio), _times(speed.ratio), where)


def _times(ratio: Estimate) -> str:
    return _("{ratio} times").format(ratio=shown(ratio))


def _answers(count: int) -> str:
    return ngettext("{count} answer", "{count} answers", count).format(count=count)


def _judge_against(limit: Limit, run: RunData) -> Light:
    """A figure against that of another run, if the two can be compared."""
    try:
        other = read_run_data(limit.against)
    except (DataError, ParameterError) as error:
        return Light(limit, LOOK, "–", str(error))
    before, now = figures(other).get(limit.figure), figures(run).get(limit.figure)
    found = change(limit.figure, before, now, (other, run))
    if not isinstance(found, Change):
        return Light(
            limit,
            LOOK,
            "–",
            found.reason if found else _("not in both runs: {figure}").format(figure=limit.figure),
        )
    return Light(limit, _state_of(limit, found), _times(found.ratio), found.basis)


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

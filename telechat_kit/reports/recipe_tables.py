"""What a recipe is made of, a sentence for each choice, and whether method best was worth it on this model."""

import pandas as pd
from pandas.io.formats.style import Styler

from telechat_kit.comparison.verdict import shown
from telechat_kit.messages import gettext as _
from telechat_kit.messages import marked
from telechat_kit.quantization.calibration.groups import BEST
from telechat_kit.quantization.calibration.passes import BEST_EXPONENTS
from telechat_kit.quantization.pipeline import QuantizeRecord
from telechat_kit.quantization.recipe import UP_PROJ, AppliedRecipe
from telechat_kit.reports.tables import styled
from telechat_kit.statistics import Estimate

_METHODS = {
    "none": marked("No channel is scaled."),
    "m1": marked("SmoothQuant with exponent 0.5: what norms feed."),
    "m2": marked("Outlier suppression: what norms feed, the threshold searched."),
    "m3": marked("AWQ: what norms feed, the exponent searched."),
    "m4": marked("SmoothQuant with exponent 0.9: what norms, values and up_proj feed."),
}
_INGREDIENTS = {
    "up_proj": marked(
        "The loss of int8 sits in what down_proj reads: its channels are scaled in rows of up_proj."
    ),
    "values": marked("Channels of the values are scaled against the columns of dense."),
    "signs": marked(
        "Channels are negated so that large values lie on one side, and a static range has finer steps."
    ),
    "random_tokens": marked(
        "Ranges hold what random tokens reach too: a text of some thousand tokens misses channels."
    ),
    "splitting": marked(
        "Channels whose weights make the steps of a whole row coarse become several smaller ones."
    ),
    "rounding": marked(
        "Weights are rounded so that later columns make up for the error of earlier ones (GPTQ)."
    ),
    "bias": marked("The mean error of dense and down_proj goes into their bias."),
    "rotation": marked("Stream and values are turned by Hadamard matrices, so that no channel stands out."),
    "online_rotation": marked(
        "What down_proj reads is evened out and turned as the model runs (R4): there the loss of int8 sits."
    ),
}


def choices(record: QuantizeRecord) -> Styler:
    """What was chosen against outliers, and why."""
    used = record.recipe
    rows = [(_("weights"), _("given; how they were made is not known"))] if used is None else _choices(used)
    return styled(pd.DataFrame(rows, columns=[_("choice"), _("why")]))


def _choices(used: AppliedRecipe) -> list[tuple[str, str]]:
    if used.anti_outlier != BEST:
        return [(used.anti_outlier, _(_METHODS[used.anti_outlier]))]
    norms, products = BEST_EXPONENTS[used.spread]
    why = {
        "static": _("One range holds all tokens and channels, so channels are brought close to one size."),
        "turned": _("A rotation has evened channels out before; a static range wants the rest of it."),
        "dynamic": _(
            "Each token has a scale of its own: what is not moved into the weights cannot cost there."
        ),
    }[used.spread]
    scaled = _("exponent {norms} behind norms").format(norms=norms)
    if UP_PROJ in used.ingredients:
        scaled = _("exponent {norms} behind norms, {products} behind up_proj").format(
            norms=norms, products=products
        )
    return [(scaled, why), *((name, _(_INGREDIENTS[name])) for name in used.ingredients)]


def beside_m1(record: QuantizeRecord) -> Styler:
    """KL of best and of m1 on text that neither was calibrated on, and what follows."""
    found = record.beside_m1
    if found is None:
        told = _("not measured: only method best is, where calibration on blocks leaves some of its texts")
        return styled(pd.DataFrame({_("beside m1"): [told]}))
    if found.change.low > 0:
        verdict = _("best loses less, by {change}").format(change=shown(found.change))
    elif found.change.high < 0:
        verdict = _("m1 loses less here, by {change}: quantize with anti_outlier m1").format(
            change=shown(_reversed(found.change))
        )
    else:
        verdict = _("no difference is shown: {change}").format(change=shown(found.change))
    measured = _("KL from float, nats per token, {samples} samples, {tokens} tokens").format(
        samples=found.samples, tokens=f"{found.tokens:,}"
    )
    rows = [("best", shown(found.kl)), ("m1", shown(found.kl_m1)), (_("m1 less best"), verdict)]
    return styled(pd.DataFrame(rows, columns=[_("method"), measured]))


def _reversed(change: Estimate) -> Estimate:
    """The same difference the other way round."""
    return Estimate(-change.value, -change.high, -change.low, change.coverage)

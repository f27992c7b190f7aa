"""How a checkpoint was quantized, and what is said of each linear."""

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import Any

from telechat_kit.errors import ParameterError
from telechat_kit.model.folder import DYNAMIC, FLOAT, STATIC
from telechat_kit.model.layout import LAYOUTS
from telechat_kit.quantization.calibration.groups import BEST
from telechat_kit.quantization.levels.fallback import AUTO, is_list

#: What method best can be made of beside scaled norms; all by default
UP_PROJ, VALUES, SIGNS, RANDOM_TOKENS, SPLITTING, ROUNDING, BIAS, ROTATION, ONLINE_ROTATION = INGREDIENTS = (
    "up_proj",
    "values",
    "signs",
    "random_tokens",
    "splitting",
    "rounding",
    "bias",
    "rotation",
    "online_rotation",
)

REFINEMENTS = {ROUNDING, BIAS}
#: Those that shape static ranges: dynamic activations have none
RANGES = {SIGNS, RANDOM_TOKENS}
#: What "all" means: the recipe of the least loss on the worst kind of text that every format carries, and "online": of
#: those that the kit itself runs. Turned values need no scales of their own, and a rotation of their own axes no negated
#: channels.
SETS = {
    "all": {
        "static": (UP_PROJ, VALUES, SIGNS, RANDOM_TOKENS, SPLITTING, ROUNDING, BIAS),
        "dynamic": (UP_PROJ, SPLITTING, ROUNDING, BIAS, ROTATION),
    },
    "online": {
        "static": (RANDOM_TOKENS, ROUNDING, BIAS, ROTATION, ONLINE_ROTATION),
        "dynamic": (ROUNDING, BIAS, ROTATION, ONLINE_ROTATION),
    },
}


def parse_ingredients(text: str, activations: str = "static") -> list[str]:
    """The ingredients of method best that a parameter names: "all" or "online" (`SETS`), "none", or some with commas."""
    if text == "none":
        return []
    if text in SETS:
        return list(SETS[text][activations])
    names = [name.strip() for name in text.split(",")]
    if unknown := [name for name in names if name not in INGREDIENTS]:
        known = ", ".join(INGREDIENTS)
        raise ParameterError(
            'ingredient "{unknown}" is unknown. Use all, online, none, or some of {known}.',
            unknown=unknown[0],
            known=known,
        )
    if activations != "static" and (idle := RANGES.intersection(names)):
        raise ParameterError(
            'ingredient "{idle}" shapes the ranges of static activations; dynamic ones have none. Leave it '
            "out.",
            idle=sorted(idle)[0],
        )
    _check_online(names)
    return [name for name in INGREDIENTS if name in names]


def _check_online(names: Collection[str]) -> None:
    """Refuse a rotation of down_proj's input beside what does not know of it."""
    if ONLINE_ROTATION not in names:
        return
    for other in (UP_PROJ, SPLITTING):  # both work on channels that are mixed by then
        if other in names:
            raise ParameterError(
                'ingredients "online_rotation" and "{other}" exclude each other. Name one.', other=other
            )


@dataclass(frozen=True)
class AppliedRecipe:
    """How a checkpoint was quantized. Equal recipes on equal weights give equal files.

    `calibration_blocks` are the ranges of the text's joined tokens that calibration has seen.
    """

    level: str
    anti_outlier: str
    act_method: int
    group_fallback: bool
    calibration_source: str
    calibration_sha256: str
    calibration_blocks: list[tuple[int, int]]
    seed: int
    source_weights: str
    source_tokenizer: str
    activations: str = "static"
    ingredients: list[str] = field(default_factory=list)  # of method best
    split_channels: int = 0  # feed-forward channels added by splitting
    random_vocabulary: int = 0  # ids that random tokens are drawn from; 0 without them
    budget: str = ""  # of level auto
    budget_samples: int = 0  # calibration samples that level auto measures on
    calibration_format: str = "blocks"  # "blocks", "lines", "chat"
    calibration_lines: list[int] = field(default_factory=list)  # number in the file of each sample's line
    calibration_cut: list[tuple[int, int]] = field(default_factory=list)  # line cut, its tokens before
    calibration_sample_tokens: list[int] = field(default_factory=list)
    calibration_samples_sha256: str = ""  # of the token ids
    #: of each kind where several texts were named: kind, source, sha256, blocks, tokens
    calibration_kinds: list[dict[str, Any]] = field(default_factory=list)

    @property
    def kind(self) -> str:
        """What descriptions call the int8 linears."""
        return DYNAMIC if self.activations == "dynamic" else STATIC

    @property
    def unscaled(self) -> tuple[str, ...]:
        """Feeders that method best leaves alone, for want of an ingredient."""
        if self.anti_outlier != BEST:
            return ()
        feeders = [(UP_PROJ, LAYOUTS[0].up), *((VALUES, layout.value) for layout in LAYOUTS)]
        return tuple(feeder for name, feeder in feeders if name not in self.ingredients)

    @property
    def spread(self) -> str:
        """How far channels are to be brought to one size: "static", "dynamic", or "turned" static ones.

        A rotation has evened them out already.
        """
        turned = self.activations == "static" and ROTATION in self.ingredients
        return "turned" if turned else self.activations

    @property
    def by_noise(self) -> bool:
        """Whether a number of linears in float is found by the noise of int8, not by the reference's sensitivity.

        Sensitivity looks for outliers; after method best there are none left to tell linears apart.
        """
        counted = self.level != AUTO and not is_list(self.level)
        return self.anti_outlier == BEST and counted and self.level != "L0"

    @property
    def refined(self) -> bool:
        """Whether blocks are refined after calibration."""
        return not REFINEMENTS.isdisjoint(self.ingredients)


@dataclass(frozen=True)
class LinearRecord:
    """One block linear after calibration; None is what was not measured.

    The `input_` figures are of its input as the linear reads it, `raw_` ones of the same without outlier
    suppression. A channel counts by its largest absolute value over the calibration samples.
    """

    name: str
    kind: str  # "W8A8", "W8A8_DYNAMIC" or "FLOAT"
    score: float | None
    low: float | None  # of the static range, as are the next three
    high: float | None
    input_scale: float | None
    input_offset: int | None
    input_absmax: float | None = None  # of the largest channel
    input_median: float | None = None  # median over the channels
    raw_absmax: float | None = None
    raw_median: float | None = None
    dead_inputs: int = 0  # channels of the input that were 0 on every sample
    dead_outputs: int = 0  # rows of the weight that are 0
    output_snr_db: float | None = None  # energy of the float output over that of its int8 error, dB
    clipped_share: float | None = None  # of the input's values, by the range known when they came
    #: energy of that error over that of the residual stream, estimated; in float what int8 would give, if tried
    residual_noise: float | None = None

    def in_float(self) -> "LinearRecord":
        """The record of the same linear when it stays in float after all; the noise is what int8 would give."""
        return replace(
            self, kind=FLOAT, low=None, high=None, input_scale=None, input_offset=None,
            output_snr_db=None, clipped_share=None,
        )  # fmt: skip

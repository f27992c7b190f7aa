"""What a quantization is asked for, by the names of the parameters of `02_quantize`; the defaults stand here."""

from dataclasses import dataclass
from pathlib import Path

from telechat_kit.records import require_types


@dataclass(frozen=True)
class Recipe:
    """How W8A8 weights are made.

    Attributes:
        level: linears kept in float: L0, L5 ... (the most sensitive), auto, or names and patterns with commas.
            "auto" keeps those that `budget` buys.
        budget: of level auto, met by measuring: "5 linears" at most, or "KL 0.02" (nats per token). The first keeps
            those that lower the KL from float most, the second as few as reach that KL.
        budget_samples: calibration samples that level auto measures on. The first ones are taken.
        anti_outlier: outlier suppression: none, m1 (SmoothQuant), m2, m3 (AWQ), m4, best. m2 searches a threshold; m4
            is SmoothQuant with exponent 0.9 that also smooths up_proj -> down_proj and value -> dense; best is the
            kit's own: the groups of m4 with other exponents, and what `ingredients` says.
        ingredients: of best: all, online, none, or some of up_proj, values, signs, random_tokens, splitting, rounding, bias, rotation, online_rotation.
            Beside scaled norms: the two further groups, one side of each range kept small, ranges that hold what
            random tokens reach too, feed-forward channels split, GPTQ, biases corrected; with commas between them.
            Also rotation (of the residual stream and of the values; a tied head becomes a table of its own) and
            online_rotation (of down_proj's input, at run time). all: what loses least on the worst kind of text and goes
            into every format: rotation for dynamic activations, ranges, signs and scaled values for static. online:
            what loses least in the kit itself, with both rotations.
        act_method: range of static activations: 1 min-max, 2 histogram, 3 automatic.
        activations: static: one range for a linear; dynamic: one scale for each token. Ranges are found by
            calibration, scales while the model runs (W8A8_DYNAMIC; not for the 310P's operator).
        group_fallback: linears that read the same input stay in float together.

    Example:
        >>> recipe = Recipe("L2", anti_outlier="m1")
        >>> recipe.activations
        'static'
    """

    level: str = "L5"
    budget: str = "5 linears"
    budget_samples: int = 4
    anti_outlier: str = "best"
    ingredients: str = "all"
    act_method: int = 1
    activations: str = "static"
    group_fallback: bool = True

    def __post_init__(self) -> None:
        require_types(self)


@dataclass(frozen=True)
class Calibration:
    """On which samples ranges, outliers and sensitivities are found.

    Attributes:
        calibration_path: texts with commas: kit, pydoc_data.topics, text or .jsonl files; empty: the lines of jsonl_path.
            Each gives as many samples; "kit" are the kit's own in Chinese, English, code and chat.
        jsonl_path: {"input": ...} lines.
        calibration_format: samples: blocks of the joined text, lines of a .jsonl file, or those as chat prompts.
            One of "blocks", "lines" and "chat".
        calibration_lines: which lines: seed, all, or line numbers such as 3,17,20-25. "seed" draws
            `calibration_samples` of them.
        calibration_samples: number of calibration samples drawn by seed.
        calibration_tokens: tokens in each calibration sample, at most.
        seed: draws calibration samples and evaluation sequences. Random tokens of `best` as well.

    Example:
        >>> calibration = Calibration("pydoc_data.topics", calibration_samples=2, calibration_tokens=32)
        >>> calibration.source
        'pydoc_data.topics'
    """

    calibration_path: str | Path = "kit, pydoc_data.topics"
    jsonl_path: str | Path = "params/data/questions.jsonl"
    calibration_format: str = "blocks"
    calibration_lines: str = "seed"
    calibration_samples: int = 16
    calibration_tokens: int = 512
    seed: int = 0

    def __post_init__(self) -> None:
        require_types(self)

    @property
    def source(self) -> str:
        """The text or file that the samples are cut from."""
        return str(self.calibration_path or self.jsonl_path)

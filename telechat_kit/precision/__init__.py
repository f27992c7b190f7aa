"""Float against W8A8: divergence over a text, answers side by side, where the loss comes from, tasks.

The way is: `inference.model_pair` (both models) -> `positions` (what differs at each token) -> `divergence` (figures
with intervals); `channel_scales` and `sources` look inside; `answers` and `tasks` ask; `evaluation` calls all of it.
"""

from telechat_kit.inference.model_pair import Pair, evaluation_blocks
from telechat_kit.precision.answers import Answer, answer_lines, write_answers
from telechat_kit.precision.divergence import Divergence, Group, measure_divergence, measure_languages
from telechat_kit.precision.evaluation import (
    SCHEMA,
    Evaluation,
    PrecisionMeasurement,
    PrecisionRecord,
    measure_precision,
)
from telechat_kit.precision.kinds import KindLoss, measure_kinds
from telechat_kit.precision.positions import CHUNK
from telechat_kit.precision.sources import Sources, measure_sources
from telechat_kit.precision.tasks import TaskResult, measure_tasks

__all__ = [
    "CHUNK",
    "SCHEMA",
    "Answer",
    "Divergence",
    "Evaluation",
    "Group",
    "KindLoss",
    "Pair",
    "PrecisionMeasurement",
    "PrecisionRecord",
    "Sources",
    "TaskResult",
    "answer_lines",
    "evaluation_blocks",
    "measure_divergence",
    "measure_kinds",
    "measure_languages",
    "measure_precision",
    "measure_sources",
    "measure_tasks",
    "write_answers",
]

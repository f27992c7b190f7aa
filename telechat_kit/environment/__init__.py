"""What is here against what is needed: versions, device and its software, memory, disk, the checkpoint."""

from telechat_kit.environment.check import Check, to_do
from telechat_kit.environment.checkpoint_checks import (
    EMBEDDED_MODELS,
    Part,
    make_embedded,
    model_parts,
    prepare_checkpoint,
)
from telechat_kit.environment.operator_results import (
    OperatorTest,
    OperatorTests,
    sentences,
    use_tested_operators,
)
from telechat_kit.environment.operator_tests import ROWS, check_operators
from telechat_kit.environment.parcel import write_parcel
from telechat_kit.environment.releases import required_versions
from telechat_kit.environment.setup import SCHEMA, SetupRecord, check, check_setup

__all__ = [
    "EMBEDDED_MODELS",
    "ROWS",
    "SCHEMA",
    "Check",
    "OperatorTest",
    "OperatorTests",
    "Part",
    "SetupRecord",
    "check",
    "check_operators",
    "check_setup",
    "make_embedded",
    "model_parts",
    "prepare_checkpoint",
    "required_versions",
    "sentences",
    "to_do",
    "use_tested_operators",
    "write_parcel",
]

"""The face of the package: its verbs by name, and what importing it does."""

import subprocess
import sys

import pytest

import telechat_kit

KINDS = """
{first}
{second}
print(transformers.AutoConfig.for_model("telechat").__class__.__module__)
"""


@pytest.mark.parametrize("name", telechat_kit.__all__)
def test_every_name_is_there_and_documented(name: str) -> None:
    assert getattr(telechat_kit, name).__doc__
    assert name in dir(telechat_kit)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="quantise"):
        _ = telechat_kit.quantise  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "imports",
    [
        ("import telechat_kit", "import transformers"),
        ("import transformers", "import telechat_kit"),
        ("import telechat_kit.model", "import transformers"),
    ],
)
def test_transformers_knows_telechat_whichever_is_imported_first(imports: tuple[str, str]) -> None:
    code = KINDS.format(first=imports[0], second=imports[1])
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert shown.stdout.strip() == "telechat_kit.model.configuration", shown.stderr

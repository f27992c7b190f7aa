"""Tables for programs: every figure becomes numbers, and nothing else does."""

import pytest

from telechat_kit.reports.plain_numbers import plain_numbers


@pytest.mark.parametrize(
    ("cells", "columns"),
    [
        (["1.13 [1.08, 1.18] times"], {"a (times)": ["1.13"], "a, low": ["1.08"], "a, high": ["1.18"]}),
        (
            ["13 [8, 18] % of positions", "0.43 times", "–"],
            {
                "a": ["13", "0.43", ""],
                "a, low": ["8", "", ""],
                "a, high": ["18", "", ""],
                "a, unit": ["% of positions", "times", ""],
            },
        ),
        (["21.3–22.7", "1,274.7 – 2,303.5"], {"a, low": ["21.3", "1274.7"], "a, high": ["22.7", "2303.5"]}),
        (["591.3 MB", "1,252.3 MB"], {"a (MB)": ["591.3", "1252.3"]}),
        (["18%", "71%"], {"a (%)": ["18", "71"]}),
        (["-0.371 – +0.190"], {"a, low": ["-0.371"], "a, high": ["0.190"]}),
        (["1.013x [0.990, 1.037] *"], {"a (x)": ["1.013"], "a, low": ["0.990"], "a, high": ["1.037"]}),
        (["float", "W8A8"], {"a": ["float", "W8A8"]}),
        (["2.13.0", "3.11.7"], {"a": ["2.13.0", "3.11.7"]}),
        (["10 / 100", "mean"], {"a": ["10 / 100", "mean"]}),
        (["5", "not recorded"], {"a": ["5", "not recorded"]}),
        (
            ["1.2 [1.1, 1.3]", "not shown"],
            {"a": ["1.2", "not shown"], "a, low": ["1.1", ""], "a, high": ["1.3", ""]},
        ),
        (["", "–"], {"a": ["", "–"]}),
    ],
)
def test_a_column_of_figures_becomes_columns_of_numbers(
    cells: list[str], columns: dict[str, list[str]]
) -> None:
    header, *rows = plain_numbers([["a"], *([cell] for cell in cells)])
    assert {name: [row[i] for row in rows] for i, name in enumerate(header)} == columns


def test_short_rows_are_filled_and_other_columns_stay() -> None:
    assert plain_numbers([["name", "n"], ["x", "1,000"], ["y"]]) == [["name", "n"], ["x", "1000"], ["y", ""]]

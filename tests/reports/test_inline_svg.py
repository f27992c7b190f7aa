"""Charts inside a page: text stays text, values on hover, colors of the page, and nothing that acts."""

import re
from xml.etree import ElementTree as ET

import pytest
from matplotlib.figure import Figure

from telechat_kit.reports.inline_svg import ON_COLOR, hover, inline_svg, is_inline_svg

SVG = "{http://www.w3.org/2000/svg}"


def drawn(hatch: str = "") -> Figure:
    figure = Figure(figsize=(4, 2))
    axes = figure.add_subplot()
    bars = axes.bar([0, 1], [1, 2], hatch=hatch, color="#0072B2")
    hover(bars[0], 'float & "W8A8" <1>')
    (marks,) = axes.plot([0, 1], [1, 2], "o-")
    hover(marks, ["first", "second"])
    axes.set_title("困惑度")
    axes.text(0, 0.5, "on a bar", color=ON_COLOR)
    return figure


def test_text_is_text_and_colors_are_the_page_s() -> None:
    root = ET.fromstring(inline_svg(drawn(), "two bars"))
    texts = {text.text for text in root.iter(f"{SVG}text")}
    assert {"困惑度", "on a bar"} <= texts
    assert root.attrib["aria-label"] == "two bars"
    styles = [element.attrib.get("style", "") for element in root.iter() if element.tag != f"{SVG}text"]
    assert not any("#000000" in style or "#ffffff" in style for style in styles)
    assert any("stroke: currentColor" in style for style in styles)
    on_bar = next(text for text in root.iter(f"{SVG}text") if text.text == "on a bar")
    assert ON_COLOR in on_bar.attrib["style"]


def test_each_mark_shows_its_own_value() -> None:
    root = ET.fromstring(inline_svg(drawn(), ""))
    owners = {
        element[0].text: element
        for element in root.iter()
        if len(element) and element[0].tag == f"{SVG}title"
    }
    assert list(owners) == ['float & "W8A8" <1>', "first", "second"]
    assert owners["first"].tag == owners["second"].tag == f"{SVG}use"


def test_marks_that_are_not_drawn_leave_one_text_for_all() -> None:
    figure = drawn()
    figure.axes[0].set_xlim(-0.5, 0.5)  # the second mark lies outside
    titles = [title.text for title in ET.fromstring(inline_svg(figure, "")).iter(f"{SVG}title")]
    assert "first; second" in titles or titles[-2:] == ["first", "second"]


def test_two_charts_of_a_page_share_no_id_and_the_same_chart_gives_the_same_bytes() -> None:
    one, again, other = (
        inline_svg(drawn("//"), "a"),
        inline_svg(drawn("//"), "a"),
        inline_svg(drawn("//"), "b"),
    )
    assert one == again
    ids = [set(re.findall(r' id="([^"]+)"', text)) for text in (one, other)]
    assert ids[0] and ids[1] and not ids[0] & ids[1]
    for text in (one, other):
        references = set(re.findall(r"url\(#([^)]+)\)", text)) | set(re.findall(r'href="#([^"]+)"', text))
        assert references and references <= set(re.findall(r' id="([^"]+)"', text))  # a hatch is one of them


def test_only_what_is_made_here_stands_in_a_page() -> None:
    own = str(inline_svg(drawn("//"), "x"))
    assert is_inline_svg(own)


@pytest.mark.parametrize(
    "added",
    [
        "<script>alert(1)</script>",
        "<foreignObject/>",
        '<image href="http://example.com/a.png"/>',
        '<use href="http://example.com/a.svg#a"/>',
        '<path onload="alert(1)"/>',
        '<path style="fill: url(http://example.com/a)"/>',
        '<a href="#x"/>',
        "</svg><p>",
    ],
)
def test_what_could_act_or_fetch_does_not(added: str) -> None:
    own = str(inline_svg(drawn(), "x"))
    assert not is_inline_svg(own.replace("</svg>", f"{added}</svg>"))


@pytest.mark.parametrize(
    "text", ["", "<svg", "<p/>", '<svg class="chart"/>', '<svg xmlns="http://www.w3.org/2000/svg"/>']
)
def test_other_pictures_are_not_charts(text: str) -> None:
    assert not is_inline_svg(text)


def test_signs_that_xml_has_no_form_for_are_replaced() -> None:
    figure = drawn()
    figure.axes[0].set_title("a\x1b[31m\x07b")
    titles = [text.text for text in ET.fromstring(inline_svg(figure, "")).iter(f"{SVG}text")]
    assert "a\ufffd[31m\ufffdb" in titles

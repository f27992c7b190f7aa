"""Matplotlib figures as SVG inside a page: text as text, colors that follow the page, values on hover, no script."""

import hashlib
import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

from markupsafe import Markup

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.figure import Figure

_SVG, _LINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
#: An artist's id that starts so is no id: what follows is shown where the pointer rests, one text a mark
_HOVER = "hover:"
_BETWEEN = "\u2028"  # no XML parser makes a blank of it
#: Matplotlib's colors of ink, grid and paper -> the page's; text that lies on a color of its own uses another black
_THEME = {
    "#000000": "currentColor",
    "#333333": "currentColor",
    "#dddddd": "var(--line, #dddddd)",
    "#ffffff": "var(--paper, #ffffff)",
}
#: Black for text on a bar or a cell: it stays black on a dark page
ON_COLOR = "#111111"
_SHAPES = {"svg", "g", "defs", "path", "use", "clipPath", "rect", "text", "tspan", "title", "pattern"}
#: XML has no form for these, not even an escaped one
_NO_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")
_COLOR = re.compile(r"#[0-9a-f]{6}")
_FAMILY = re.compile(r"\s*font-family:[^;]*;?")
_SHORTHAND = re.compile(r"font: (?:(?P<weight>bold|\d+) )?(?P<size>[\d.]+px)[^;]*")
_DECIMALS = re.compile(r"(\d+\.\d\d)\d+")
_NO_TURN = re.compile(r"rotate\(-?0(\.0*)? [^)]*\)")
_REFERENCE = re.compile(r"url\(#([^)]+)\)")
_FAMILIES = "'DejaVu Sans', Verdana, 'Noto Sans CJK SC', 'PingFang SC', 'Microsoft YaHei', sans-serif"


def hover(artist: "Artist", texts: str | Sequence[str]) -> None:
    """Show a text where the pointer rests on `artist`; one for each mark of a line of marks."""
    artist.set_gid(_HOVER + (texts if isinstance(texts, str) else _BETWEEN.join(texts)))


def inline_svg(figure: "Figure", alt: str) -> Markup:
    """`figure` as an `<svg>` element that can stand in HTML and by itself.

    Ids are unlike those of other charts of a page, and the same bytes come from the same figure. Text keeps
    Matplotlib's sizes and is set in the reader's fonts.

    Args:
        figure: drawn as wide as its size in inches says, at 96 dots an inch, or as the page allows.
        alt: what the chart shows, for those who cannot see it.
    """
    root = ET.fromstring(_drawn(figure))
    for unused in list(root):
        # the rule that Matplotlib gives for all elements would hold for the whole page
        if unused.tag == f"{{{_SVG}}}metadata" or unused.find(f"{{{_SVG}}}style") is not None:
            root.remove(unused)
    width, height = (float(value) for value in root.attrib["viewBox"].split()[2:])
    named = hashlib.sha256(ET.tostring(root) + alt.encode()).hexdigest()[:8]
    referenced = _references(root)
    for element in list(root.iter()):
        _tidy(element, named, referenced)
    root.attrib.update(
        {
            "class": "chart",
            "role": "group",
            "aria-label": alt,
            "font-family": _FAMILIES,
            "fill": "currentColor",
        }
    )
    root.attrib.update({"stroke-linejoin": "round", "stroke-linecap": "butt"})
    root.attrib.update({"width": f"{width * 4 / 3:.0f}", "height": f"{height * 4 / 3:.0f}"})
    return Markup(_text(root))


def is_inline_svg(text: str) -> bool:
    """Whether `text` is what `inline_svg` gives: shapes and text alone, nothing that acts or comes from elsewhere."""
    try:
        root = ET.fromstring(text)
    except ET.ParseError:
        return False
    if root.tag != f"{{{_SVG}}}svg" or root.attrib.get("class") != "chart":
        return False
    return all(_is_harmless(element) for element in root.iter())


def _is_harmless(element: ET.Element) -> bool:
    tag = element.tag.removeprefix(f"{{{_SVG}}}")
    links = [value for key, value in element.attrib.items() if key.endswith("href")]
    acts = any(key.lower().startswith("on") for key in element.attrib)
    addresses = "".join(element.attrib.values()).replace("url(#", "")
    return (
        tag in _SHAPES
        and not acts
        and "url(" not in addresses
        and all(link.startswith("#") for link in links)
    )


@contextmanager
def fonts_of_the_reader() -> Iterator[None]:
    """No warning of signs that matplotlib's font lacks: a page is shown with its reader's fonts, which have them."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        yield


def _drawn(figure: "Figure") -> str:
    import matplotlib as mpl  # noqa: PLC0415  (pages of notebooks only look at charts that were drawn)

    buffer = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "telechat-kit"}), fonts_of_the_reader():
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", bbox_inches="tight", transparent=True, metadata=nothing)
    return _NO_XML.sub("\ufffd", buffer.getvalue())  # a record may hold any sign in a name


def _references(root: ET.Element) -> set[str]:
    """The ids that something in the picture refers to."""
    found = set()
    for element in root.iter():
        found |= {value for text in element.attrib.values() for value in _REFERENCE.findall(text)}
        found.add(element.attrib.get(f"{{{_LINK}}}href", "").removeprefix("#"))
    return found - {""}


def _tidy(element: ET.Element, named: str, referenced: set[str]) -> None:
    """Colors, fonts, ids and digits of one element, and the texts that it shows on hover."""
    attributes, is_text = element.attrib, element.tag == f"{{{_SVG}}}text"
    own = attributes.pop("id", "")
    if own.startswith(_HOVER):
        _add_titles(element, own.removeprefix(_HOVER).split(_BETWEEN))
    elif own in referenced:
        attributes["id"] = f"{named}-{own}"
    if link := attributes.pop(f"{{{_LINK}}}href", ""):
        attributes["href"] = f"#{named}-{link[1:]}" if link.startswith("#") else link
    for key in ("clip-path", "style"):
        if key in attributes:
            attributes[key] = _REFERENCE.sub(rf"url(#{named}-\1)", attributes[key])
    if "style" in attributes:
        style = _SHORTHAND.sub(_spelled_out, attributes["style"])
        attributes["style"] = _FAMILY.sub("", style).strip()
        if not is_text:
            attributes["style"] = _COLOR.sub(lambda c: _THEME.get(c[0], c[0]), attributes["style"])
    if "d" in attributes:
        attributes["d"] = " ".join(_DECIMALS.sub(r"\1", attributes["d"]).split())
    for key in ("x", "y", "transform"):
        if key in attributes:
            attributes[key] = _DECIMALS.sub(r"\1", _NO_TURN.sub("", attributes[key]).strip())
    for key in [key for key, value in attributes.items() if not value]:
        del attributes[key]
    if not is_text:
        element.text = (element.text or "").strip() or None
    element.tail = None


def _spelled_out(found: re.Match[str]) -> str:
    weight = f"font-weight: {found['weight']}; " if found["weight"] else ""
    return f"{weight}font-size: {found['size']}"


def _add_titles(element: ET.Element, texts: Sequence[str]) -> None:
    marks = list(element.iter(f"{{{_SVG}}}use")) if len(texts) > 1 else [element]
    if len(marks) != len(texts):  # Matplotlib draws no mark outside the axes
        marks, texts = [element], ["; ".join(texts)]
    for mark, text in zip(marks, texts, strict=True):
        title = ET.Element(f"{{{_SVG}}}title")
        title.text = text
        mark.insert(0, title)


def _text(root: ET.Element) -> str:
    ET.register_namespace("", _SVG)
    return ET.tostring(root, encoding="unicode")

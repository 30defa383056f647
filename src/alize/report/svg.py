"""Matplotlib figures as SVG elements of the page: its colours and its font, no ids of their own, the same bytes every time."""

import io
import itertools
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.figure import Figure

__all__ = ["COLOURS", "inline", "settings"]

_NAMES = ("ink", "soft", "line", "shade", "bf16", "fail", "fidelity", "quantisation", "runtime")
# What matplotlib is given for each colour of the page: the style sheet has two values for each, so they cannot be resolved here.
COLOURS = {name: f"#0100{index:02x}" for index, name in enumerate(_NAMES, 1)}

_SETTINGS: Any = {  # matplotlib types each key
    "svg.fonttype": "none",  # text stays text: it can be searched, and takes the page's font
    "svg.hashsalt": "alize",
    "font.size": 8.5,
    "text.parse_math": False,  # names may have dollars
    "text.color": COLOURS["ink"],
    "axes.edgecolor": COLOURS["line"],
    "axes.labelcolor": COLOURS["soft"],
    "axes.linewidth": 0.8,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "xtick.color": COLOURS["line"],
    "ytick.color": COLOURS["line"],
    "xtick.labelcolor": COLOURS["soft"],
    "ytick.labelcolor": COLOURS["soft"],
    "xtick.major.size": 3,
    "ytick.major.size": 3,
}


@contextmanager
def settings() -> Iterator[None]:
    """Matplotlib as it ships plus our settings, whatever the user's own file says; put back afterwards."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_SETTINGS)
        yield


def inline(figure: Figure, *, name: str, label: str, titles: Mapping[str, str]) -> Markup:
    """The figure as an <svg> element without namespaces, for use inside HTML.

    name: begins every id, so that figures don't share one.   label: what someone who cannot see it is told.
    titles: gid of an artist -> what is said when the pointer is on it.
    """
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata={"Date": None})
    root = ElementTree.fromstring(stream.getvalue())
    _plain_names(root)
    _drop_invisible(root)
    for group in root.iter("g"):
        if group.get("id") in titles:
            title = ElementTree.Element("title")
            title.text = titles[group.attrib["id"]]
            group.insert(0, title)
            group.set("class", "touch")
    _renumber(root, name)
    for element in root.iter():
        _compact(element)
    width, height = root.attrib["viewBox"].split()[2:]
    root.attrib = {"viewBox": f"0 0 {width} {height}", "role": "img", "aria-label": label, "class": "plot"}
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _plain_names(root: ElementTree.Element) -> None:
    """HTML knows the names of SVG without their namespaces; href without xlink is SVG 2."""
    for element in root.iter():
        element.tag = element.tag.partition("}")[2] or element.tag
        for key in [key for key in element.attrib if key.startswith("{")]:
            element.set(key.partition("}")[2], element.attrib.pop(key))


def _drop_invisible(root: ElementTree.Element) -> None:
    """Metadata, the style sheet for everything on the page, backgrounds and lines without a point."""
    for parent in list(root.iter()):
        for child in list(parent):
            empty = child.tag == "path" and not child.get("d")
            if empty or child.tag in ("metadata", "style") or child.get("style") in ("fill: none", "opacity: 0"):
                parent.remove(child)


def _renumber(root: ElementTree.Element, name: str) -> None:
    """Only what is referred to keeps an id."""
    used = set[str]()
    for element in root.iter():
        for text in element.attrib.values():
            used.update(re.findall(r"url\(#([^)]+)\)", text))
        if "href" in element.attrib:
            used.add(element.attrib["href"].removeprefix("#"))
    counter = itertools.count(1)
    new = {old: f"{name}-{next(counter)}" for element in root.iter() if (old := element.get("id")) in used}
    for element in root.iter():
        if (old := element.attrib.pop("id", None)) in new:
            element.set("id", new[old])
        for key, text in element.attrib.items():
            if key == "href":
                element.set(key, "#" + new[text.removeprefix("#")])
            elif key == "clip-path":
                element.set(key, f"url(#{new[text[5:-1]]})")


def _compact(element: ElementTree.Element) -> None:
    """A tenth of a point is enough; fonts come from the page; colours become its variables."""
    for key in ("d", "x", "y", "width", "height", "transform"):
        if text := element.get(key):
            element.set(key, re.sub(r"-?\d+\.\d+", _tenth, " ".join(text.split())))
    if (element.get("transform") or "").startswith(("rotate(-0 ", "rotate(0 ")):
        del element.attrib["transform"]
    if style := element.get("style"):
        style = re.sub(r"font: ([\d.]+px)[^;]*", r"font-size: \1", style)  # as matplotlib wrote it before 3.10
        style = re.sub(r"font-family: [^;]*;? ?", "", style)
        for colour, code in COLOURS.items():
            style = style.replace(code, f"var(--{colour})")
        element.set("style", style.replace(": ", ":").replace("; ", ";"))
    if element.tag not in ("text", "tspan", "title"):
        element.text = None
    element.tail = None


def _tenth(match: re.Match[str]) -> str:
    text = f"{float(match[0]):.1f}".removesuffix(".0")
    return "0" if text == "-0" else text

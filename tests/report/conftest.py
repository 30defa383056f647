"""The page as a reader's program sees it."""

import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import dataclass
from html.parser import HTMLParser

import pytest

_VOID = {"meta"}


@dataclass
class Page:
    """root: parsed strictly, as XML: the page is written so that both readings agree.   text: the words of its body."""

    html: str
    root: ElementTree.Element
    text: str

    def all(self, tag: str) -> list[ElementTree.Element]:
        return list(self.root.iter(tag))

    def attributes(self, name: str) -> list[str]:
        return [element.attrib[name] for element in self.root.iter() if name in element.attrib]

    def rows(self) -> list[str]:
        return [" ".join("".join(cell.itertext()).strip() for cell in row) for row in self.all("tr")]


Read = Callable[[str], Page]


@pytest.fixture(scope="session")
def read() -> Read:
    return _read


def _read(html: str) -> Page:
    html.encode()
    _Balanced().read(html)
    root = ElementTree.fromstring(html)
    body = root.find("body")
    assert body is not None
    return Page(html, root, " ".join(" ".join(body.itertext()).split()))


class _Balanced(HTMLParser):
    """Raises where an HTML reader would have to close an element by itself."""

    def read(self, html: str) -> None:
        self.open: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in _VOID or not self.get_starttag_text().endswith("/>")  # type: ignore[union-attr]
        self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in _VOID or "svg" in self.open, tag

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

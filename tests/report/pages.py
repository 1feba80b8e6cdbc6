"""A page of HTML as its reader has it."""

import re
from html import unescape
from html.parser import HTMLParser


class Elements(HTMLParser):
    """Collects what a browser would have to fetch, and checks that elements nest."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.fetched += [value or "" for name, value in attrs if name in ("src", "href")]
        self.ids += [value or "" for name, value in attrs if name == "id"]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def check(content: str) -> str:
    """A page is whole and carries everything with it; returns its text."""
    elements = Elements()
    elements.feed(content)
    assert not elements.open
    links = [place for place in elements.fetched if not place.startswith("data:image/png;base64,")]
    assert sorted(links) == sorted(f"#{name}" for name in elements.ids)
    text = re.sub(r"<[^>]+>", " ", re.sub(r"<(style|script)\b.*?</\1>", "", content, flags=re.DOTALL))
    return " ".join(unescape(text).split())

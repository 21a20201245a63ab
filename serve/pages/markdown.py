"""Parses Markdown of people and models into trees of elements, which pages build: CommonMark with tables and
strikethrough.

The text is hostile, and no page reads it as HTML: tags in it are shown as text. No link can be followed and no image is
fetched: of both the page shows the label and the address. `static/markdown.js` builds the elements named here and no
others.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict, Union

from markdown_it import MarkdownIt
from markdown_it.rules_inline import StateInline
from markdown_it.token import Token

# A longer text is shown as it is: parsing it could keep other requests waiting.
MAX_CHARACTERS = 20_000
# Mathematics in TeX is shown as it was written: Markdown would take away its backslashes and underscores.
# Displayed mathematics may go over several lines of a paragraph.
MATH = re.compile(r"\$\$[^$]{1,2000}\$\$|\\\([^\n]{1,2000}?\\\)|\\\[.{1,2000}?\\\]", re.DOTALL)
# The heading above an answer is of the second level.
LEVELS = {"h1": "h3", "h2": "h4", "h3": "h5", "h4": "h6", "h5": "h6", "h6": "h6"}


class Element(TypedDict, total=False):
    """An element: its name, its content in order, of an ordered list its first number, and of an address its kind."""

    tag: str
    content: list["Node"]
    start: int
    kind: str


Node = Union[str, Element]  # noqa: UP007 - a string that names a type cannot stand beside `|`


def parse_markdown(text: str) -> list[Node]:
    """Parses Markdown; a text that is too long becomes one paragraph without markup.

    Args:
        text: of a person or a model.
    """
    if len(text) > MAX_CHARACTERS:
        return [{"tag": "p", "content": [text]}]
    return _tree(_PARSER.parse(text))


def with_markdown(row: Mapping[str, Any], field: str) -> dict[str, Any]:
    """Returns a row of a page's data, a message or an answer, with the parsed text of a field as `markdown`."""
    return {**row, "markdown": parse_markdown(str(row[field]))}


def _tree(tokens: Sequence[Token]) -> list[Node]:
    top: Element = {"tag": "div", "content": []}
    open_elements, addresses = [top], [""]
    for token in tokens:
        content = open_elements[-1]["content"]
        if token.hidden:
            # The paragraph of a list without empty lines.
            continue
        if token.nesting == 1:
            element: Element = {"tag": LEVELS.get(token.tag, token.tag), "content": []}
            if token.type == "link_open":
                element["tag"] = "span"
                addresses.append(str(token.attrGet("href") or ""))
            elif token.attrGet("start") is not None:
                element["start"] = int(str(token.attrGet("start")))
            content.append(element)
            open_elements.append(element)
        elif token.nesting == -1:
            open_elements.pop()
            if token.type == "link_close":
                open_elements[-1]["content"].append(_address(addresses.pop()))
        else:
            content += _leaf(token)
    return top["content"]


def _leaf(token: Token) -> list[Node]:
    """Returns the nodes of a token without others inside."""
    if token.type == "inline":
        return _tree(token.children or [])
    if token.type in ("fence", "code_block"):
        return [{"tag": "pre", "content": [{"tag": "code", "content": [token.content]}]}]
    if token.type == "code_inline":
        return [{"tag": "code", "content": [token.content]}]
    if token.type == "image":
        return [f"[image: {token.content}]", _address(str(token.attrGet("src") or ""))]
    if token.type in ("hr", "hardbreak"):
        return [{"tag": token.tag, "content": []}]
    return ["\n" if token.type == "softbreak" else token.content]


def _address(address: str) -> Element:
    return {"tag": "span", "kind": "target", "content": [f" ({address})"]}


def _multiplication(state: StateInline, silent: bool) -> bool:
    """Keeps a star between two letters or digits, as in 2*3*4, which CommonMark takes for emphasis."""
    around = state.src[max(0, state.pos - 1) : state.pos + 2]
    if len(around) < 3 or around[1] != "*" or not around.isascii() or not (around[0] + around[2]).isalnum():
        return False
    if not silent:
        state.pending += "*"
    state.pos += 1
    return True


def _mathematics(state: StateInline, silent: bool) -> bool:
    found = MATH.match(state.src, state.pos)
    if not found:
        return False
    if not silent:
        state.push("code_inline", "code", 0).content = found[0]
    state.pos = found.end()
    return True


def _any_address(url: str) -> bool:
    del url
    return True


def _parser() -> MarkdownIt:
    parser = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"])
    # A definition of an address would not be shown at all.
    parser.disable("reference")
    # As no link can be followed, every address may be shown, and as it was written.
    parser.validateLink = _any_address  # type: ignore[method-assign]
    parser.normalizeLink = lambda url: url  # type: ignore[method-assign]
    parser.inline.ruler.before("escape", "mathematics", _mathematics)
    parser.inline.ruler.before("emphasis", "multiplication", _multiplication)
    return parser


_PARSER: Any = _parser()

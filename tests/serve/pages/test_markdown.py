"""Markdown of people and models: its elements, none of which is HTML, a link or an image."""

import json

import pytest

from serve.pages.markdown import MAX_CHARACTERS, Node, parse_markdown

ALLOWED = {"p", "h3", "h4", "h5", "h6", "ul", "ol", "li", "blockquote", "pre", "code", "em", "strong", "s", "span"}
ALLOWED |= {"br", "hr", "table", "thead", "tbody", "tr", "th", "td"}
HOSTILE = (
    "<script>window.hacked = 1</script> <img src=x onerror=alert(1)>",
    "[click](javascript:window.hacked=3) ![seen](http://127.0.0.1:9/seen.png) <javascript:alert(1)>",
    "[a]: javascript:alert(1)\n\n[a]",
    '```js" onload="alert(1)\n<b>\n```',
    "| a |\n|--:|\n| <i onclick=x> |",
    "&lt;script&gt;&#60;b&#62;",
    "\0 \ud800 \u202e",
)


def short(nodes: list[Node]) -> str:
    """Returns the elements as their names around their content."""
    return "".join(
        node if isinstance(node, str) else f"<{node['tag']}>{short(node['content'])}</{node['tag']}>" for node in nodes
    )


def elements(nodes: list[Node]) -> list[dict[str, object]]:
    found = [node for node in nodes if not isinstance(node, str)]
    return [*map(dict, found), *(inner for node in found for inner in elements(node["content"]))]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2*3*4 and a*b*c", "<p>2*3*4 and a*b*c</p>"),
        ("*so* **very _much_ so**", "<p><em>so</em> <strong>very <em>much</em> so</strong></p>"),
        ("x**2**", "<p>x<strong>2</strong></p>"),
        ("\u4e2d*\u6587*\u5b57", "<p>\u4e2d<em>\u6587</em>\u5b57</p>"),
        ("- a\n  - b\n    1. c", "<ul><li>a<ul><li>b<ol><li>c</li></ol></li></ul></li></ul>"),
        ("- a\n\n- b", "<ul><li><p>a</p></li><li><p>b</p></li></ul>"),
        (
            "|a|b|\n|-|-|\n|1|2|",
            "<table><thead><tr><th>a</th><th>b</th></tr></thead><tbody><tr><td>1</td><td>2</td></tr></tbody></table>",
        ),
        ("# One\n### Three", "<h3>One</h3><h5>Three</h5>"),
        ("> q\n\n~~no~~", "<blockquote><p>q</p></blockquote><p><s>no</s></p>"),
        ("```py\na < b\n```", "<pre><code>a < b\n</code></pre>"),
        ("\\[\na_1\\, b_1\n\\]\n$$\n*c*\n$$", "<p><code>\\[\na_1\\, b_1\n\\]</code>\n<code>$$\n*c*\n$$</code></p>"),
        ("\\(x_1 \\cdot y_1\\) and $$a_b$$", "<p><code>\\(x_1 \\cdot y_1\\)</code> and <code>$$a_b$$</code></p>"),
        ("[a](b) ![c](d)", "<p><span>a</span><span> (b)</span> [image: c]<span> (d)</span></p>"),
        ("[a]: b", "<p>[a]: b</p>"),
        ("one\ntwo  \nthree", "<p>one\ntwo<br></br>three</p>"),
    ],
)
def test_markdown_becomes_elements(text: str, expected: str) -> None:
    assert short(parse_markdown(text)) == expected


def test_a_list_keeps_its_first_number() -> None:
    assert [node.get("start") for node in elements(parse_markdown("5. five\n6. six")) if node["tag"] == "ol"] == [5]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_becomes_known_elements_without_attributes(text: str) -> None:
    parsed = parse_markdown(text)
    for node in elements(parsed):
        assert node["tag"] in ALLOWED
        assert node.keys() <= {"tag", "content", "start", "kind"}
        assert node.get("kind") in (None, "target")
    json.dumps(parsed)


def test_a_text_of_any_shape_and_length_is_parsed() -> None:
    for part in ("*a **b ", "[a](", "> ", "- ", "`", "|a", "![", "\\(", "$$a", "[a]: b\n", "<", "&"):
        parse_markdown(part * (4_000 // len(part)))
    long = "*a* " * MAX_CHARACTERS
    assert parse_markdown(long) == [{"tag": "p", "content": [long]}]

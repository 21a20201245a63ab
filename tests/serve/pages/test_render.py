"""The pages: their HTML, and the Content-Security-Policy with the hashes of their scripts and styles."""

import base64
import hashlib
import re

import httpx
import pytest

from serve.pages.render import page
from tests.serve.conftest import Server

PAGES = ("chat.html", "label.html", "quality.html", "compare.html", "ratings.html", "runs.html")


def policy_of(header: str) -> dict[str, str]:
    return dict(part.strip().split(" ", 1) for part in header.split(";"))


@pytest.mark.parametrize("name", PAGES)
def test_only_the_script_and_style_of_the_file_may_run(name: str) -> None:
    response = page(name)
    html = response.body.decode()
    policy = policy_of(response.headers["content-security-policy"])
    scripts = re.findall(r"<script>(.*?)</script>", html, flags=re.DOTALL)
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    assert digests
    assert policy["script-src"] == " ".join(f"'sha256-{digest}'" for digest in digests)
    assert policy["default-src"] == "'none'"
    assert policy["connect-src"] == "'self'"
    assert "unsafe" not in response.headers["content-security-policy"]


@pytest.mark.parametrize("name", PAGES)
def test_page_needs_nothing_from_elsewhere_and_never_reads_text_as_html(name: str) -> None:
    html = page(name).body.decode()
    assert not re.search(r"""(?:src|href)=["'](?!data:|#|/(?!/))""", html)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|\son\w+=", html)


@pytest.mark.parametrize("name", PAGES)
def test_controls_have_names(name: str) -> None:
    html = page(name).body.decode()
    labeled = re.findall(r"<label[^>]*>.*?</label>", html, flags=re.DOTALL)
    for control in re.findall(r'<(?:input|textarea|select) id="([\w-]+)"', html):
        assert any(f'id="{control}"' in label or f'for="{control}"' in label for label in labeled), control
    assert 'aria-live="polite"' in html


@pytest.mark.slow
def test_page_is_served_with_its_headers(server: Server) -> None:
    response = httpx.get(server.url)
    wanted = page("chat.html", frozenset({"chat_page", "compare_page", "label_page", "runs_page", "thumbs"}))
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/html")
    assert response.text == wanted.body.decode()
    for header in ("content-security-policy", "x-content-type-options", "referrer-policy", "x-frame-options"):
        assert response.headers[header] == wanted.headers[header]


def test_a_page_links_to_the_pages_that_are_there() -> None:
    alone = page("label.html", frozenset({"label_page"})).body.decode()
    assert re.findall(r'<a href="([^"]+)"(?: (aria-current))?', alone) == [
        ("/label", "aria-current"),
        ("/label/quality", ""),
    ]
    runs = page("runs.html", frozenset({"chat_page", "runs_page"})).body.decode()
    assert re.findall(r'<a href="(/[^"]*)"(?: (aria-current))?', runs) == [("/", ""), ("/runs", "aria-current")]

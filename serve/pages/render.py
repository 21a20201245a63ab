"""Assembles a page from the files of `static/`, without a build step, and sends it with a Content-Security-Policy that
allows nothing else to run in it."""

import base64
import hashlib
import re
from collections.abc import Mapping
from functools import cache
from importlib.resources import files

from fastapi import FastAPI
from fastapi.responses import HTMLResponse
from fastapi.routing import APIRoute
from jinja2 import Environment, PackageLoader

PAGES = files("serve") / "pages" / "static"


def _hashes(html: str, tag: str) -> str:
    """Returns the CSP sources that allow the inline elements of a tag, by their hashes."""
    bodies = re.findall(rf"<{tag}>(.*?)</{tag}>", html, flags=re.DOTALL)
    hashes = [base64.b64encode(hashlib.sha256(body.encode()).digest()).decode() for body in bodies]
    return " ".join(f"'sha256-{value}'" for value in hashes) or "'none'"


def routes_of(app: FastAPI) -> frozenset[str]:
    """Returns the names of an application's routes, by which a page knows which others it can link to."""
    return frozenset(route.name for route in app.routes if isinstance(route, APIRoute))


def _assemble(name: str, routes: frozenset[str], facts: Mapping[str, str]) -> str:
    """Returns the HTML of a page: its template extends that of the common frame and knows the routes and facts, and the
    text of the file NAME replaces `<style src="NAME">` and `<script src="NAME">`."""

    def inline(found: re.Match[str]) -> str:
        tag, source = found.groups()
        return f"<{tag}>\n{(PAGES / source).read_text(encoding='utf-8')}</{tag}>"

    template = Environment(loader=PackageLoader("serve", "pages/static"), autoescape=True).get_template(name)
    html = template.render(routes=routes, **facts)
    return re.sub(r'<(script|style) src="([\w.-]+)"></\1>', inline, html)


@cache
def page(name: str, routes: frozenset[str] = frozenset(), **facts: str) -> HTMLResponse:
    """Returns the page `serve/pages/static/NAME` of an application with these routes; its template knows them and these
    facts. Only its own scripts and styles run, and they can reach only this server."""
    html = _assemble(name, routes, facts)
    policy = {
        "default-src": "'none'",
        "script-src": _hashes(html, "script"),
        "style-src": _hashes(html, "style"),
        "connect-src": "'self'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    headers = {
        "Content-Security-Policy": "; ".join(f"{key} {value}" for key, value in policy.items()),
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "DENY",
        "Referrer-Policy": "no-referrer",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cache-Control": "no-cache",
    }
    return HTMLResponse(html, headers=headers)


def is_wildcard(host: str) -> bool:
    """Tells whether an address to listen on means all addresses of the machine."""
    return host in ("0.0.0.0", "::", "")


def url_host(host: str) -> str:
    """Returns the host to write in a URL: a server on all addresses is reached by the name localhost."""
    if is_wildcard(host):
        return "localhost"
    return f"[{host}]" if ":" in host else host

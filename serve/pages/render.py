"""The pages: single files without a build step, sent with headers that let nothing else run in them."""

import base64
import hashlib
import re
from functools import cache
from importlib.resources import files

from fastapi import FastAPI
from fastapi.responses import HTMLResponse
from fastapi.routing import APIRoute
from jinja2 import Environment, PackageLoader

PAGES = files("serve") / "pages" / "static"


def _sources(html: str, tag: str) -> str:
    bodies = re.findall(rf"<{tag}>(.*?)</{tag}>", html, flags=re.DOTALL)
    hashes = [base64.b64encode(hashlib.sha256(body.encode()).digest()).decode() for body in bodies]
    return " ".join(f"'sha256-{value}'" for value in hashes) or "'none'"


def routes_of(app: FastAPI) -> frozenset[str]:
    """The names of an application's routes: pages link to those pages that are there."""
    return frozenset(route.name for route in app.routes if isinstance(route, APIRoute))


def _put_together(name: str, routes: frozenset[str]) -> str:
    """The page as one file: what it shares with others is a template that it extends, and `<style src="NAME">` and
    `<script src="NAME">` hold the text of the file beside it."""

    def whole(found: re.Match[str]) -> str:
        tag, source = found.groups()
        return f"<{tag}>\n{(PAGES / source).read_text(encoding='utf-8')}</{tag}>"

    template = Environment(loader=PackageLoader("serve", "pages/static"), autoescape=True).get_template(name)
    html = template.render(routes=routes)
    return re.sub(r'<(script|style) src="([\w.-]+)"></\1>', whole, html)


@cache
def page(name: str, routes: frozenset[str] = frozenset()) -> HTMLResponse:
    """The page `serve/pages/NAME` of an application with these routes. Only the scripts and styles in it run, and only
    this server is reached."""
    html = _put_together(name, routes)
    policy = {
        "default-src": "'none'",
        "script-src": _sources(html, "script"),
        "style-src": _sources(html, "style"),
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


def url_host(host: str) -> str:
    """The host to write in an address: what listens everywhere is reached on the loopback."""
    if host in ("0.0.0.0", "::", ""):
        return "localhost"
    return f"[{host}]" if ":" in host else host

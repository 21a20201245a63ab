"""The pages: single files without a build step, sent with headers that let nothing else run in them."""

import base64
import hashlib
import re
from functools import cache
from importlib.resources import files

from fastapi.responses import HTMLResponse

PAGES = files("serve") / "pages"


def _sources(html: str, tag: str) -> str:
    bodies = re.findall(rf"<{tag}>(.*?)</{tag}>", html, flags=re.DOTALL)
    hashes = [base64.b64encode(hashlib.sha256(body.encode()).digest()).decode() for body in bodies]
    return " ".join(f"'sha256-{value}'" for value in hashes) or "'none'"


@cache
def page(name: str) -> HTMLResponse:
    """The page `serve/pages/NAME`. Only the script and the style in the file run, and only this server is reached."""
    html = (PAGES / name).read_text(encoding="utf-8")
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

"""The requests that the documents show, to the real server."""

import json
import re

import httpx
import pytest

from serve.http.auth import REQUIRED_SCOPES
from tests.markdown import PAGES
from tests.serve.conftest import Server

CURL = re.compile(r"curl http://127\.0\.0\.1:8000(\S+) .*?-d '(.+?)'\n", flags=re.DOTALL)
REQUESTS = [found for page in PAGES for block in page.blocks("sh") for found in CURL.findall(block.text)]
CLIENTS = [block.text for page in PAGES for block in page.blocks("python") if block.text.startswith("# client\n")]


@pytest.mark.slow
@pytest.mark.parametrize(("path", "body"), REQUESTS, ids=[path for path, _ in REQUESTS])
def test_a_request_with_curl_is_answered(server: Server, path: str, body: str) -> None:
    assert path in REQUIRED_SCOPES
    asked = json.loads(body)
    response = httpx.post(f"{server.url}{path}", json=asked, timeout=60)
    # The tests' server has no reward model, and says so.
    assert response.status_code == (200 if asked["model"] == "policy" else 404), response.text


@pytest.mark.slow
@pytest.mark.parametrize("program", CLIENTS)
def test_a_program_prints_an_answer(server: Server, program: str, capsys: pytest.CaptureFixture[str]) -> None:
    exec(program.replace("http://127.0.0.1:8000", server.url), {})  # noqa: S102
    assert capsys.readouterr().out

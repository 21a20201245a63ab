"""Thumbs over HTTP: one for each key, refusals, and their export from the database."""

import json
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import UserError
from cluster.feedback import open_feedback
from cluster.keys import KeyRing
from pipelines.data.feedback.io import export_file
from serve.gateway import GatewaySettings
from tests.serve.support.local import asking

pytestmark = pytest.mark.anyio

GIVEN: dict[str, Any] = {
    "request": "r1",
    "model": "parrot",
    "weights": "0123abcd",
    "messages": [{"role": "user", "content": "What is the capital of Peru?"}],
    "answer": "Lima\0.",
    "good": True,
}


async def test_each_key_has_one_thumb_of_an_answer(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'feedback.db'}"
    ring = KeyRing(tmp_path)
    tokens = {name: ring.add(name, ("chat",), None, None, by="test") for name in ("ann", "ben")}
    with open_feedback(url) as database:
        for name, good in (("ann", True), ("ben", True), ("ann", False), ("ben", None)):
            async with asking(GatewaySettings(tmp_path, url), key=tokens[name]) as client:
                assert (await client.post("/thumbs", json=GIVEN | {"good": good})).status_code == 204
        assert [(one.caller, one.good) for one in database.thumbs()] == [("ann", False)]
        assert export_file(database, "thumbs", tmp_path / "out.jsonl").rows == 1
        assert json.loads((tmp_path / "out.jsonl").read_text()) == {
            "prompt": GIVEN["messages"],
            "completion": [{"role": "assistant", "content": "Lima\0."}],
            "label": False,
            "model": "parrot",
            "weights": "0123abcd",
        }
        database.exclude("ann")
        with pytest.raises(UserError, match="nothing to export as thumbs"):
            export_file(database, "thumbs", tmp_path / "none.jsonl")
    assert not (tmp_path / "none.jsonl").exists()


@pytest.mark.parametrize(
    ("wrong", "status"),
    [
        ({"model": "x" * 100}, 404),
        ({"request": "r\n1"}, 422),
        ({"weights": "../a"}, 422),
        ({"messages": []}, 422),
        ({"messages": [{"role": "tool", "content": ""}]}, 422),
        ({"answer": "a" * 100_001}, 422),
        ({"good": "perhaps"}, 422),
        ({"caller": "ann"}, 422),
    ],
)
async def test_invalid_thumbs_are_refused(tmp_path: Path, wrong: dict[str, Any], status: int) -> None:
    url = f"sqlite:///{tmp_path / 'feedback.db'}"
    async with asking(GatewaySettings(tmp_path, url, "always")) as client:
        reply = await client.post("/thumbs", json=GIVEN | wrong)
    assert reply.status_code == status
    with open_feedback(url) as database:
        assert database.thumbs() == []

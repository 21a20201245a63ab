"""Prompts of live traffic over real HTTP: stored by consent alone, without personal data, and deleted again."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from cluster.feedback import Feedback, open_feedback
from cluster.keys import KeyRing
from cluster.recipe.serve import RecordMode
from serve import recording
from serve.gateway import GatewaySettings
from serve.http.metrics import GatewayMetrics
from serve.recording import Recorder, Recording, conversation
from tests.helpers import wait_until
from tests.serve.conftest import ADMIN, OWNER
from tests.serve.support.browsing import served
from tests.serve.support.local import Parrot, gateway_app

pytestmark = pytest.mark.anyio
CHAT = "/v1/chat/completions"


@asynccontextmanager
async def asking(folder: Path, url: str, mode: RecordMode) -> AsyncIterator[httpx.AsyncClient]:
    """Yields a client of a real server that stores prompts."""
    settings = GatewaySettings(folder, url, owner=OWNER, recording=Recording(mode, 2.0))
    with served(gateway_app({"parrot": Parrot()}, settings)) as address:
        async with httpx.AsyncClient(base_url=address, timeout=30) as client:
            yield client


def chat(text: str, **options: Any) -> dict[str, Any]:
    return {"model": "parrot", "messages": [{"role": "user", "content": text}], **options}


def stored(database: Feedback) -> list[str]:
    return sorted(row.messages[-1]["content"] for row in database.live_prompts())


def is_in_files(text: bytes, folder: Path) -> bool:
    """Tells whether a text is in the database's files, of which SQLite may remove the journal meanwhile."""
    for path in folder.glob("feedback.db*"):
        with suppress(FileNotFoundError):
            if text in path.read_bytes():
                return True
    return False


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("off", []),
        ("ask", ["agreed yes", "plain yes"]),
        ("keys", ["agreed", "agreed yes"]),
        ("all", ["agreed", "agreed yes", "plain", "plain yes"]),
    ],
)
async def test_a_prompt_is_stored_by_consent_alone(
    tmp_path: Path, feedback_url: str, mode: RecordMode, expected: list[str]
) -> None:
    ring = KeyRing(tmp_path)
    keys = {
        name: ring.add(name, ("chat",), None, None, "test", record=name == "agreed") for name in ("plain", "agreed")
    }
    with open_feedback(feedback_url) as database:
        async with asking(tmp_path, feedback_url, mode) as client:
            told = []
            for name, key in keys.items():
                for word in ("", "yes", "no"):
                    headers = {"Authorization": f"Bearer {key}"} | ({"X-Triptych-Record": word} if word else {})
                    text = f"{name} {word}".strip()
                    # Half of them streamed: what is stored does not depend on it.
                    reply = await client.post(CHAT, json=chat(text, stream=word == "yes"), headers=headers)
                    assert reply.status_code == 200
                    if "X-Triptych-Recorded" in reply.headers:
                        told.append(text)
            assert sorted(told) == expected
            wait_until(lambda: len(stored(database)) == len(expected), 30, "the prompts")
        assert stored(database) == expected
        assert {row.caller for row in database.live_prompts()} <= {"plain", "agreed"}
        for row in database.live_prompts():
            assert row.expires == pytest.approx(row.created + 2 * 86_400)


async def test_personal_data_is_replaced_and_only_answered_chats_are_stored(tmp_path: Path, sqlite_url: str) -> None:
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "I am ann@example.org."}]},
        {"role": "assistant", "content": "Hello ann@example.org."},
        {"role": "user", "content": "Write to bob@example.org, call +1 202-555-0143."},
    ]
    with open_feedback(sqlite_url) as database:
        async with asking(tmp_path, sqlite_url, "all") as client:
            assert "stores what you send for 2 days" in (await client.get("/")).text
            whole = await client.post(CHAT, json={"model": "parrot", "messages": turns}, headers={"X-Request-Id": "r1"})
            assert whole.headers["X-Triptych-Recorded"] == "to be stored for 2 days"
            for path, body in (
                (CHAT, chat("never answered") | {"model": "nobody"}),
                (CHAT, chat("fail")),
                (CHAT, chat("with tools", tools=[{"type": "function"}])),
                ("/v1/completions", {"model": "parrot", "prompt": "a text to continue"}),
            ):
                assert "X-Triptych-Recorded" not in (await client.post(path, json=body)).headers
            wait_until(lambda: stored(database) != [], 30, "the prompt")
            end = time.monotonic() + 30
            # It is counted once it is stored.
            while 'triptych_recorded_prompts_total{outcome="stored"} 1.0' not in (
                metrics := (await client.get("/metrics")).text
            ):
                assert time.monotonic() < end
                await asyncio.sleep(0.05)
            assert 'triptych_recorded_prompts_total{outcome="no conversation of text"} 2.0' in metrics
        (row,) = database.live_prompts()
        assert (row.request, row.caller, row.model, row.consent) == ("r1", "", "parrot", "all")
        assert [message["content"] for message in row.messages] == [
            "Be brief.",
            "I am <EMAIL_1>.",
            "Hello <EMAIL_1>.",
            "Write to <EMAIL_2>, call <PHONE_1>.",
        ]
    assert not is_in_files(b"example.org", tmp_path)


async def test_personal_data_in_what_a_thumb_is_of_is_replaced_whatever_is_recorded(
    tmp_path: Path, sqlite_url: str
) -> None:
    turns = [
        {"role": "system", "content": "You speak to ann@example.org."},
        {"role": "user", "content": "Call +1 202-555-0143 for me, and write to bob@example.org."},
    ]
    thumb = {"request": "r1", "model": "parrot", "messages": turns, "answer": "Wrote to bob@example.org.", "good": True}
    with open_feedback(sqlite_url) as database:
        async with asking(tmp_path, sqlite_url, "off") as client:
            for good in (True, False):
                assert (await client.post("/thumbs", json=thumb | {"good": good})).status_code == 204
        (row,) = database.thumbs()
        assert [message["content"] for message in row.messages] == [
            "You speak to <EMAIL_1>.",
            "Call <PHONE_1> for me, and write to <EMAIL_2>.",
        ]
        assert (row.answer, row.good) == ("Wrote to <EMAIL_2>.", False)
    assert not is_in_files(b"example.org", tmp_path)


async def test_prompts_beyond_those_that_wait_for_the_database_are_left_out_and_counted(
    tmp_path: Path, sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recording, "MAX_WAITING", 0)
    async with asking(tmp_path, sqlite_url, "all") as client:
        reply = await client.post(CHAT, json=chat("one too many"))
        assert (reply.status_code, "X-Triptych-Recorded" in reply.headers) == (200, False)
        metrics = (await client.get("/metrics")).text
        assert 'triptych_recorded_prompts_total{outcome="too many at once"} 1.0' in metrics
    with open_feedback(sqlite_url) as database:
        assert stored(database) == []


async def test_an_admin_deletes_by_key_request_or_text(tmp_path: Path, feedback_url: str) -> None:
    with open_feedback(feedback_url) as database:
        async with asking(tmp_path, feedback_url, "all") as client:
            for number, text in enumerate(("one secret", "two of ann@example.org", "three")):
                await client.post(CHAT, json=chat(text), headers={"X-Request-Id": f"r{number}"})
            wait_until(lambda: len(stored(database)) == 3, 30, "the prompts")
            assert (await client.post("/admin/live/delete", json={"request": "r2"})).status_code == 401

            async def delete(**by: str) -> tuple[int, Any]:
                reply = await client.post("/admin/live/delete", json=by, headers=ADMIN)
                return reply.status_code, reply.json()

            assert (await client.get("/admin/live", headers=ADMIN)).json() == {"stored": {"all": 3}}
            assert await delete(request="r2") == (200, {"deleted": 1, "judgements": 0})
            # The address is not stored: it stands for any address.
            assert await delete(text="TWO of ann@example.org") == (200, {"deleted": 1, "judgements": 0})
            assert await delete(key="nobody") == (200, {"deleted": 0, "judgements": 0})
            for wrong in ({}, {"key": "a", "text": "b"}, {"text": " "}, {"text": "ann@example.org"}, {"id": "r"}):
                assert (await delete(**wrong))[0] in (400, 422)
            assert stored(database) == ["one secret"]
            assert await delete(text="one secret") == (200, {"deleted": 1, "judgements": 0})
    lines = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    assert [(line["named_by"], line["deleted"]) for line in lines] == [
        ("request", 1),
        ("text", 1),
        ("key", 0),
        ("text", 1),
    ]
    assert "secret" not in (tmp_path / "audit.jsonl").read_text()


async def test_expired_prompts_are_deleted_and_a_shorter_time_counts_for_those_stored(
    tmp_path: Path, sqlite_url: str
) -> None:
    with open_feedback(sqlite_url) as database:
        async with asking(tmp_path, sqlite_url, "all") as client:
            await client.post(CHAT, json=chat("soon gone"))
            wait_until(lambda: stored(database) == ["soon gone"], 30, "the prompt")
        recorder = Recorder(Recording("all", 1 / 86_400), database, GatewayMetrics({}))
        expiry = asyncio.create_task(recorder.expire_regularly(0.05))
        end = time.monotonic() + 60
        while is_in_files(b"soon gone", tmp_path):
            assert time.monotonic() < end
            await asyncio.sleep(0.05)
        expiry.cancel()
        assert stored(database) == []


@pytest.mark.parametrize(
    ("endpoint", "body", "expected"),
    [
        ("responses", {"input": "Hi", "instructions": "Be kind."}, ["system: Be kind.", "user: Hi"]),
        ("responses", {"input": [{"role": "user", "content": [{"type": "input_text", "text": "Hi"}]}]}, ["user: Hi"]),
        (
            "messages",
            {"system": [{"type": "text", "text": "S"}], "messages": [{"role": "user", "content": "Hi"}]},
            ["system: S", "user: Hi"],
        ),
        (
            "chat/completions",
            {"messages": [{"role": "developer", "content": "D"}, {"role": "user", "content": "Hi"}]},
            ["system: D", "user: Hi"],
        ),
        ("chat/completions", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, None),
        ("chat/completions", {"messages": [{"role": "tool", "content": "4"}]}, None),
        ("chat/completions", {"messages": [{"role": "assistant", "content": "4"}]}, None),
        ("tokenize", {"messages": [{"role": "user", "content": "Hi"}]}, None),
    ],
)
def test_conversations_are_read_of_every_api_that_has_them(
    endpoint: Any, body: dict[str, Any], expected: list[str] | None
) -> None:
    found = conversation(endpoint, body)
    assert (found and [f"{one['role']}: {one['content']}" for one in found]) == expected

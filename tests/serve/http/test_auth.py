"""Authorization: every route with every scope, without a key, with a revoked key, and where no key is needed."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute

from cluster.errors import UserError
from cluster.feedback import open_feedback
from cluster.keys import SCOPES, KeyRing, new_key
from cluster.run.folder import RunFolder
from serve.errors import RequestError
from serve.gateway import GatewaySettings
from serve.http.auth import AnonymousAccess, anonymous_access, is_loopback, scopes_for
from serve.http.middleware import Middleware
from serve.server import access_notice
from tests.serve.support.local import Parrot, asking, gateway_app

pytestmark = pytest.mark.anyio

CHAT, SCORE, ANY, ADMIN = {"chat"}, {"score"}, set(SCOPES), {"admin"}
# The scopes that each route accepts; None: no key is needed. A route that is missing here fails the test below.
TABLE = {
    ("GET", "/"): None,
    ("GET", "/health"): None,
    ("GET", "/label"): None,
    ("GET", "/label/quality"): None,
    ("GET", "/label/guest"): None,
    ("GET", "/runs"): None,
    ("GET", "/ready"): None,
    ("GET", "/openapi.json"): ANY,
    ("GET", "/metrics"): ADMIN,
    ("GET", "/v1/models"): ANY,
    ("GET", "/v1/models/{name}"): ANY,
    ("POST", "/v1/chat/completions"): CHAT,
    ("POST", "/v1/completions"): CHAT,
    ("POST", "/v1/responses"): CHAT,
    ("POST", "/v1/messages"): CHAT,
    ("POST", "/v1/messages/count_tokens"): CHAT,
    ("POST", "/v1/embeddings"): None,
    ("GET", "/tokenizer_info"): CHAT,
    ("POST", "/tokenize"): CHAT,
    ("POST", "/detokenize"): CHAT,
    ("POST", "/thumbs"): CHAT,
    ("POST", "/markdown"): CHAT,
    ("POST", "/v1/score"): SCORE,
    ("GET", "/runs/data"): ADMIN,
    ("GET", "/admin/versions"): ADMIN,
    ("GET", "/admin/replicas"): ADMIN,
    ("POST", "/admin/promote"): ADMIN,
    ("POST", "/admin/round"): ADMIN,
    ("GET", "/admin/live"): ADMIN,
    ("POST", "/admin/live/delete"): ADMIN,
    ("GET", "/runs/judgements"): ADMIN,
    ("GET", "/runs/difference"): ADMIN,
    ("GET", "/runs/report"): ADMIN,
    ("GET", "/runs/list"): ADMIN,
    ("POST", "/admin/rollback"): ADMIN,
    ("GET", "/label/next"): {"label"},
    ("GET", "/label/task"): {"label"},
    ("GET", "/label/recent"): {"label"},
    ("POST", "/label/judgement"): {"label"},
    ("GET", "/label/agreement"): {"label"},
}


@pytest.fixture
def ring(tmp_path: Path) -> KeyRing:
    return KeyRing(tmp_path)


def settings(folder: Path, anonymous: AnonymousAccess = "until a key is made") -> GatewaySettings:
    return GatewaySettings(folder, f"sqlite:///{folder / 'feedback.db'}", anonymous)


def make(ring: KeyRing, name: str, *scopes: str) -> str:
    return ring.add(name, scopes, None, None, by="test")


def test_the_table_has_every_route(tmp_path: Path) -> None:
    middleware = gateway_app({"parrot": Parrot()}, settings(tmp_path))
    assert isinstance(middleware, Middleware)
    app = middleware.app
    assert isinstance(app, FastAPI)
    routes = {(method, route.path) for route in all_routes(app) for method in route.methods}
    assert {route for route in routes if not route[1].startswith("/compare")} == set(TABLE)


def all_routes(app: FastAPI) -> list[APIRoute]:
    return [route for route in app.routes if isinstance(route, APIRoute)]


async def test_every_route_with_every_scope(tmp_path: Path, ring: KeyRing) -> None:
    keys = {scope: make(ring, f"{scope} key", scope) for scope in SCOPES}
    async with asking(settings(tmp_path)) as client:

        async def status(method: str, path: str, token: str | None) -> int:
            headers = {"Authorization": f"Bearer {token}".encode("latin-1")} if token else {}
            return (await client.request(method, path.format(name="parrot"), json={}, headers=headers)).status_code

        for (method, path), allowed in TABLE.items():
            for token in (None, "tri-guess", "é"):
                refused = await status(method, path, token) in (401, 403)
                assert refused == (allowed is not None), (path, token)
            for scope, token in keys.items():
                refused = await status(method, path, token) in (401, 403)
                assert refused == (allowed is not None and scope not in allowed), (path, scope)


async def test_readiness_without_a_key_names_no_model(tmp_path: Path, ring: KeyRing) -> None:
    async with asking(settings(tmp_path)) as client:
        assert "parrot" in (await client.get("/ready")).json()["models"]
        token = make(ring, "ann", "chat")
        # The probe of an orchestrator has no key.
        probe = await client.get("/ready")
        assert (probe.status_code, probe.json()) == (200, {"status": "ok"})
        keyed = await client.get("/ready", headers={"Authorization": f"Bearer {token}"})
        assert keyed.json()["models"]["parrot"]["status"] == "ok"


async def test_refusals_say_what_is_needed_and_no_more(tmp_path: Path, ring: KeyRing) -> None:
    token = make(ring, "ann", "chat")
    async with asking(settings(tmp_path)) as client:
        none = await client.get("/metrics")
        wrong = await client.get("/metrics", headers={"Authorization": f"Bearer {token}"})
        other_scheme = await client.get("/metrics", headers={"Authorization": f"Basic {token}"})
    assert none.json()["error"]["message"] == "a key is needed: send it as `Authorization: Bearer KEY`"
    assert (wrong.status_code, wrong.json()["error"]["message"]) == (
        403,
        "this needs a key with the scope admin; yours has chat",
    )
    assert other_scheme.status_code == 401
    assert not any(token in reply.text + str(reply.headers) for reply in (none, wrong, other_scheme))


async def test_one_person_on_a_laptop_needs_no_key_until_one_is_made(tmp_path: Path, ring: KeyRing) -> None:
    async with asking(settings(tmp_path)) as client:
        assert (await client.get("/v1/models", headers={"Authorization": "Bearer none"})).status_code == 200
        # A page whose own name resolves to this machine.
        foreign = await client.get("/v1/models", headers={"Host": "evil.example:8000"})
        assert foreign.status_code == 403
        for host in ("[::1].evil", "[::1].evil:80", "localhost.evil", "127.0.0.1:evil", "localhost:80:80", "[::1", ""):
            assert (await client.get("/v1/models", headers={"Host": host})).status_code == 403, host
        for host in ("localhost:8000", "LocalHost", "127.0.0.1", "[::1]:8000"):
            assert (await client.get("/v1/models", headers={"Host": host})).status_code == 200
        token = make(ring, "ann", "chat")
        assert (await client.get("/v1/models")).status_code == 401
        headers = {"Authorization": f"Bearer {token}", "Host": "triptych.example"}
        assert (await client.get("/v1/models", headers=headers)).status_code == 200
        ring.revoke("ann", by="test")
        assert (await client.get("/v1/models", headers=headers)).status_code == 401
        assert (await client.get("/v1/models")).status_code == 401


async def test_a_key_may_come_in_the_header_of_anthropics_clients(tmp_path: Path, ring: KeyRing) -> None:
    token = make(ring, "ann", "chat")
    async with asking(settings(tmp_path)) as client:
        for headers, status in (
            ({"x-api-key": token}, 200),
            ({"x-api-key": "tri-guess"}, 401),
            ({"x-api-key": ""}, 401),
        ):
            assert (await client.get("/v1/models", headers=headers)).status_code == status


async def test_errors_have_the_format_of_the_paths_own_clients(tmp_path: Path, ring: KeyRing) -> None:
    async with asking(settings(tmp_path, "never")) as client:
        for path in ("/v1/messages", "/v1/messages/count_tokens"):
            refused = (await client.post(path, json={})).json()
            assert (refused["type"], refused["error"]["type"]) == ("error", "authentication_error")
            assert set(refused["error"]) == {"type", "message"}
        assert "type" not in (await client.post("/v1/completions", json={})).json()
    owner, token = new_key("owner", ("chat",))
    async with asking(GatewaySettings(tmp_path, owner=owner), key=token) as client:
        broken = await client.post("/v1/messages", json={"model": "parrot", "prompt": "fail"})
        assert (broken.status_code, broken.json()["error"]["type"]) == (500, "api_error")
        wrong = await client.get("/v1/messages")
        assert (wrong.status_code, wrong.json()["error"]["type"]) == (405, "invalid_request_error")


async def test_open_and_never_open(tmp_path: Path, ring: KeyRing) -> None:
    async with asking(settings(tmp_path, "never")) as client:
        assert (await client.get("/v1/models")).status_code == 401
    make(ring, "ann", "chat")
    async with asking(settings(tmp_path, "always")) as client:
        assert (await client.get("/v1/models")).status_code == 200
        assert (await client.get("/runs/data")).status_code == 200


async def test_changes_to_the_served_models_need_a_key(tmp_path: Path, ring: KeyRing) -> None:
    owner, token = new_key("(owner)", ("admin",))
    for anonymous in ("until a key is made", "always", "never"):
        async with asking(replace(settings(tmp_path, anonymous), owner=owner)) as client:
            for method, path in (("GET", "/admin/versions"), ("POST", "/admin/round"), ("POST", "/admin/nothing")):
                assert (await client.request(method, path, json={})).status_code == 401, (anonymous, path)
            headers = {"Authorization": f"Bearer {token}"}
            assert (await client.get("/admin/versions", headers=headers)).status_code == 200


async def test_an_unknown_path_is_404_with_and_without_a_key(tmp_path: Path, ring: KeyRing) -> None:
    for key in (None, make(ring, "ann", "chat")):
        for anonymous in ("until a key is made", "always", "never"):
            async with asking(settings(tmp_path, anonymous), key=key) as client:
                for path in ("/no/such/path", "/v1/embeddings", "/healthx"):
                    reply = await client.post(path, json={})
                    assert (reply.status_code, reply.json()["error"]["type"]) == (404, "NotFoundError")


async def test_annotators_judge_with_their_tokens_and_with_keys(tmp_path: Path, ring: KeyRing) -> None:
    config = settings(tmp_path, "never")
    with open_feedback(config.feedback_url or "") as database:
        tokens = {"ann": database.add_annotator("ann"), "ben": make(ring, "ben", "label")}
    async with asking(config) as client:
        for name, token in tokens.items():
            reply = await client.get("/label/next", headers={"Authorization": f"Bearer {token}"})
            assert reply.json()["annotator"] == name
        headers = {"Authorization": f"Bearer {tokens['ann']}"}
        assert (await client.get("/v1/models", headers=headers)).status_code == 401


async def test_a_key_that_judges_has_its_limits_and_an_annotator_has_none(tmp_path: Path, ring: KeyRing) -> None:
    config = settings(tmp_path, "never")
    with open_feedback(config.feedback_url or "") as database:
        ann = database.add_annotator("ann")
    ben = ring.add("ben", ["label"], 2, None, by="test")
    async with asking(config) as client:
        for token, statuses in ((ben, [200, 200, 429]), (ann, [200] * 3)):
            headers = {"Authorization": f"Bearer {token}"}
            assert [(await client.get("/label/next", headers=headers)).status_code for _ in range(3)] == statuses
        # A refused request is not counted for its key.
        other = {"Authorization": f"Bearer {make(ring, 'cid', 'chat')}"}
        assert (await client.get("/label/next", headers=other)).status_code == 401
    rows = [json.loads(line) for line in (tmp_path / "access.jsonl").read_text().splitlines()]
    assert [row["key"] for row in rows] == ["ben", "ben", "ben", "", "", "", ""]


async def test_a_damaged_key_file_refuses_all_requests(tmp_path: Path, ring: KeyRing) -> None:
    token = make(ring, "ann", "chat")
    (tmp_path / "keys.json").write_text("{")
    async with asking(settings(tmp_path), key=token) as client:
        reply = await client.get("/v1/models")
        assert (reply.status_code, reply.json()["error"]["code"]) == (503, 503)
        assert str(tmp_path) not in reply.text


def test_only_the_loopback_may_be_open(tmp_path: Path) -> None:
    assert [anonymous_access(host, False) for host in ("127.0.0.1", "::1", "localhost")] == ["until a key is made"] * 3
    assert [anonymous_access(host, False) for host in ("0.0.0.0", "10.0.0.1", "::", "head")] == ["never"] * 4
    assert anonymous_access("127.0.0.1", True) == "always"
    with pytest.raises(UserError, match="--open is for this machine alone"):
        anonymous_access("0.0.0.0", True)
    run = RunFolder(tmp_path)
    assert "until there is a key" in access_notice(run, "until a key is made")
    assert "there is none yet" in access_notice(run, "never")
    make(KeyRing(tmp_path), "ann", "chat")
    assert access_notice(run, "until a key is made").startswith("a key is needed;")


def test_paths_that_look_like_open_ones_are_not() -> None:
    for path in ("/healthx", "/health/", "/label-all", "/v1/models2", "//", "/V1/models", "/runsx", "/metrics/"):
        with pytest.raises(RequestError) as unknown:
            scopes_for(path)
        assert unknown.value.status_code == 404
    assert not is_loopback("127.0.0.1.evil.example")
    assert not is_loopback("localhost.evil.example")

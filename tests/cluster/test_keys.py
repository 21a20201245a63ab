"""API keys: their storage, scopes and commands."""

import json
import threading
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cluster.errors import UserError
from cluster.keys import KeyRing, audit, token_digest
from pipelines.cli.keys import keys
from serve.errors import RequestError
from serve.http.auth import Authorizer
from tests.helpers import triptych_here


def made(ring: KeyRing, name: str, *scopes: str) -> str:
    return ring.add(name, scopes or ("chat",), None, None, by="test")


def test_a_key_is_valid_until_revoked_and_only_its_hash_is_stored(tmp_path: Path) -> None:
    ring, seen_by_a_server = KeyRing(tmp_path), KeyRing(tmp_path)
    assert not seen_by_a_server.exists()
    tokens = {name: made(ring, name, "admin", "chat") for name in ("ann", "ben")}
    assert [seen_by_a_server.holder(token).name for token in tokens.values()] == ["ann", "ben"]
    assert seen_by_a_server.holder(tokens["ann"]).scopes == ("chat", "admin")
    for wrong in ("", "guess", tokens["ann"][:-1], tokens["ann"] + "x", "\ud800"):
        assert seen_by_a_server.holder(wrong) is None
    ring.revoke("ann", by="test")
    assert seen_by_a_server.holder(tokens["ann"]) is None
    assert seen_by_a_server.holder(tokens["ben"]).name == "ben"
    ring.revoke("ben", by="test")
    assert seen_by_a_server.exists(), "a server must not open when the last key is revoked"
    files = "".join(path.read_text() for path in tmp_path.iterdir())
    assert not any(token in files or token.removeprefix("tri-") in files for token in tokens.values())


def test_a_name_is_free_again_after_it_was_revoked(tmp_path: Path) -> None:
    ring = KeyRing(tmp_path)
    old = made(ring, "ann")
    with pytest.raises(UserError, match="a key ann already"):
        made(ring, "ann")
    ring.revoke("ann", by="test")
    new = made(ring, "ann")
    assert ring.holder(old) is None
    assert ring.holder(new).name == "ann"
    with pytest.raises(UserError, match="no key ben to revoke"):
        ring.revoke("ben", by="test")


@pytest.mark.parametrize(
    ("name", "scopes", "message"),
    [
        ("a\nb", ("chat",), "no name"),
        ("", ("chat",), "no name"),
        ("ann", ("root",), "root is no scope"),
        ("ann", (), "nothing is no scope"),
    ],
)
def test_invalid_keys_are_refused_and_nothing_is_written(
    tmp_path: Path, name: str, scopes: tuple[str, ...], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        KeyRing(tmp_path).add(name, scopes, None, None, by="test")
    assert list(tmp_path.iterdir()) == []


def test_keys_created_at_the_same_time_are_all_stored(tmp_path: Path) -> None:
    def make(first: int) -> None:
        for number in range(first, first + 5):
            made(KeyRing(tmp_path), f"key {number}")

    threads = [threading.Thread(target=make, args=(5 * index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(KeyRing(tmp_path).all()) == 20


def test_a_damaged_file_opens_nothing(tmp_path: Path) -> None:
    token = made(KeyRing(tmp_path), "ann")
    (tmp_path / "keys.json").write_text("[{}]")
    with pytest.raises(UserError, match=r"keys\.json is damaged"):
        KeyRing(tmp_path).holder(token)


def test_the_audit_log_has_one_line_an_action(tmp_path: Path) -> None:
    ring = KeyRing(tmp_path)
    made(ring, "ann", "chat", "score")
    ring.revoke("ann", by="test")
    audit(tmp_path, "a\nb", "other", what="c\nd")
    rows = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    assert [(row["by"], row["action"]) for row in rows] == [
        ("test", "key add"),
        ("test", "key revoke"),
        ("a\nb", "other"),
    ]
    assert rows[0]["scopes"] == ["chat", "score"]


def test_a_key_that_has_expired_says_so_to_its_holder(tmp_path: Path) -> None:
    ring = KeyRing(tmp_path)
    old, ended = (ring.add(name, ["chat"], None, None, "test", expires=1.0) for name in ("old", "ended"))
    ring.revoke("ended", "test")
    new = ring.add("new", ["chat"], None, None, "test")
    assert [ring.is_expired(token) for token in (old, ended, "other", new)] == [True, False, False, False]
    for token, words in ((old, "has expired"), (ended, "is not valid"), (f"{old}x", "is not valid")):
        with pytest.raises(RequestError, match=words):
            Authorizer(tmp_path, "never").admit("/v1/completions", token, "127.0.0.1")


@pytest.mark.parametrize("days", ["0", "-1", "nan", "inf", "1e9"])
def test_a_key_that_is_never_valid_is_not_made(tmp_path: Path, days: str) -> None:
    wrong = CliRunner().invoke(keys, ["add", "ann", "--run", str(tmp_path), "--scope", "chat", "--days", days])
    assert "makes no key that is valid for a time" in str(wrong.exception)
    assert KeyRing(tmp_path).all() == []


def test_the_list_shows_what_is_used_of_a_budget(tmp_path: Path) -> None:
    ring = KeyRing(tmp_path)
    digest = token_digest(ring.add("ann", ["chat"], None, None, "test", token_budget=100))
    for name, used in (("usage.json", 7), ("usage-1.json", 5)):
        (tmp_path / name).write_text(json.dumps({digest: used, "other": 1}))
    listed = CliRunner().invoke(keys, ["list", "--run", str(tmp_path)]).stdout
    assert "\t100 tokens in all, 12 used\t" in listed


def test_the_commands(tmp_path: Path) -> None:
    run = ("--run", str(tmp_path))
    added = triptych_here(
        *("key", "add", "ann", *run, "--scope", "chat", "--scope", "score", "--requests-per-minute", "60"), cwd=tmp_path
    )
    token = added.stdout.splitlines()[0]
    assert KeyRing(tmp_path).holder(token).requests_per_minute == 60
    listed = triptych_here("key", "list", *run, cwd=tmp_path).stdout
    assert listed.startswith("ann\tchat,score\t60 requests a minute\tmade ")
    assert "valid" in listed
    assert token not in listed
    assert triptych_here("key", "revoke", "ann", *run, cwd=tmp_path).returncode == 0
    assert KeyRing(tmp_path).holder(token) is None
    wrong = triptych_here("key", "add", "ann", *run, "--scope", "root", cwd=tmp_path)
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)

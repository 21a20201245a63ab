"""The API keys of a run: the scopes that they open on its server, their limits a minute, and the log of changes.

runs/demo/
    keys.json      one entry a key, with its hash; the key itself is not stored
    audit.jsonl    who created and revoked which key, and when
    usage*.json    the tokens that keys with a budget have used, by their hashes, one file for each gateway

A file and not tables of the feedback database: a server looks a key up at every request, which here costs one `stat`,
and several runs may share one PostgreSQL database while each has keys of its own.
"""

import fcntl
import hashlib
import hmac
import json
import os
import re
import secrets
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from cluster.errors import UserError
from cluster.run.atomic import make_private, write_json

SCOPES = ("chat", "score", "label", "admin")
# Names of key holders and annotators.
NAME = re.compile(r"\w[\w .@-]{0,59}")


@dataclass(frozen=True)
class Key:
    """The stored entry of a key.

    Attributes:
        name: the holder's name, as metrics and logs show it.
        scopes: the parts of the server that it opens, of `SCOPES`.
        digest: SHA-256 of the key. A key has 256 random bits, so a slow hash would add nothing.
        made: time of its creation, in seconds since 1970.
        revoked: time of its revocation, or None.
        requests_per_minute: the most requests, or None for no limit.
        tokens_per_minute: the most tokens, of prompts and answers together, or None for no limit.
        expires: time from which it is not valid any more, or None.
        max_parallel_requests: the most requests at once, or None for no limit.
        token_budget: the most tokens, of prompts and answers together, as long as the key is valid, or None for no
            limit.
        record: whether its holder has agreed that prompts sent with it are stored, where `serve.record` is keys.
    """

    name: str
    scopes: tuple[str, ...]
    digest: str
    made: float
    revoked: float | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    expires: float | None = None
    max_parallel_requests: int | None = None
    token_budget: int | None = None
    record: bool = False

    @property
    def valid(self) -> bool:
        """Whether it is neither revoked nor expired."""
        return self.revoked is None and (self.expires is None or time.time() < self.expires)

    def fits(self, token: str) -> bool:
        """Tells in constant time whether a token is this key."""
        return hmac.compare_digest(self.digest, token_digest(token))


def new_key(name: str, scopes: Sequence[str]) -> tuple[Key, str]:
    """Creates a key that is in no key ring; returns its entry and its token."""
    token = f"tri-{secrets.token_urlsafe(32)}"
    return Key(name, tuple(scopes), token_digest(token), time.time()), token


class KeyRing:
    """The keys of a run folder. A running server sees changes by other processes at its next request."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._path = folder, folder / "keys.json"
        self._read_at: tuple[int, ...] = ()
        self._keys: list[Key] = []

    def exists(self) -> bool:
        """Tells whether a key was ever created: revoking the last one must not open the server to everyone."""
        return bool(self.all())

    def all(self) -> list[Key]:
        """Lists all keys, revoked ones too, in the order of their creation.

        Raises:
            UserError: the file is damaged.
        """
        try:
            stat = self._path.stat()
        except FileNotFoundError:
            self._read_at, self._keys = (), []
            return []
        version = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
        if version != self._read_at:
            try:
                rows = json.loads(self._path.read_text(encoding="utf-8"))
                self._keys = [Key(**row | {"scopes": tuple(row["scopes"])}) for row in rows]
            except (ValueError, TypeError, KeyError) as error:
                raise UserError(f"{self._path} is damaged: {error}; remove it and make the keys again") from error
            self._read_at = version
        return self._keys

    def holder(self, token: str) -> Key | None:
        """Finds the valid key of a token, in a time that does not depend on the token."""
        found = self._with_token(token)
        return found if found and found.valid else None

    def is_expired(self, token: str) -> bool:
        """Tells whether a token is a key that has expired and was not revoked."""
        found = self._with_token(token)
        return found is not None and found.revoked is None and not found.valid

    def _with_token(self, token: str) -> Key | None:
        digest, found = token_digest(token), None
        for key in self.all():
            if hmac.compare_digest(key.digest, digest):
                found = key
        return found

    def add(
        self,
        name: str,
        scopes: Sequence[str],
        requests_per_minute: int | None,
        tokens_per_minute: int | None,
        by: str,
        expires: float | None = None,
        max_parallel_requests: int | None = None,
        token_budget: int | None = None,
        record: bool = False,
    ) -> str:
        """Creates a key.

        Args:
            name: its holder.
            scopes: the parts of the server that it opens, of `SCOPES`.
            requests_per_minute: the most requests, or None for no limit.
            tokens_per_minute: the most tokens, or None for no limit.
            by: the author of the change, for the audit log.
            expires: the time, in seconds since 1970, from which it is invalid, or None for never.
            max_parallel_requests: the most requests at once, or None for no limit.
            token_budget: the most tokens in its lifetime, or None for no limit.
            record: whether its holder has agreed that prompts sent with it are stored.

        Returns:
            the key itself. Only its hash is stored.

        Raises:
            UserError: the name is taken or invalid, or a scope is unknown.
        """
        if not NAME.fullmatch(name):
            raise UserError(f"{name!r} is no name for a key: up to 60 letters, digits, spaces and . @ - _")
        if not scopes or (unknown := sorted(set(scopes) - set(SCOPES))):
            raise UserError(
                f"{', '.join(unknown) if scopes else 'nothing'} is no scope: choose from {', '.join(SCOPES)}"
            )
        ordered = tuple(scope for scope in SCOPES if scope in scopes)
        key, token = new_key(name, ordered)
        with self._change() as keys:
            if any(key.name == name and key.valid for key in keys):
                raise UserError(f"there is a key {name} already; `triptych key revoke {name!r}` ends it")
            keys.append(
                replace(
                    key,
                    requests_per_minute=requests_per_minute,
                    tokens_per_minute=tokens_per_minute,
                    expires=expires,
                    max_parallel_requests=max_parallel_requests,
                    token_budget=token_budget,
                    record=record,
                )
            )
        audit(self._folder, by, "key add", name=name, scopes=ordered, record=record)
        return token

    def revoke(self, name: str, by: str) -> None:
        """Revokes a key.

        Args:
            name: its holder.
            by: the author of the change, for the audit log.

        Raises:
            UserError: there is no valid key of that name.
        """
        with self._change() as keys:
            place = next((i for i, key in enumerate(keys) if key.name == name and key.revoked is None), None)
            if place is None:
                raise UserError(f"there is no key {name} to revoke")
            keys[place] = replace(keys[place], revoked=time.time())
        audit(self._folder, by, "key revoke", name=name)

    @contextmanager
    def _change(self) -> Iterator[list[Key]]:
        # Two commands at once take turns: the second reads the file that the first wrote.
        folder = os.open(self._folder, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            keys = list(self.all())
            yield keys
            write_json(self._path, [asdict(key) for key in keys])
            make_private(self._path)
        finally:
            os.close(folder)


def used_tokens(folder: Path) -> dict[Path, Counter[str]]:
    """Returns the tokens that keys with a budget have used, by their hashes, in each file of a run folder.

    Raises:
        UserError: a file is damaged.
    """
    used = {}
    for path in sorted(folder.glob("usage*.json")):
        try:
            tokens = json.loads(path.read_text(encoding="utf-8"))
            used[path] = Counter[str]({str(digest): int(count) for digest, count in tokens.items()})
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise UserError(f"{path} is damaged: {error}; without it, all budgets begin again") from error
    return used


def audit(folder: Path, by: str, action: str, **details: Any) -> None:
    """Appends a line to the audit log of the run.

    Args:
        folder: the run folder.
        by: the author of the change.
        action: a short name of it, such as "key add".
        details: JSON values.
    """
    line = json.dumps({"time": time.time(), "by": by, "action": action, **details})
    path = folder / "audit.jsonl"
    make_private(path)
    with path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")


def token_digest(token: str) -> str:
    """Hashes a token of 256 random bits, a key's or an annotator's, with SHA-256; returns hexadecimal digits."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()

"""Who may do what: every path needs a scope, and what is not listed needs the scope admin."""

import ipaddress
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fastapi import HTTPException, Request

from cluster.feedback import Feedback
from cluster.keys import SCOPES, Key, KeyRing
from serve.errors import RequestError

Openness = Literal["never", "until a key is made", "always"]

ANY = frozenset(SCOPES)
CHAT, SCORE, ADMIN = frozenset({"chat"}), frozenset({"score"}), frozenset({"admin"})

# Pages hold no data: what they show, they ask for with a key. /health says nothing but that the server is up.
# The paths under /label/ and /compare/ ask for an annotator's token themselves: a judgement needs its person's name.
JUDGING = ("/compare/*", "/label/*")
OPEN = ("/", "/health", "/runs", "/compare", "/label", *JUDGING)
# One of these scopes is enough. A path that ends with /* stands for all below it.
NEEDS = {
    "/v1/chat/completions": CHAT,
    "/v1/completions": CHAT,
    "/tokenize": CHAT,
    "/detokenize": CHAT,
    "/thumbs": CHAT,
    "/v1/score": SCORE,
    "/v1/models": ANY,
    "/v1/models/*": ANY,
    "/openapi.json": ANY,
    "/ready": ANY,
    "/metrics": ADMIN,
    "/runs/*": ADMIN,
}


@dataclass(frozen=True)
class Caller:
    """Who asks: a key's name, or nobody in particular."""

    name: str
    key: Key | None = None


EVERYONE = Caller("")


def rule_of(path: str) -> str:
    """The entry of `OPEN` or `NEEDS` that a path falls under, or "other"."""
    listed = [*OPEN, *NEEDS]
    if path in listed:
        return path
    return next((rule for rule in listed if rule.endswith("/*") and path.startswith(rule[:-1])), "other")


def scopes_for(path: str) -> frozenset[str] | None:
    """The scopes of which a key needs one, or None where no key is needed."""
    rule = rule_of(path)
    return None if rule in OPEN else NEEDS.get(rule, ADMIN)


def is_loopback(host: str) -> bool:
    """Whether only programs on this machine reach an address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Access:
    """Decides about requests.

    Args:
        folder: the run folder with the keys; None if there is no run, and then nobody has a key.
        openness: whether requests without a key are let in.
        owner: a key beside those of the folder, of whoever started the server; no name in the folder has brackets.
    """

    def __init__(self, folder: Path | None, openness: Openness, owner: Key | None = None) -> None:
        self._ring, self._openness, self._owner = KeyRing(folder) if folder else None, openness, owner

    def is_open(self) -> bool:
        """Whether no key is asked for now."""
        return self._openness == "always" or (
            self._openness == "until a key is made" and not (self._ring and self._ring.exists())
        )

    def admit(self, path: str, token: str | None, host: str) -> Caller:
        """Lets a request in.

        Args:
            path: what is asked for.
            token: the key that came with it.
            host: the `Host` header.

        Raises:
            RequestError: 401 without a valid key, 403 with one of the wrong scope or under a foreign host name.
        """
        if self.is_open():
            # A page from elsewhere can have its own name point to this machine (DNS rebinding); it keeps that name.
            if not is_loopback(_without_port(host)):
                raise RequestError(403, "without keys, this server answers to localhost only; make a key to change it")
            return EVERYONE
        needed = scopes_for(path)
        if needed is None:
            # Whoever judges with a key, and not with an annotator's token, has its limits.
            judge = self._judge(token) if token and rule_of(path) in JUDGING else None
            return Caller(judge.name, judge) if judge else EVERYONE
        key = self._holder(token) if token else None
        if key is None:
            what = "this key is not valid" if token else "a key is needed: send it as `Authorization: Bearer KEY`"
            raise RequestError(401, what, "AuthenticationError")
        if needed.isdisjoint(key.scopes):
            have, need = ", ".join(key.scopes), " or ".join(sorted(needed))
            raise RequestError(403, f"this needs a key with the scope {need}; yours has {have}", "PermissionError")
        return Caller(key.name, key)

    def _holder(self, token: str) -> Key | None:
        if self._owner and self._owner.fits(token):
            return self._owner
        return self._ring.holder(token) if self._ring else None

    def annotator(self, token: str) -> str | None:
        """The name under which a key with the scope label judges."""
        key = self._judge(token)
        return key.name if key else None

    def _judge(self, token: str) -> Key | None:
        key = self._ring.holder(token) if self._ring else None
        return key if key and "label" in key.scopes else None


def bearer(authorization: str) -> str | None:
    """The token in an `Authorization` header."""
    scheme, _, token = authorization.partition(" ")
    return token.strip() or None if scheme.lower() == "bearer" else None


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0] if host.count(":") <= 1 else host


# Who asks: people send the personal token that `triptych annotator add` printed.
def annotator_of_request(database: Feedback, known: Callable[[str], str | None]) -> Callable[[Request], str]:
    """A FastAPI dependency that gives the annotator's name. 401 without a known token; 403 to who is excluded.

    Args:
        database: knows the annotators' tokens.
        known: gives the name behind any other token that lets its holder judge.
    """

    def signed_in(request: Request) -> str:
        token = bearer(request.headers.get("authorization", ""))
        name = database.annotator_of(token) or known(token) if token else None
        if name is None:
            raise HTTPException(401, "this token is not known; ask whoever runs the server for yours")
        if name in database.excluded():
            raise HTTPException(403, f"{name} is excluded from judging; ask whoever runs the server")
        return name

    return signed_in

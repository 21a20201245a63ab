"""Authentication and authorization: whose key a request carries, and whether its scopes allow the path.

Every path needs a scope; a path that is not listed here is 404, also if there is a route. People who judge answers
authenticate with an annotator's token, or with a key that has the scope label.
"""

import ipaddress
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fastapi import HTTPException, Request

from cluster.errors import UserError
from cluster.feedback import Feedback
from cluster.keys import SCOPES, Key, KeyRing
from serve.errors import RequestError

AnonymousAccess = Literal["never", "until a key is made", "always"]

ANY = frozenset(SCOPES)
CHAT, SCORE, ADMIN = frozenset({"chat"}), frozenset({"score"}), frozenset({"admin"})

# Pages hold no data: they request it with a key. /health says only that the server is up, and /ready without a key only
# whether every model answers: probes of orchestrators, such as Kubernetes', have no key. The paths under /label/ and
# /compare/ authenticate annotators themselves: a judgement carries the name of its person.
ANNOTATOR_PATHS = ("/compare/*", "/label/*")
READY = "/ready"
# No model makes embeddings, which is no secret.
PUBLIC_PATHS = ("/", "/health", READY, "/runs", "/compare", "/label", "/story", "/v1/embeddings", *ANNOTATOR_PATHS)
# One of the scopes is enough. A path that ends with /* stands for all below it.
REQUIRED_SCOPES = {
    "/v1/chat/completions": CHAT,
    "/v1/completions": CHAT,
    "/v1/responses": CHAT,
    "/v1/messages": CHAT,
    "/v1/messages/count_tokens": CHAT,
    "/tokenizer_info": CHAT,
    "/tokenize": CHAT,
    "/detokenize": CHAT,
    "/thumbs": CHAT,
    "/markdown": CHAT,
    "/story/*": CHAT,
    "/v1/score": SCORE,
    "/v1/models": ANY,
    "/v1/models/*": ANY,
    "/openapi.json": ANY,
    "/metrics": ADMIN,
    "/runs/*": ADMIN,
    "/admin/*": ADMIN,
}
# Changing the served weights needs a key, or the token that the server leaves in the run folder, even where no other
# path needs one: other users of the machine did not start the server.
ALWAYS_KEYED = ("/admin/*",)


@dataclass(frozen=True)
class Caller:
    """The sender of a request: the name of a key, or empty without one."""

    name: str
    key: Key | None = None


ANONYMOUS = Caller("")
# Stands for a token, and for the name, of a person who judges on this machine while there is no key and no token.
GUEST = "guest"
HOST = re.compile(r"(\[(?P<v6>[^\]]*)\]|(?P<name>[^:\[\]]*))(:\d+)?")


def path_pattern(path: str) -> str:
    """Returns the entry of `PUBLIC_PATHS` or `REQUIRED_SCOPES` that a path matches, or "other"."""
    listed = [*PUBLIC_PATHS, *REQUIRED_SCOPES]
    if path in listed:
        return path
    return next((pattern for pattern in listed if pattern.endswith("/*") and path.startswith(pattern[:-1])), "other")


def scopes_for(path: str) -> frozenset[str] | None:
    """Returns the scopes of which a key needs one, or None if no key is needed.

    Raises:
        RequestError: 404, the path is not listed.
    """
    pattern = path_pattern(path)
    if pattern in PUBLIC_PATHS:
        return None
    if pattern not in REQUIRED_SCOPES:
        raise RequestError(404, f"{path[:80]} is no path of this server", "NotFoundError")
    return REQUIRED_SCOPES[pattern]


def is_loopback(host: str) -> bool:
    """Returns whether only programs on this machine reach an address."""
    try:
        return host.lower() == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def anonymous_access(host: str, without_keys: bool = False) -> AnonymousAccess:
    """Returns when a server on an address admits requests without a key.

    Raises:
        UserError: keys are switched off for an address that other machines reach.
    """
    if not is_loopback(host):
        if without_keys:
            raise UserError(f"--open is for this machine alone, and others reach {host}: use --host 127.0.0.1")
        return "never"
    return "always" if without_keys else "until a key is made"


class Authorizer:
    """Admits or refuses requests.

    Args:
        folder: the run folder with the keys; None if there is no run, and so no key.
        anonymous: whether requests without a key are admitted.
        owner: an additional key, for the person who started the server; names in the folder have no parentheses.
    """

    def __init__(self, folder: Path | None, anonymous: AnonymousAccess, owner: Key | None = None) -> None:
        self._ring, self._anonymous, self._owner = KeyRing(folder) if folder else None, anonymous, owner

    def is_open(self) -> bool:
        """Returns whether requests are admitted without a key at present."""
        return self._anonymous == "always" or (
            self._anonymous == "until a key is made" and not (self._ring and self._ring.exists())
        )

    def admit(self, path: str, token: str | None, host: str) -> Caller:
        """Returns the caller of a request.

        Args:
            path: the path of the request.
            token: its key, if it has one.
            host: its `Host` header.

        Raises:
            RequestError: 401 without a valid key, 403 with a key of another scope or under a foreign host name, 404 for
                a path that is not listed.
        """
        if self.is_open() and path_pattern(path) not in ALWAYS_KEYED:
            # A page from elsewhere can resolve its own name to this machine (DNS rebinding); the header shows it.
            if not is_loopback(_without_port(host)):
                raise RequestError(403, "without keys, this server answers to localhost only; make a key to change it")
            return ANONYMOUS
        needed = scopes_for(path)
        if needed is None:
            # Annotators with a key, as opposed to a token, have the limits of their key.
            key = self._annotator_key(token) if token and path_pattern(path) in ANNOTATOR_PATHS else None
            if token and path == READY:
                key = self._find_key(token)
            return Caller(key.name, key) if key else ANONYMOUS
        key = self._find_key(token) if token else None
        if key is None:
            raise RequestError(401, self._why_refused(token), "AuthenticationError")
        if needed.isdisjoint(key.scopes):
            have, need = ", ".join(key.scopes), " or ".join(sorted(needed))
            raise RequestError(403, f"this needs a key with the scope {need}; yours has {have}", "PermissionError")
        return Caller(key.name, key)

    def _why_refused(self, token: str | None) -> str:
        if token is None:
            return "a key is needed: send it as `Authorization: Bearer KEY`"
        # Only its holder learns that there was such a key.
        expired = self._ring and self._ring.is_expired(token)
        return "this key has expired: ask whoever runs the server for another" if expired else "this key is not valid"

    def annotator(self, token: str) -> str | None:
        """Returns the name of a key with the scope label, under which its judgements are stored."""
        key = self._annotator_key(token)
        return key.name if key else None

    def is_admin(self, token: str) -> bool:
        """Returns whether a token is a key with the scope admin."""
        key = self._find_key(token)
        return key is not None and "admin" in key.scopes

    def _find_key(self, token: str) -> Key | None:
        if self._owner and self._owner.fits(token):
            return self._owner
        return self._ring.holder(token) if self._ring else None

    def _annotator_key(self, token: str) -> Key | None:
        key = self._ring.holder(token) if self._ring else None
        return key if key and "label" in key.scopes else None


def admits_guests(database: Feedback, is_open: Callable[[], bool]) -> bool:
    """Tells whether people may judge as guests: on this machine, while there is no key and no annotator's token."""
    return is_open() and not database.annotators()


def annotator_dependency(
    database: Feedback, annotator_of_key: Callable[[str], str | None], is_open: Callable[[], bool]
) -> Callable[[Request], str]:
    """Returns a FastAPI dependency that gives the annotator's name. It answers 401 without a known token, and 403 to an
    annotator who is excluded.

    Args:
        database: knows the tokens that `triptych annotator add` printed.
        annotator_of_key: returns the name behind a key that allows judging, or None.
        is_open: whether requests are admitted without a key.
    """

    def annotator(request: Request) -> str:
        token = bearer(request.headers.get("authorization", ""))
        name = database.annotator_of(token) or annotator_of_key(token) if token else None
        if name is None and token == GUEST and admits_guests(database, is_open):
            name = GUEST
        if name is None:
            raise HTTPException(401, "this token is not known; ask whoever runs the server for yours")
        if name in database.excluded():
            raise HTTPException(403, f"{name} is excluded from judging; ask whoever runs the server")
        return name

    return annotator


def token_of(headers: Mapping[str, str]) -> str | None:
    """Returns the key in a request's headers: `Authorization: Bearer KEY`, or Anthropic's `x-api-key`."""
    return bearer(headers.get("authorization", "")) or headers.get("x-api-key", "").strip() or None


def bearer(authorization: str) -> str | None:
    """Returns the token in an `Authorization` header."""
    scheme, _, token = authorization.partition(" ")
    return token.strip() or None if scheme.lower() == "bearer" else None


def _without_port(host: str) -> str:
    """Returns the host of a `Host` header, or an empty text if it is none."""
    found = HOST.fullmatch(host)
    return (found["v6"] or found["name"]) if found else ""

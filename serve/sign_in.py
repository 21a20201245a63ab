"""Who asks: people send the personal token that `triptych labeller add` printed."""

from collections.abc import Callable

from fastapi import HTTPException, Request

from cluster.feedback import Feedback
from serve.access import bearer


def labeller_of_request(database: Feedback, known: Callable[[str], str | None]) -> Callable[[Request], str]:
    """A FastAPI dependency that gives the labeller's name. 401 without a known token; 403 to who is excluded.

    Args:
        database: knows the labellers' tokens.
        known: gives the name behind any other token that lets its holder judge.
    """

    def signed_in(request: Request) -> str:
        token = bearer(request.headers.get("authorization", ""))
        name = database.labeller_of(token) or known(token) if token else None
        if name is None:
            raise HTTPException(401, "this token is not known; ask whoever runs the server for yours")
        if name in database.excluded():
            raise HTTPException(403, f"{name} is excluded from judging; ask whoever runs the server")
        return name

    return signed_in

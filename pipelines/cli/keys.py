"""`triptych key`: creates, lists and revokes the API keys of a run."""

import os
import time
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from cluster.errors import UserError
from cluster.keys import SCOPES, Key, KeyRing, used_tokens
from pipelines.cli.feedback import RunOption

keys = typer.Typer(
    no_args_is_help=True, help="API keys of a run: the parts of its server that they open, and their limits."
)

DAY_SECONDS = 24 * 60 * 60.0
MAX_DAYS = 100_000

Name = Annotated[str, typer.Argument(metavar="NAME", help="the holder of the key, as logs and metrics show them")]
Requests = Annotated[int | None, typer.Option(help="most requests; no limit by default", min=1)]
Tokens = Annotated[
    int | None, typer.Option(help="most tokens, of prompts and answers together; no limit by default", min=1)
]


@keys.command("add")
def add(
    name: Name,
    run: RunOption,
    scope: Annotated[
        list[str], typer.Option(help=f"a part of the server that it opens, of {', '.join(SCOPES)}; may be repeated")
    ],
    requests_per_minute: Requests = None,
    tokens_per_minute: Tokens = None,
    days: Annotated[float | None, typer.Option(help="days until it expires; never by default")] = None,
    max_parallel_requests: Annotated[
        int | None, typer.Option(help="most requests at once; no limit by default", min=1)
    ] = None,
    token_budget: Annotated[
        int | None, typer.Option(help="most tokens in its lifetime; no limit by default", min=1)
    ] = None,
    record: Annotated[
        bool, typer.Option("--record", help="its holder agrees that prompts sent with it are stored (serve.record)")
    ] = False,
) -> None:
    """Create a key and print it, once. From the first key on, the server of the run asks everyone for a key."""
    if days is not None and not 0 < days < MAX_DAYS:
        raise UserError(f"--days {days:g} makes no key that is valid for a time: give 1 to {MAX_DAYS}")
    token = _ring(run).add(
        name,
        scope,
        requests_per_minute,
        tokens_per_minute,
        _user(),
        expires=None if days is None else time.time() + days * DAY_SECONDS,
        max_parallel_requests=max_parallel_requests,
        token_budget=token_budget,
        record=record,
    )
    print(f"{token}\nThis is {name}'s key. It is shown once: only its hash is stored.")


@keys.command("list")
def names(run: RunOption) -> None:
    """List every key with its scopes and limits, and what it has used of its budget until a second ago."""
    ring = _ring(run)
    used = sum(used_tokens(run).values(), Counter[str]())
    for key in ring.all():
        limits = (
            (key.requests_per_minute, "requests a minute"),
            (key.tokens_per_minute, "tokens a minute"),
            (key.max_parallel_requests, "requests at once"),
            (key.token_budget, "tokens in all"),
        )
        most = ", ".join(f"{count} {what}" for count, what in limits if count) or "no limit"
        if key.token_budget:
            most += f", {used[key.digest]} used"
        most += ", prompts may be stored" if key.record else ""
        print(f"{key.name}\t{','.join(key.scopes)}\t{most}\tmade {_day(key.made)}\t{_state(key)}")


@keys.command("revoke")
def revoke(name: Name, run: RunOption) -> None:
    """Revoke a key, with immediate effect on a running server."""
    _ring(run).revoke(name, _user())
    print(f"{name}'s key is revoked")


def _ring(run: Path) -> KeyRing:
    if not run.is_dir():
        raise UserError(f"{run} is not a run folder: `triptych run RECIPE` makes one")
    return KeyRing(run)


def _state(key: Key) -> str:
    if key.revoked is not None:
        return f"revoked {_day(key.revoked)}"
    if key.expires is None:
        return "valid"
    return f"{'valid until' if key.valid else 'expired'} {_day(key.expires)}"


def _user() -> str:
    return f"user {os.getuid()} on the command line"


def _day(seconds: float) -> str:
    return time.strftime("%Y-%m-%d", time.localtime(seconds))

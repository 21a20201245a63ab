"""`triptych key`: creates, lists and revokes the API keys of a run."""

import os
import time
from pathlib import Path
from typing import Annotated

import typer

from cluster.errors import UserError
from cluster.keys import SCOPES, KeyRing
from pipelines.cli.feedback import RunOption

keys = typer.Typer(
    no_args_is_help=True, help="API keys of a run: the parts of its server that they open, and their limits."
)

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
) -> None:
    """Create a key and print it, once. From the first key on, the server of the run asks everyone for a key."""
    token = _ring(run).add(name, scope, requests_per_minute, tokens_per_minute, _user())
    print(f"{token}\nThis is {name}'s key. It is shown once: only its hash is stored.")


@keys.command("list")
def names(run: RunOption) -> None:
    """List every key with its scopes and limits."""
    for key in _ring(run).all():
        limits = ((key.requests_per_minute, "requests"), (key.tokens_per_minute, "tokens"))
        most = ", ".join(f"{count} {what} a minute" for count, what in limits if count) or "no limit"
        state = "valid" if key.revoked is None else f"revoked {_day(key.revoked)}"
        print(f"{key.name}\t{','.join(key.scopes)}\t{most}\tmade {_day(key.made)}\t{state}")


@keys.command("revoke")
def revoke(name: Name, run: RunOption) -> None:
    """Revoke a key, with immediate effect on a running server."""
    _ring(run).revoke(name, _user())
    print(f"{name}'s key is revoked")


def _ring(run: Path) -> KeyRing:
    if not run.is_dir():
        raise UserError(f"{run} is not a run folder: `triptych run RECIPE` makes one")
    return KeyRing(run)


def _user() -> str:
    return f"user {os.getuid()} on the command line"


def _day(seconds: float) -> str:
    return time.strftime("%Y-%m-%d", time.localtime(seconds))

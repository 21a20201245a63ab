"""The commands for API keys: make one, list them, revoke one."""

import os
import time
from pathlib import Path
from typing import Annotated

import typer

from cluster.errors import UserError
from cluster.keys import SCOPES, KeyRing
from pipelines.cli.feedback import RunOption

keys = typer.Typer(no_args_is_help=True, help="API keys of a run: who may ask its server for what.")

Name = Annotated[str, typer.Argument(metavar="NAME", help="whose key it is, as logs and metrics will name them")]
Requests = Annotated[int | None, typer.Option(help="most requests; any number by default", min=1)]
Tokens = Annotated[int | None, typer.Option(help="most tokens, prompts and answers; any number by default", min=1)]


@keys.command("add")
def add(
    name: Name,
    run: RunOption,
    scope: Annotated[list[str], typer.Option(help=f"what it opens, of {', '.join(SCOPES)}; may be given again")],
    requests_per_minute: Requests = None,
    tokens_per_minute: Tokens = None,
) -> None:
    """Make a key: prints it, once. From the first key on, a served run asks everyone for one."""
    token = _ring(run).add(name, scope, requests_per_minute, tokens_per_minute, _user())
    print(f"{token}\nThis is {name}'s key. It is shown once: only a hash of it is kept.")


@keys.command("list")
def names(run: RunOption) -> None:
    """Name every key, with what it opens and how much it may ask."""
    for key in _ring(run).all():
        limits = ((key.requests_per_minute, "requests"), (key.tokens_per_minute, "tokens"))
        most = ", ".join(f"{count} {what} a minute" for count, what in limits if count) or "no limit"
        state = "valid" if key.revoked is None else f"revoked {_day(key.revoked)}"
        print(f"{key.name}\t{','.join(key.scopes)}\t{most}\tmade {_day(key.made)}\t{state}")


@keys.command("revoke")
def revoke(name: Name, run: RunOption) -> None:
    """End a key, also for a server that runs."""
    _ring(run).revoke(name, _user())
    print(f"{name}'s key opens nothing any more")


def _ring(run: Path) -> KeyRing:
    if not run.is_dir():
        raise UserError(f"{run} is not a run folder: `triptych run RECIPE` makes one")
    return KeyRing(run)


def _user() -> str:
    return f"user {os.getuid()} on the command line"


def _day(seconds: float) -> str:
    return time.strftime("%Y-%m-%d", time.localtime(seconds))

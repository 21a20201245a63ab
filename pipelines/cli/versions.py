"""`triptych promote` and `triptych rollback`: change the version of a model that a running server serves."""

from pathlib import Path
from typing import Annotated, Any

import typer

from cluster.errors import UserError
from cluster.run.server_client import ask_server

Run = Annotated[Path, typer.Argument(metavar="RUN", help="the run folder that is being served, such as runs/demo")]
Model = Annotated[str, typer.Argument(metavar="MODEL", help="the model, such as policy, or the adapter")]


def promote(
    run: Run,
    model: Model,
    version: Annotated[
        str | None, typer.Option(help="first digits of a version that was served before; by default the run's latest")
    ] = None,
    adapter: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="for an adapter of serve.adapters: a folder in PEFT's format to serve; by default the recipe's",
        ),
    ] = None,
) -> None:
    """Serve other weights of a model or an adapter, without dropping a request."""
    if version and adapter:
        raise UserError("give --version or --adapter, and not both")
    folder = {"adapter": str(adapter.absolute())} if adapter else {}
    _print(ask_server(run, "promote", {"model": model, "version": version, **folder}))


def rollback(run: Run, model: Model) -> None:
    """Serve the weights of a model or an adapter that were live before the present ones."""
    _print(ask_server(run, "rollback", {"model": model}))


def _print(done: dict[str, Any]) -> None:
    mixed = f"; {done['mixed_answers']} answers are partly from each, and marked so" if done["mixed_answers"] else ""
    change = f"{done['from'][:12]} -> {done['to'][:12]}"
    print(f"{done['model']}: {change}, requests paused for {done['seconds']:.2f} s{mixed}")

"""The commands for the people who judge: their tokens, the page they judge on, and judgements in and out of files."""

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cluster.errors import UserError
from cluster.run.folder import RunFolder

if TYPE_CHECKING:
    from cluster.feedback import Feedback

annotators = typer.Typer(no_args_is_help=True, help="The people who may judge, and their tokens.")
exchange = typer.Typer(no_args_is_help=True, help="Judgements from files into a run's database, and out of it.")

RunOption = Annotated[Path, typer.Option("--run", help="the run folder, e.g. runs/demo")]
Kind = Annotated[
    str,
    typer.Argument(metavar="FORMAT", help="hh-rlhf, trl, trl-messages, lists, pandalm, ultrafeedback or openassistant"),
]
Name = Annotated[str, typer.Argument(metavar="NAME", help="the person, as the database will name them")]


def label(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="the run folder, e.g. runs/demo")],
    host: Annotated[str, typer.Option(help="address to serve on")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="port to serve on", min=1, max=65535)] = 8001,
    people: Annotated[int, typer.Option(help="how many people are to judge each prompt", min=1)] = 1,
) -> None:
    """Serve only the label page, without any model: also while a stage waits for people. Until Ctrl-C."""
    _open(folder).close()
    # The server is a floor above: it is named here and imported when called, as the stages are.
    from serve.pages.label import serve_labels

    serve_labels(RunFolder(folder), host, port, people)


@annotators.command("add")
def add(name: Name, run: RunOption) -> None:
    """Let a person judge: prints their token, once."""
    _print_token(name, run, renew=False)


@annotators.command("renew")
def renew(name: Name, run: RunOption) -> None:
    """Give a person another token; the old one ends."""
    _print_token(name, run, renew=True)


@annotators.command("exclude")
def exclude(name: Name, run: RunOption) -> None:
    """Let a person's judgements count for nothing, and let them judge no more; all is kept."""
    with _open(run) as database:
        database.exclude(name)
    print(f"{name} is excluded, from the next `collect` on. Remove {run / 'preferences'} to have one run again.")


@annotators.command("include")
def include(name: Name, run: RunOption) -> None:
    """Let the judgements of a person who was excluded count again."""
    with _open(run) as database:
        database.exclude(name, excluded=False)
    print(f"{name} counts")


@annotators.command("list")
def names(run: RunOption) -> None:
    """Name everyone who has a token or has judged, with how much, and who is excluded."""
    with _open(run) as database:
        judged = Counter(row.annotator for row in database.judgements())
        excluded = database.excluded()
        for name in sorted({*database.annotators(), *judged}):
            print(f"{name}\t{judged[name]} judged" + ("\texcluded" if name in excluded else ""))


@exchange.command("import")
def import_file(
    kind: Kind,
    path: Annotated[Path, typer.Argument(metavar="FILE", help="JSONL (also .gz), Parquet, or JSON with a list")],
    run: RunOption,
    name: Annotated[str | None, typer.Option(help="what to call it; the file's name by default")] = None,
    annotator: Annotated[str, typer.Option(help="who ranked, where the file does not say")] = "imported",
    held_out: Annotated[float, typer.Option(help="share of the prompts to hold out", min=0, max=0.5)] = 0.15,
    gold: Annotated[
        bool, typer.Option("--gold", help="the file's rankings are right: test the annotators on them")
    ] = False,
) -> None:
    """Add a file of preferences to a run's database. The same file again adds nothing."""
    with _open(run) as database:
        name = name or path.name.partition(".")[0]
        from pipelines.data.feedback_io import import_file as read

        new = read(database, kind, path, name, annotator, held_out, gold)
        print(f"{new} new prompts from {path}, under the name {name}")


@exchange.command("export")
def export_file(
    kind: Kind,
    path: Annotated[Path, typer.Argument(metavar="FILE", help="JSONL to write, or JSON if it ends so")],
    run: RunOption,
    name: Annotated[str | None, typer.Option(help="only what was imported under this name")] = None,
) -> None:
    """Write people's rankings to a file; as "answers", the better answers that they wrote, to fine-tune on; as
    "thumbs", what they thought of answers on the chat page, in TRL's layout of preferences without pairs."""
    with _open(run) as database:
        from pipelines.data.feedback_io import export_file

        count = export_file(database, kind, path, name)
        print(f"{count} rows in {path}")


@exchange.command("count")
def count(run: RunOption) -> None:
    """Say how much a run's database holds: prompts, their completions, and what people did with them."""
    with _open(run) as database:
        held = asdict(database.counts())
    for name, number in held.items():
        print(f"{name.replace('_', ' ')}\t{number}")


def _print_token(name: str, run: Path, renew: bool) -> None:
    with _open(run) as database:
        token = database.add_annotator(name, renew)
    print(f"{token}\nThis is {name}'s token for the label page. It is shown once: only a hash of it is kept.")


def _open(run: Path) -> "Feedback":
    # Imported late: every command of the console script imports this module, and few need the database.
    from cluster.feedback import open_feedback

    if not run.is_dir():
        raise UserError(f"{run} is not a run folder: `triptych run RECIPE` makes one, and mkdir is enough for imports")
    return open_feedback(RunFolder(run).feedback_url)

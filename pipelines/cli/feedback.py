"""`triptych label`, `annotator` and `feedback`: the label page, its annotators, and import and export of feedback."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cluster.errors import UserError
from cluster.run.folder import RunFolder
from cluster.run.server_client import served_at

if TYPE_CHECKING:
    from cluster.feedback import Feedback

annotators = typer.Typer(no_args_is_help=True, help="The annotators of a run, and their tokens.")
exchange = typer.Typer(no_args_is_help=True, help="Import and export of a run's feedback database.")

RunOption = Annotated[Path, typer.Option("--run", help="the run folder, e.g. runs/demo")]
Kind = Annotated[
    str,
    typer.Argument(metavar="FORMAT", help="hh-rlhf, trl, trl-messages, lists, pandalm, ultrafeedback or openassistant"),
]
Name = Annotated[str, typer.Argument(metavar="NAME", help="the annotator, as the database names them")]


def label(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="the run folder, e.g. runs/demo")],
    host: Annotated[str, typer.Option(help="address to serve on")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="port to serve on", min=1, max=65535)] = 8001,
    people: Annotated[int, typer.Option(help="number of people who should judge each prompt", min=1)] = 1,
    certificate: Annotated[Path | None, typer.Option(help="TLS certificate and its chain, in PEM")] = None,
    key: Annotated[Path | None, typer.Option(help="private key of the certificate, in PEM")] = None,
) -> None:
    """Serve the label page alone, without any model, until Ctrl-C: also while a stage waits for judgements."""
    _open(folder).close()
    # Imported late: every command of the console script imports this module, and only this one needs the server.
    from cluster.recipe.serve import Tls
    from serve.pages.label import serve_labels

    if (certificate is None) != (key is None):
        raise UserError("--certificate and --key belong together: give both or neither")
    tls = Tls(certificate=str(certificate), key=str(key)) if certificate else None
    serve_labels(RunFolder(folder), host, port, people, tls)


@annotators.command("add")
def add(name: Name, run: RunOption) -> None:
    """Register an annotator and print their token, once."""
    _print_token(name, run, renew=False)


@annotators.command("renew")
def renew(name: Name, run: RunOption) -> None:
    """Replace an annotator's token; the old one stops working."""
    _print_token(name, run, renew=True)


@annotators.command("exclude")
def exclude(name: Name, run: RunOption) -> None:
    """Leave an annotator's judgements out of training, and refuse new ones; nothing is deleted."""
    with _open_existing(run) as database:
        database.exclude(name)
    print(f"{name} is excluded: the next `triptych run` makes a round without their judgements")


@annotators.command("include")
def include(name: Name, run: RunOption) -> None:
    """Use the judgements of an excluded annotator again."""
    with _open_existing(run) as database:
        database.exclude(name, excluded=False)
    print(f"{name} counts again, from the next `collect` on")


@annotators.command("list")
def names(run: RunOption) -> None:
    """List everyone who has a token or has judged, with the number of judgements."""
    with _open_existing(run) as database:
        judged = Counter(row.annotator for row in database.judgements())
        excluded = database.excluded()
        for name in sorted({*database.annotators(), *judged}):
            print(f"{name}\t{judged[name]} judged" + ("\texcluded" if name in excluded else ""))


@annotators.command("agreement")
def show_agreement(run: RunOption) -> None:
    """Show how far people agree with each other, with gold items and with themselves; with 95 % intervals."""
    from rich.console import Console
    from rich.table import Table

    from cluster.feedback.quality import agreement_report

    with _open_existing(run) as database:
        found = agreement_report(database)
    table = Table("annotator", "judged", "alpha", "pairs alike", "gold", "consistency")
    for row in found["agreement"]:
        own = found["reliability"].get(row["annotator"], {})
        figures = (row["alpha"], row["pairwise"], own.get("gold"), own.get("consistency"))
        table.add_row(row["annotator"] or "everybody", str(row["judged"]), *map(_interval, figures))
    for name in found["excluded"]:
        own = found["reliability"].get(name, {})
        table.add_row(f"{name} (excluded)", "", "", "", _interval(own.get("gold")), _interval(own.get("consistency")))
    Console().print(table)
    if left_out := found["counts"]["chosen"]:
        print(f"{left_out} rankings of prompts that collect.select chose are left out: these are harder than others")


@exchange.command("import")
def import_file(
    kind: Kind,
    path: Annotated[Path, typer.Argument(metavar="FILE", help="JSONL (also .gz), Parquet, or JSON with a list")],
    run: RunOption,
    name: Annotated[str | None, typer.Option(help="a name for the import; the file's name by default")] = None,
    annotator: Annotated[str, typer.Option(help="the annotator, where the file names none")] = "imported",
    held_out: Annotated[float, typer.Option(help="share of prompts to hold out", min=0, max=0.5)] = 0.15,
    gold: Annotated[
        bool, typer.Option("--gold", help="the file's rankings are correct: test annotators on them")
    ] = False,
    max_bad: Annotated[
        float, typer.Option(help="largest share of rows to leave out because they cannot be read", min=0, max=1)
    ] = 0.05,
) -> None:
    """Add a file of preferences to a run's database. Importing a file twice adds nothing."""
    with _open(run) as database:
        name = name or path.name.partition(".")[0]
        from pipelines.data.feedback.io import import_file as read

        rejected = run / "rejected" / f"{name}.jsonl"
        found = read(database, kind, path, name, annotator, held_out, gold, max_bad, rejected)
        print(f"{found.new} new prompts from {path}, under the name {name}")
        if found.bad:
            print(f"{len(found.bad)} of {found.rows} rows were left out: {rejected} has them with their reasons")


@exchange.command("export")
def export_file(
    kind: Kind,
    path: Annotated[Path, typer.Argument(metavar="FILE", help="JSONL to write, or JSON if it ends so")],
    run: RunOption,
    name: Annotated[str | None, typer.Option(help="export only the import of this name")] = None,
) -> None:
    """Write people's rankings to a file. FORMAT can also be answers (that annotators wrote), thumbs or votes."""
    with _open_existing(run) as database:
        from pipelines.data.feedback.io import export_file

        found = export_file(database, kind, path, name)
        print(f"{found.rows} rows in {path}")
        if found.votes:
            print(f"{found.votes} votes of the compare page are not among them: export votes for these")
        if found.repaired:
            print(f"{found.repaired} rows held characters or numbers that JSON cannot: written as \ufffd or null")


@exchange.command("delete")
def delete(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="rankings, votes or thumbs")],
    numbers: Annotated[list[int], typer.Argument(metavar="NUMBER...", help="their numbers on the page /runs")],
    run: RunOption,
) -> None:
    """Delete judgements for good. The next round is made without them; earlier ones are kept as they are."""
    with _open_existing(run) as database:
        # Imported late, as the database itself.
        from cluster.feedback.judged import SOURCES, trace_judgements

        table = next((one for one in SOURCES if one == source), None)
        if table is None:
            raise UserError(f"{source!r} is not a source of judgements: choose one of {', '.join(SOURCES)}")
        rounds = {one.judgement.key[:2]: one.rounds for one in trace_judgements(RunFolder(run), "preferences")}
        for number in numbers:
            database.delete(table, number)
            seen = ", ".join(map(str, rounds.get((table, number), [])))
            print(f"{source} {number} is deleted" + (f"; the policies of round {seen} learned from it" if seen else ""))


@exchange.command("forget")
def forget(
    run: RunOption,
    key: Annotated[str | None, typer.Option(help="the name of the key that the prompts were sent with")] = None,
    request: Annotated[str | None, typer.Option(help="the X-Request-Id of the request")] = None,
    text: Annotated[str | None, typer.Option(help="a text that is in any of the prompt's messages")] = None,
) -> None:
    """Delete stored prompts of live traffic for good, with the answers to them and their judgements."""
    with _open_existing(run) as database:
        database.delete_expired_live()
        deleted = database.delete_live(key, request, text)
    from cluster.feedback.live import rounds_with

    print(f"{len(deleted.prompts)} prompts are deleted, and {deleted.judgements} judgements of answers to them")
    if rounds := rounds_with(RunFolder(run), deleted.prompts):
        print(f"round {', '.join(map(str, rounds))} was made with some of them and is kept as it is")


@exchange.command("count")
def count(run: RunOption) -> None:
    """Count what a run's database holds, of people and of functions, and the rows that an export of it has."""
    with _open_existing(run) as database:
        from pipelines.data.feedback.io import exportable

        rows = {f"exported as {kind}": number for kind, number in exportable(database).items()}
        live = {f"live prompts by {consent}": number for consent, number in database.live_counts().items()}
        held = asdict(database.counts()) | live | rows
    for name, number in held.items():
        print(f"{name.replace('_', ' ')}\t{number}")


def _interval(estimate: Mapping[str, float] | None) -> str:
    return f"{estimate['value']:.2f} ({estimate['low']:.2f}–{estimate['high']:.2f})" if estimate else "–"


def _print_token(name: str, run: Path, renew: bool) -> None:
    with _open(run) as database:
        token = database.add_annotator(name, renew)
    print(f"{token}\nThis is {name}'s token for the label page. It is shown once: only its hash is stored.")
    address = served_at(run) or "the page's address, such as http://127.0.0.1:8001"
    print(f"A link signs in: {address}/label#token={token}")


def _open(run: Path) -> "Feedback":
    # Imported late: every command of the console script imports this module, and few need the database.
    from cluster.feedback import open_feedback

    if not run.is_dir():
        raise UserError(f"{run} is not a run folder: `triptych run RECIPE` makes one, and mkdir is enough for imports")
    return open_feedback(RunFolder(run).feedback_url)


def _open_existing(run: Path) -> "Feedback":
    """Opens the database for a command that has nothing to do without one, and so makes none in a mistyped folder."""
    if run.is_dir() and not any((run / name).exists() for name in ("feedback.db", "feedback.url", "recipe.yaml")):
        raise UserError(f"{run} is no run folder and has no feedback database: name the folder of a run")
    return _open(run)

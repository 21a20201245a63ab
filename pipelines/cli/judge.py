"""`triptych judge`: two models of a run compared by a judge or by people's votes."""

from pathlib import Path
from typing import Annotated

import typer

from cluster.errors import UserError


def judge(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="the run folder, e.g. runs/demo, with a report")],
    by: Annotated[
        str | None,
        typer.Option(help="the http address of an OpenAI-compatible judge; default: people's votes on /compare"),
    ] = None,
    model: Annotated[str | None, typer.Option(help="the name of the judge at its address")] = None,
    first: Annotated[str, typer.Option(help="the model whose wins are counted")] = "policy",
    second: Annotated[str, typer.Option(help="the model that it is compared with")] = "sft",
    people: Annotated[
        Path | None,
        typer.Option(
            help="pairs on which people decided, to compare the judge with: rows of prompt, chosen and rejected; "
            "default: the run's votes on /compare"
        ),
    ] = None,
    least: Annotated[
        float,
        typer.Option(help="the least agreement with people, at the lower end of its 95 % interval", min=0, max=1),
    ] = 0.6,
    accept_judge: Annotated[str | None, typer.Option(help="use the judge of this name in spite of --least")] = None,
    out: Annotated[
        Path | None, typer.Option(help="the file to write; default: judged.json in the current folder")
    ] = None,
) -> None:
    """Compare two models of a run by a judge, whose agreement with people comes first, or by people's votes."""
    # Imported late: every command of the console script imports this module.
    from rich.console import Console

    from cluster.feedback import open_feedback
    from cluster.run.folder import RunFolder
    from cluster.run.storage.files import require_writable
    from pipelines.evaluate.judge.pairs import Pair, between, preference_pairs, report_pairs, voted_pairs
    from pipelines.evaluate.judge.run import compare_by_judge, compare_by_votes
    from pipelines.evaluate.tasks.http_model import HttpModel

    if not run.is_dir():
        raise UserError(f"{run} is not a run folder")
    folder, file, console = RunFolder(run.absolute()), out or Path("judged.json"), Console()
    require_writable(file, parents=True)

    def votes() -> list[Pair]:
        with open_feedback(folder.feedback_url) as database:
            return voted_pairs(database)

    if by is None:
        if model or people or accept_judge:
            raise UserError("--model, --people and --accept-judge are for a judge: give its address with --by")
        compare_by_votes(between(votes(), first, second), file, console)
    else:
        pairs = report_pairs(folder.path("report") / "answers.json", first, second)
        decided = preference_pairs(people) if people else votes()
        server = HttpModel.of(by, model)
        compare_by_judge(server, server.model, pairs, decided, least, accept_judge, file, console)
    print(f"verdicts and figures are in {file}")

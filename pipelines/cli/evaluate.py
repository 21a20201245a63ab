"""`triptych evaluate`: the stage of a run, or tasks on any model folder or address. `triptych judge`: two models of a
run compared by a judge or by people's votes."""

from pathlib import Path
from typing import Annotated

import typer

from cluster.errors import UserError
from cluster.recipe.evaluate import MAX_BAD_SHARE
from cluster.recipe.loading import load_recipe
from cluster.run.layout import stage_named, stages_of
from pipelines.cli.stage_runner import run_stages


def evaluate(
    target: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE|MODEL|ADDRESS",
            help="a recipe; a folder with a model; or the http address of an OpenAI-compatible server",
        ),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="keys of the recipe to set", show_default=False),
    ] = None,
    tasks: Annotated[
        str | None,
        typer.Option(
            help="for a model or address: built-in tasks and files as KIND:PATH, with commas between; default: built_in"
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="for a model or address: the folder to write to")] = None,
    model: Annotated[str | None, typer.Option(help="for an address: the name of the model")] = None,
    actors: Annotated[
        int | None, typer.Option(help="for a model: engines side by side; default: one a core or GPU, at most 2", min=1)
    ] = None,
    max_bad: Annotated[
        float | None,
        typer.Option(
            help="for a model or address: the largest share of a file's rows to leave out because they cannot be used; "
            f"default: {MAX_BAD_SHARE:g}",
            min=0,
            max=1,
        ),
    ] = None,
    plain: Annotated[
        bool, typer.Option("--plain", help="for a model: do not use its chat template, as for a base model")
    ] = False,
) -> None:
    """Compare the models of a run and write the report; or run tasks on one model, and go on where they ended."""
    remote = target.startswith(("http://", "https://"))
    if not remote and not (Path(target) / "config.json").exists():
        if tasks or out or model or actors or plain or max_bad is not None:
            raise UserError(
                f"--tasks, --out, --model, --actors, --max-bad and --plain are for a model: {target} is no folder with "
                "a config.json and no http address; a recipe names its tasks in evaluate.tasks"
            )
        if Path(target).is_dir():
            raise UserError(f"{target} holds no model: it has no config.json")
        recipe = load_recipe(target, overrides)
        stage = stage_named("evaluate")
        run_stages(recipe, (next((own for own in stages_of(recipe) if own.name == stage.name), stage),), None)
        return
    if remote and (actors or plain):
        raise UserError("--actors and --plain are for a model's folder: a server decides both by itself")
    if overrides:
        raise UserError(f"{overrides[0]} sets a key of a recipe, and {target} is a model")
    # Imported late: they bring torch, and every command of the console script imports this module.
    from rich.console import Console

    from cluster.run.storage.files import require_writable
    from pipelines.evaluate.tasks.loading import load_tasks, parse_tasks
    from pipelines.evaluate.tasks.run import evaluate_alone

    chosen = load_tasks(parse_tasks(tasks or "built_in", MAX_BAD_SHARE if max_bad is None else max_bad))
    if not chosen:
        raise UserError("--tasks names no task")
    named = model or target.rstrip("/").rpartition("/")[2].replace(":", "-")
    folder = out or Path("runs") / "tasks" / named
    require_writable(folder / "tasks.json", parents=True)
    chats = not plain and _has_template(Path(target), remote)
    evaluate_alone(target, chosen, folder, actors, chats, model, Console())
    print(f"figures, answers and lm-eval's layout are in {folder}")


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


def _has_template(folder: Path, remote: bool) -> bool:
    if remote:
        return True
    from actors.model.tokenizer import load_tokenizer

    return bool(load_tokenizer(folder).chat_template)

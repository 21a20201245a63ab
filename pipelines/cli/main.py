"""Defines the commands of `triptych`. Each checks its input first and reports an error in one line."""

import contextlib
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from cluster import __version__
from cluster.errors import UserError, known_failure
from cluster.recipe.loading import load_recipe
from cluster.recipe.model import Cluster
from cluster.recipe.reference import reference
from cluster.run.fleet_control import request_resize
from cluster.run.folder import RunFolder
from cluster.run.layout import OPTIONAL_STAGES, STAGES, Stage, stage_of, stages_of
from cluster.run.server_client import server_file
from cluster.runtime.plan import make_plan, resources_here
from cluster.runtime.session import check_address, collect_garbage_rarely, connect, require_free_port
from pipelines.cli import evaluate, experiment, feedback, keys, models, rounds, start, status, versions
from pipelines.cli.stage_runner import connect_for, print_resource_plan, run_stages, serve_run

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Turn text and human judgment into a served, aligned language model.\n\n"
    "[bold]Stages[/bold]: corpus → pretrain → sft → collect → reward → rlhf → evaluate. A recipe, one YAML file, holds "
    "all settings; every key can also be set on the command line. Finished stages are skipped, interrupted ones "
    "resumed.\n\n"
    "[bold]Examples[/bold]\n\n"
    "  triptych run infra/recipes/demo.yaml --serve\n\n"
    "  triptych sft infra/recipes/demo.yaml sft.epochs=3 seed=2\n\n"
    "  triptych serve runs/demo --port 8080\n\n"
    "  triptych submit --address http://head:8265 run recipe.yaml run=/shared/demo\n\n"
    "[bold]Exit codes[/bold]: 0 success; 1 a stage failed; 2 wrong input, explained in one line; 130 Ctrl-C.",
)
RUNNING, SERVING, FEEDBACK = "Running", "Serving", "Human feedback"
ONE_STAGE, OTHER = "Single stages", "Information"

RecipePath = Annotated[
    Path, typer.Argument(metavar="RECIPE", help="the recipe, a YAML file; `triptych recipe` lists its keys")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="keys of the recipe to set, such as rlhf.steps=20",
        show_default=False,
    ),
]
Host = Annotated[str | None, typer.Option(help="address to serve on; default: serve.host")]
Port = Annotated[int | None, typer.Option(help="port to serve on; default: serve.port", min=1, max=65535)]


@app.command(rich_help_panel=RUNNING)
def run(
    recipe: RecipePath,
    overrides: Overrides = None,
    serve: Annotated[bool, typer.Option("--serve", help="serve the models afterwards")] = False,
    host: Host = None,
    port: Port = None,
    plan: Annotated[bool, typer.Option("--plan", help="print memory, shares and the files' rows, and stop")] = False,
) -> None:
    """Run all stages that are not done, in order."""
    loaded = load_recipe(recipe, overrides)
    if plan:
        print_resource_plan(loaded)
        return
    address = (host or loaded.serve.host, port or loaded.serve.port)
    if serve and not loaded.cluster.is_elsewhere:
        require_free_port(*address)
    run_stages(loaded, stages_of(loaded), address if serve else None)


app.command("init", rich_help_panel=RUNNING)(start.init)


def _add_stage_command(stage: Stage) -> None:
    needs = f" Needs {', '.join(stage_of(folder).name for folder in stage.after)}." if stage.after else ""

    @app.command(stage.name, rich_help_panel=ONE_STAGE, help=f"{stage.purpose[0].upper()}{stage.purpose[1:]}.{needs}")
    def command(recipe: RecipePath, overrides: Overrides = None) -> None:
        loaded = load_recipe(recipe, overrides)
        if stage.name == "corpus" and not loaded.corpus.sources:
            raise UserError(f"{recipe} has no corpus.sources to make a corpus from: add some")
        chosen = next((own for own in stages_of(loaded) if own.name == stage.name), stage)
        run_stages(loaded, (chosen,), None)


for _stage in (*STAGES, *OPTIONAL_STAGES):
    if _stage.name == "evaluate":
        app.command("evaluate", rich_help_panel=ONE_STAGE)(evaluate.evaluate)
    else:
        _add_stage_command(_stage)


@app.command("serve", rich_help_panel=SERVING)
def serve_models(
    target: Annotated[Path, typer.Argument(metavar="RUN|RECIPE", help="a run folder such as runs/demo, or a recipe")],
    overrides: Overrides = None,
    host: Host = None,
    port: Port = None,
    without_keys: Annotated[
        bool, typer.Option("--open", help="require no key even if the run has some; loopback addresses only")
    ] = False,
) -> None:
    """Serve a run's models over an OpenAI-compatible HTTP API, with pages, until Ctrl-C."""
    if target.is_dir() and not (target / "recipe.yaml").exists():
        raise UserError(f"{target} is not a run folder: it has no recipe.yaml")
    loaded = load_recipe(target / "recipe.yaml" if target.is_dir() else target, overrides)
    folder = RunFolder(target.absolute() if target.is_dir() else loaded.folder)
    folder.require("sft")
    address = (host or loaded.serve.host, port or loaded.serve.port)
    # A killed command may have left a server on a cluster, which is ended first; a client's server runs elsewhere.
    if not server_file(folder.root).exists() and not loaded.cluster.is_elsewhere:
        require_free_port(*address)
    check_address(loaded.cluster)
    if loaded.cluster.address == "local":
        make_plan(loaded, resources_here(loaded.cluster))
    with connect_for(loaded):
        serve_run(loaded, folder, address, without_keys)


JobServer = Annotated[str, typer.Option(help="address of Ray's job server, such as http://head:8265")]


@app.command(rich_help_panel=RUNNING)
def submit(
    command: Annotated[
        str, typer.Argument(metavar="COMMAND", help="run, a single stage, experiment, loop, serve, doctor or version")
    ],
    recipe: Annotated[Path | None, typer.Argument(metavar="RECIPE", help="the recipe, a YAML file")] = None,
    overrides: Overrides = None,
    address: JobServer = "",
    wait: Annotated[bool, typer.Option(help="print the job's log, and end with its exit code")] = True,
    env: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="environment variable of this shell to give to the job; may be repeated"),
    ] = None,
) -> None:
    """Run a command as a job on a Ray cluster whose nodes share the run folder. Modules that the recipe names, and
    small input files, travel with it."""
    with_recipe = ["run", *(stage.name for stage in (*STAGES, *OPTIONAL_STAGES)), "experiment", "loop", "serve"]
    if command not in [*with_recipe, "doctor", "version"]:
        raise UserError(f"cannot submit {command!r}: choose one of {', '.join([*with_recipe, 'doctor', 'version'])}")
    if (command in with_recipe) != (recipe is not None):
        raise UserError(f"{command} needs a recipe" if recipe is None else f"{command} takes no recipe")
    _require_address(address)
    if missing := [name for name in env or [] if name not in os.environ]:
        raise UserError(f"--env {missing[0]}: this shell has no such variable; export it first")
    loaded = load_recipe(recipe, overrides) if recipe else None
    from cluster.runtime import jobs

    code = jobs.submit(address, [command], loaded, wait, {name: os.environ[name] for name in env or []})
    if code:
        raise typer.Exit(code)


@app.command(rich_help_panel=RUNNING)
def attach(
    job: Annotated[str, typer.Argument(metavar="JOB", help="the job's id, as `triptych submit` printed it")],
    address: JobServer = "",
) -> None:
    """Follow a submitted job: print its log from the beginning, and end with its exit code."""
    _require_address(address)
    from cluster.runtime import jobs

    if code := jobs.attach(address, job):
        raise typer.Exit(code)


def _require_address(address: str) -> None:
    if not address:
        raise UserError("--address is missing: give the address of Ray's job server, such as http://127.0.0.1:8265")


@app.command(rich_help_panel=RUNNING)
def fleet(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="the run folder, whose rlhf stage is running")],
    action: Annotated[str, typer.Argument(metavar="add|remove", help="the direction")],
    count: Annotated[int, typer.Argument(metavar="N", min=1, help="the number of actors")],
) -> None:
    """Add rollout actors to a running rlhf stage, or remove some, from its next step on."""
    if action not in ("add", "remove"):
        raise UserError(
            f"fleet: {action!r} is neither add nor remove; write for example `triptych fleet {folder} add 1`"
        )
    target = request_resize(RunFolder(folder), count if action == "add" else -count)
    print(f"{folder} will have {target} rollout actors from its next step on")


app.command("experiment", rich_help_panel=RUNNING)(experiment.experiment)
app.command("loop", rich_help_panel=RUNNING)(rounds.loop)
app.command("round", rich_help_panel=RUNNING)(rounds.rounds)
app.command("export", rich_help_panel=SERVING)(models.export)
app.command("promote", rich_help_panel=SERVING)(versions.promote)
app.command("rollback", rich_help_panel=SERVING)(versions.rollback)
app.command("label", rich_help_panel=FEEDBACK)(feedback.label)
app.command("score", rich_help_panel=FEEDBACK)(models.score)
app.command("judge", rich_help_panel=FEEDBACK)(evaluate.judge)
app.add_typer(feedback.annotators, name="annotator", rich_help_panel=FEEDBACK)
app.add_typer(feedback.exchange, name="feedback", rich_help_panel=FEEDBACK)
app.add_typer(keys.keys, name="key", rich_help_panel=SERVING)


app.command("status", rich_help_panel=OTHER)(status.status)


@app.command("recipe", rich_help_panel=OTHER)
def recipe_reference(
    place: Annotated[
        str, typer.Argument(metavar="SECTION", help="a section or key, such as rlhf.kl; default: everything")
    ] = "",
) -> None:
    """Print the reference of the recipe: the type, default and meaning of every key."""
    print(reference(place), end="")


@app.command(rich_help_panel=OTHER)
def doctor(
    runs: Annotated[Path, typer.Option(help="the folder of the run folders")] = Path("runs"),
    cluster: Annotated[
        str, typer.Option(metavar="ADDRESS", help="check every node of this Ray cluster: auto, or ray://HOST:PORT")
    ] = "",
    rewards: Annotated[
        Path | None,
        typer.Option(
            metavar="RECIPE", help="instead, try cheap hacks on each reward of a recipe, and say which ones pay"
        ),
    ] = None,
) -> None:
    """Check the installation, this machine and each run, and say what to do. Exit code 1 on a problem."""
    from rich.console import Console

    if rewards and cluster:
        raise UserError("--rewards and --cluster are two commands: give one")
    if rewards:
        loaded = load_recipe(rewards)
        # Imported late: it brings torch.
        from pipelines.cli.reward_doctor import examine_rewards

        if examine_rewards(Console(soft_wrap=True), loaded):
            raise typer.Exit(1)
        return
    from pipelines.cli.doctor import examine, examine_cluster

    console = Console(soft_wrap=True)
    if cluster:
        settings = Cluster(address=cluster)
        check_address(settings)
        with connect(settings):
            problems = examine_cluster(console, runs)
    else:
        problems = examine(console, runs)
    if problems:
        raise typer.Exit(1)


@app.command(rich_help_panel=OTHER)
def version() -> None:
    """Print the version."""
    print(f"triptych {__version__}")


def _refuse_empty(words: list[str]) -> None:
    """Refuses an empty word, which would be taken for the folder of the shell, or for no filter at all.

    Raises:
        UserError: a word, or the value of an option, is empty.
    """
    for before, word in zip(["triptych", *words], words, strict=False):
        option, equals, value = word.partition("=")
        is_option = option.startswith("--") and bool(equals)
        if not (value if is_option else word).strip():
            place = f"the value of {option}" if is_option else f"the word after {before}"
            raise UserError(f"{place} is empty: is a variable of the shell unset? Write it, or leave it out")


def main(arguments: list[str] | None = None) -> None:
    """Runs a command and ends the process with its exit code; the console script `triptych`.

    Args:
        arguments: the command's words; None for those of the process.
    """
    collect_garbage_rarely()
    words = sys.argv[1:] if arguments is None else arguments
    if words[:1] == ["labeller"]:
        print("triptych: labeller is called annotator now; the old name works in this version only", file=sys.stderr)
        words = ["annotator", *words[1:]]
    try:
        _refuse_empty(words)
        code = app(words, prog_name="triptych", standalone_mode=False)
    except typer.TyperException as error:
        message = " ".join(error.format_message().split())
        if message.startswith("No such command"):
            message = (
                f"{message.rstrip('.')}: `triptych --help` lists the commands, and `triptych doctor` the state of runs"
            )
        elif message and (context := getattr(error, "ctx", None)):
            message = f"{message.rstrip('.')}: see `{context.command_path} --help`"
        print(f"triptych: {message or 'name a command; they are listed above'}", file=sys.stderr)
        code = error.exit_code
    except KeyboardInterrupt:
        code = 130
    except Exception as error:
        failure = known_failure(error)
        if failure is None:
            raise
        print(f"triptych: {' '.join(str(failure).split())}", file=sys.stderr)
        code = 2 if isinstance(failure, UserError) else 1
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.flush()
    sys.exit(code if isinstance(code, int) else 0)

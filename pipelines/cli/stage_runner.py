"""Runs stages for the command line: checks, the Ray session, a line for each stage, and a summary."""

import contextlib
import sys
import time
from dataclasses import replace
from pathlib import Path

from cluster.errors import UserError
from cluster.recipe.base import input_files
from cluster.recipe.loading import dump_recipe
from cluster.recipe.recipe import Recipe
from cluster.recipe.training import TRAINING_SECTIONS, Training
from cluster.run.atomic import atomic_write, make_private
from cluster.run.folder import RunFolder
from cluster.run.layout import ROUND_FOLDERS, Stage
from cluster.run.rounds import round_in_the_making
from cluster.run.stages import StageOutcome, check_functions, check_sources, is_done, stage_state
from cluster.run.storage.files import glob_root
from cluster.run.storage.remote import is_remote, without_credentials
from cluster.run.trackers import require_clients
from cluster.runtime.machine_memory import object_store_gb
from cluster.runtime.nodes import ask_nodes, check_nodes, differences
from cluster.runtime.plan import connected_resources, make_plan, resources_here
from cluster.runtime.session import check_address, connect
from cluster.runtime.shipping import modules_of
from pipelines.stage_table import run_named_stage

StageRow = tuple[Stage, StageOutcome, float]
# The most figures of a stage in the summary.
MAX_FIGURES = 6
# Metrics in words, which are printed below the summary.
REMARKS = ("stopped", "failures", "advice", "order")


def run_stages(recipe: Recipe, stages: tuple[Stage, ...], serve_at: tuple[str, int] | None) -> None:
    """Checks everything that can be checked without Ray, runs the stages that are not done, and may serve the run.

    Args:
        recipe: the whole recipe.
        stages: the stages, in the order in which they run.
        serve_at: the address and port on which to serve the run's models afterwards; None for not serving.

    Raises:
        UserError: the recipe, its files, the run folder or the cluster cannot be used, or an earlier stage is missing.
        StageError: a stage failed.
    """

    run = RunFolder(recipe.folder)
    check_without_ray(recipe, run)
    if len(stages) == 1:
        for folder in stages[0].after:
            run.require(folder)
    with contextlib.ExitStack() as session:
        connected = False
        with run.lock():
            keep_recipe(recipe, run)
            rows: list[StageRow] = []
            for stage in stages:
                if not connected and not is_done(stage, recipe, run):
                    connect_and_check(session, recipe, run)
                    connected = True
                rows.append(run_one(stage, recipe, run))
            _summarize(rows, run)
        # The server runs without the lock, so that a stage can be run again and its model promoted.
        if serve_at:
            if not connected:
                session.enter_context(connect_for(recipe))
            serve_run(recipe, run, serve_at)


def check_without_ray(recipe: Recipe, run: RunFolder) -> None:
    """Checks everything that can be checked without Ray.

    Raises:
        UserError: the recipe, its files, the run folder or the cluster cannot be used.
    """
    check_sources(recipe)
    check_chats(recipe)
    require_clients([name for section in _training_sections(recipe) for name in section.trackers])
    run.check_writable()
    check_address(recipe.cluster)
    if not recipe.cluster.is_elsewhere:
        # The nodes of a cluster elsewhere may have modules that this machine lacks.
        check_functions(recipe)
    if recipe.cluster.address == "local":
        make_plan(recipe, resources_here(recipe.cluster))


def _training_sections(recipe: Recipe) -> list[Training]:
    sections = (recipe.training, *(getattr(recipe, name) for name in TRAINING_SECTIONS))
    return [section for section in sections if section is not None]


def check_chats(recipe: Recipe) -> None:
    """Checks that conversations and prompts can be read from the recipe's files, as `check_first_rows` does.

    Raises:
        UserError: they cannot.
    """
    from pipelines.data.chat_formats import conversation_of
    from pipelines.data.prompts import prompt_of
    from pipelines.data.source_rows import check_first_rows

    check_first_rows(recipe.sft.sources, conversation_of)
    check_first_rows(recipe.collect.sources, prompt_of)
    check_first_rows(recipe.rlhf.sources, prompt_of)


def connect_and_check(session: contextlib.ExitStack, recipe: Recipe, run: RunFolder) -> None:
    """Connects to the recipe's cluster until the session ends, and checks that the run fits there.

    Raises:
        UserError: it does not.
    """
    session.enter_context(connect_for(recipe))
    _check_cluster(recipe, run)


def connect_for(recipe: Recipe) -> contextlib.AbstractContextManager[None]:
    """Connects to the recipe's cluster, with an object store of the size that its model needs, and its own modules."""
    modules = [] if recipe.cluster.address == "local" else modules_of(recipe)
    return connect(recipe.cluster, object_store_gb(recipe), modules)


def _check_cluster(recipe: Recipe, run: RunFolder) -> None:
    """Checks that the run fits on the connected cluster, after asking its nodes which files they see and how much
    memory their GPUs have.

    Raises:
        UserError: a node does not see the run folder or an input, or the run does not fit.
    """
    if recipe.cluster.address == "local":
        make_plan(recipe)
        return
    local = (glob_root(path) for path in input_files(recipe) if not is_remote(path))
    reports = ask_nodes([path for path in local if Path(path).exists()], run.root)
    check_nodes(reports, run.root)
    for line in differences(reports):
        print(f"triptych: {line}", file=sys.stderr)
    smallest = min((memory for node in reports for memory in node.gpus), default=None)
    make_plan(recipe, replace(connected_resources(), gpu_memory_gb=smallest))


def print_resource_plan(recipe: Recipe) -> None:
    """Prints the cores, GPUs and memory that each actor would get on this machine, without starting any, and how many
    rows the files of the recipe hold.

    Raises:
        UserError: the recipe names a cluster, or files or functions that are not there, or does not fit on this
            machine. The part of the plan that could be made has been printed before.
    """
    from rich.console import Console

    from pipelines.cli.plan_report import print_plan
    from pipelines.cli.source_report import print_sources

    if recipe.cluster.address != "local":
        raise UserError(
            "--plan plans for this machine: set cluster.address=local, and the cores and GPUs to plan for under cluster"
        )
    console = Console()
    print_plan(recipe, resources_here(recipe.cluster), console)
    check_functions(recipe)
    check_sources(recipe)
    check_chats(recipe)
    print_sources(recipe, console)
    if recipe.collect.select:
        # Imported late: it brings torch.
        from pipelines.data.preferences.ask_order import last_reward_model, order_sentence, why_random

        settings, models = recipe.collect.select, last_reward_model(RunFolder(recipe.folder))
        line = order_sentence(settings, models, why_random(settings, models))
        console.print(f"collect.select: {line}", soft_wrap=True, markup=False, highlight=False)


def keep_recipe(recipe: Recipe, run: RunFolder) -> None:
    """Writes the recipe to the run folder, for its owner alone where a URI holds credentials: a later command on the
    folder needs them.
    """
    text = dump_recipe(recipe)
    with atomic_write(run.recipe_path) as side:
        if without_credentials(text) != text:
            make_private(side)
        side.write_text(text, encoding="utf-8")


def run_one(stage: Stage, recipe: Recipe, run: RunFolder) -> StageRow:
    """Runs a stage unless it is done, and prints a line on it; Ray must be connected if it is not done."""
    start = time.monotonic()
    state = stage_state(stage, recipe, run)
    if state.name == "stale" and stage.folder in ROUND_FOLDERS:
        # The round that is in the run folder now is kept before the first of its stages is replaced.
        print(f"{stage.name:<9} {state.why}: made again as round {round_in_the_making(run.root, stage.folder)}")
    outcome = run_named_stage(stage, recipe, run)
    seconds = time.monotonic() - start
    print(f"{stage.name:<9} {outcome:<8} {seconds:7.1f} s   {run.path(stage.folder)}", flush=True)
    return stage, outcome, seconds


def _summarize(rows: list[StageRow], run: RunFolder) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("stage", "outcome", "seconds", "figures")
    for stage, outcome, seconds in rows:
        metrics = run.require(stage.folder).metrics
        values = {key: value["value"] if _is_proportion(value) else value for key, value in metrics.items()}
        numbers = [f"{key} {_figure(value)}" for key, value in values.items() if type(value) in (int, float)]
        table.add_row(stage.name, outcome, f"{seconds:.1f}", ", ".join(numbers[:MAX_FIGURES]))
    # Printed by itself: a title would be broken at the width of the table.
    print(run.root, flush=True)
    Console().print(table)
    for stage, _, _ in rows:
        metrics = run.require(stage.folder).metrics
        for line in (metrics[name] for name in REMARKS if metrics.get(name)):
            print(f"{stage.name}: {line}", flush=True)
    report = run.path("report") / "index.html"
    if report.exists():
        print(f"report: {report}", flush=True)


def _is_proportion(value: object) -> bool:
    return isinstance(value, dict) and "value" in value


def _figure(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def serve_run(recipe: Recipe, run: RunFolder, address: tuple[str, int], without_keys: bool = False) -> None:
    """Serves a run's models until Ctrl-C; Ray must be connected.

    Args:
        recipe: the whole recipe.
        run: the run to serve.
        address: host and port to listen on.
        without_keys: whether to require no key even if the run has some.
    """
    from pipelines.story.actor import start_trainer
    from serve.server import serve_until_interrupted

    host, port = address
    section = recipe.serve.model_copy(update={"host": host, "port": port})
    story = start_trainer(recipe, run)
    serve_until_interrupted(recipe.model_copy(update={"serve": section}), run, without_keys=without_keys, story=story)

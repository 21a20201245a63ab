"""Runs tasks on one model outside of a run, task by task: the same command resumes after the last finished one."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from actors.orchestrator.fleet import Fleet
from cluster.errors import StageError, UserError
from cluster.recipe.model import Cluster
from cluster.run.atomic import write_json, write_text
from cluster.run.folder import file_fingerprint, fingerprint
from cluster.runtime.plan import Allocation, resources_here
from cluster.runtime.session import connect
from pipelines.evaluate.tasks.http_model import HttpModel
from pipelines.evaluate.tasks.items import EvaluationTask
from pipelines.evaluate.tasks.lm_eval import lm_eval_results
from pipelines.evaluate.tasks.measure import ItemResult, TaskAnswers, run_task
from pipelines.evaluate.tasks.models import EngineModel
from pipelines.evaluate.tasks.results import task_figures, task_rows
from pipelines.evaluate.tasks.tables import print_tasks

# The seed of the engines, the longest wait in seconds, and the size of Ray's object store in GB.
SEED, DEADLINE, OBJECT_STORE_GB = 1, 600.0, 0.3
# The most tokens of context: the key-value cache of a longer one would take the memory of the model.
MAX_CONTEXT = 2048
MAX_ACTORS = 2


def evaluate_alone(
    target: str,
    tasks: Sequence[EvaluationTask],
    out: Path,
    actors: int | None,
    chats: bool,
    model: str | None,
    console: Console,
) -> None:
    """Runs tasks on a model folder or an address, prints the figures, and writes them to `out`.

    It writes `tasks.json` (figures), `tasks.jsonl` (prompts and answers), `lm_eval.json` (lm-eval's layout), and
    `done/TASK.json`, from which an interrupted evaluation goes on.

    Args:
        target: a Hugging Face model directory, or the address of an OpenAI-compatible server.
        tasks: the tasks, at least one.
        out: a folder, made if it is missing.
        actors: the engines to run side by side, for a folder; None for one a core or GPU, up to `MAX_ACTORS`.
        chats: whether prompts are rendered with the model's chat template; for a folder.
        model: the model's name at an address; None where there is one.
        console: the console to print on.

    Raises:
        UserError: there is no such model, or it cannot be evaluated.
        StageError: the server or the engines failed, or the server changed its weights.
    """
    done = out / "done"
    done.mkdir(parents=True, exist_ok=True)
    remote = target.startswith(("http://", "https://"))
    name = model or (target if remote else Path(target).resolve().name)
    server = HttpModel.of(target, model) if remote else None
    version = server.version() if server else None
    identity = [target, server.model, version] if server else [_files(Path(target)), chats]
    keys = {task.name: fingerprint([identity, _content(task)]) for task in tasks}
    answers = {task.name: _finished(done / f"{task.name}.json", keys[task.name]) for task in tasks}
    left = [task for task in tasks if answers[task.name] is None]
    if len(left) < len(tasks):
        console.print(f"{len(tasks) - len(left)} of {len(tasks)} tasks were finished before")
    if outdated := [task.name for task in left if (done / f"{task.name}.json").exists()]:
        console.print(
            f"run again, as the model or the items are others than before: {', '.join(outdated)}", markup=False
        )
    if left:
        bar = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console
        )
        with nullcontext(server) if server else _engines(Path(target), actors, chats) as evaluated, bar:
            for task in left:
                total = sum(max(1, len(item.options)) for item in task.items)
                line = bar.add_task(task.title, total=total)
                evaluated.progress = lambda count, line=line: bar.advance(line, count)  # type: ignore[misc]
                answers[task.name] = found = run_task(task, evaluated)
                if server and (now := server.version()) != version:
                    raise StageError(
                        f"{target} has changed its weights from {version} to {now} during the task {task.name}, so "
                        "that its results hold for neither: run the command again when the weights no longer change"
                    )
                write_json(done / f"{task.name}.json", {"key": keys[task.name], **asdict(found)})
    by_model = {task: {name: found} for task, found in answers.items() if found is not None}
    figures = task_figures(tasks, by_model)
    write_task_files(tasks, by_model, figures, SEED, out)
    print_tasks(figures, console)


def write_task_files(
    tasks: Sequence[EvaluationTask],
    answers: dict[str, dict[str, TaskAnswers]],
    figures: dict[str, Any],
    seed: int,
    out: Path,
) -> None:
    """Writes `tasks.json`, `tasks.jsonl` and, for each model, lm-eval's layout.

    Args:
        tasks: the tasks.
        answers: the answers by task, then by model.
        figures: the value of `task_figures`.
        seed: the seed of the run.
        out: the folder.
    """
    write_json(out / "tasks.json", figures)
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in task_rows(tasks, answers))
    write_text(out / "tasks.jsonl", "".join(lines))
    models = list(next(iter(answers.values())))
    for model in models:
        file = "lm_eval.json" if len(models) == 1 else f"lm_eval_{model}.json"
        write_json(out / file, lm_eval_results(tasks, figures, model, seed))


@contextmanager
def _engines(folder: Path, actors: int | None, chats: bool) -> Iterator[EngineModel]:
    cluster = Cluster()
    resources = resources_here(cluster)
    context = _context(folder)
    actors = actors or max(1, min(MAX_ACTORS, int(resources.gpus) or resources.cores))
    gpus = min(1.0, resources.gpus / actors)
    allocation = Allocation(cpus=1, gpus=gpus, threads=max(1, resources.cores // actors))
    with (
        connect(cluster, OBJECT_STORE_GB),
        Fleet(folder, actors, allocation, context, SEED, DEADLINE) as fleet,
    ):
        yield EngineModel.of(fleet, folder, context, DEADLINE, chats)


def _context(folder: Path) -> int:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} holds no model: its config.json cannot be read") from error
    return min(MAX_CONTEXT, int(config.get("max_position_embeddings") or MAX_CONTEXT))


def _files(folder: Path) -> list[str]:
    """Identifies a model folder by the content of its files."""
    kinds = (".safetensors", ".json", ".jinja", ".model")
    found = sorted(path for path in folder.glob("*") if path.suffix in kinds and path.is_file())
    return [f"{path.name} {file_fingerprint(path)}" for path in found]


def _content(task: EvaluationTask) -> list[Any]:
    items = [[item.id, item.prompt, item.options, item.right, item.expected] for item in task.items]
    return [task.name, task.metric, task.chat, task.bare, task.max_tokens, items]


def _finished(file: Path, key: str) -> TaskAnswers | None:
    """Reads a task that was finished with the same model and items; None where there is none."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if content.get("key") != key:
        return None
    return TaskAnswers([ItemResult(**result) for result in content["results"]], content["too_long"])

"""Makes the tasks that a recipe or a command names."""

from collections import Counter
from collections.abc import Sequence

from cluster.errors import UserError
from cluster.recipe.evaluate import MAX_BAD_SHARE, BuiltInTask, TaskFile
from pipelines.evaluate.tasks.built_in import BUILT_IN
from pipelines.evaluate.tasks.files import file_tasks
from pipelines.evaluate.tasks.items import EvaluationTask


def load_tasks(settings: Sequence[BuiltInTask | TaskFile]) -> list[EvaluationTask]:
    """Makes tasks.

    Args:
        settings: the value of `evaluate.tasks`.

    Raises:
        UserError: a file cannot be read, or two tasks have one name.
    """
    tasks: list[EvaluationTask] = []
    for one in settings:
        if isinstance(one, TaskFile):
            tasks += file_tasks(one)
        else:
            tasks += [make() for name, make in BUILT_IN.items() if one in (name, "built_in")]
    if twice := [name for name, times in Counter(task.name for task in tasks).items() if times > 1]:
        raise UserError(f"evaluate.tasks has two tasks called {twice[0]}: give the file another name")
    return tasks


def parse_tasks(words: str, max_bad: float = MAX_BAD_SHARE) -> list[BuiltInTask | TaskFile]:
    """Reads tasks from the command line: names of built-in ones, and files as KIND:PATH, with commas between.

    Args:
        words: the tasks.
        max_bad: the largest share of a file's rows that may be left out because they cannot be used.

    Raises:
        UserError: a name or kind is unknown.
    """
    found: list[BuiltInTask | TaskFile] = []
    kinds = ("choice", "generate", "pairs", "perplexity")
    for word in filter(None, (part.strip() for part in words.split(","))):
        kind, colon, path = word.partition(":")
        if colon and kind in kinds:
            found.append(TaskFile(kind=kind, path=path, max_bad_share=max_bad))  # type: ignore[arg-type]
        elif word in BUILT_IN or word == "built_in":
            found.append(word)  # type: ignore[arg-type]
        else:
            raise UserError(
                f"--tasks: {word!r} is no task; name {', '.join(BUILT_IN)}, built_in for all of these, or a file as "
                f"KIND:PATH, of kind {', '.join(kinds)}"
            )
    return found

"""Reads benchmarks from files, in the layouts that they are published in."""

import json
from collections.abc import Iterator
from glob import glob
from itertools import islice
from pathlib import Path
from typing import Any

from cluster.errors import UserError
from cluster.recipe.evaluate import TaskFile
from cluster.run.storage.files import no_match
from pipelines.data.encodings import conversion
from pipelines.data.row_files import BadRow, Row, good_row
from pipelines.data.source_rows import file_rows
from pipelines.evaluate.tasks.items import EvaluationTask
from pipelines.evaluate.tasks.layouts import LAYOUTS

# The names under which a JSON object keeps its list of rows (BIG-bench, SQuAD, lm-eval's samples).
LISTS = ("examples", "data", "rows", "samples")


def file_tasks(settings: TaskFile) -> list[EvaluationTask]:
    """Reads the tasks of a file or glob: one, or two where the layout has two measures (TruthfulQA's mc1 and mc2).

    Raises:
        UserError: no file matches, a file cannot be read, no row is in a layout of its kind (the message names the
            fields that these have), or more than `max_bad_share` of the rows cannot be used.
    """
    name = settings.name or Path(settings.path).name.split(".")[0]
    rows = list(islice(_rows(settings.path), settings.limit))
    if not rows:
        raise UserError(f"evaluate.tasks: {settings.path} has no rows")
    layouts = LAYOUTS[settings.kind]
    # The first row that is not damaged decides on the layout.
    for row, _ in rows:
        if isinstance(row, BadRow):
            continue
        for layout in layouts:
            if layout.fits(row):
                return layout.tasks([own for own, _ in rows], [place for _, place in rows], name, settings)
    if all(isinstance(row, BadRow) for row, _ in rows):
        return layouts[0].tasks([own for own, _ in rows], [place for _, place in rows], name, settings)
    known = "; ".join(f"{layout.name}: {', '.join(layout.fields)}" for layout in layouts)
    first = good_row(rows[0][0])
    raise UserError(
        f"evaluate.tasks: {rows[0][1]} has the fields {', '.join(first)}, which are in no layout of kind "
        f"{settings.kind} ({known})"
    )


def _rows(pattern: str) -> Iterator[tuple[Row | BadRow, str]]:
    paths = [pattern] if Path(pattern).is_file() else sorted(glob(pattern, recursive=True))
    if not paths:
        raise UserError(f"evaluate.tasks: {no_match(pattern)}")
    for path in paths:
        if (rows := _nested(path)) is not None:
            yield from ((row, f"{path} row {number}") for number, row in enumerate(rows))
        else:
            yield from file_rows(path)


def _nested(path: str) -> list[dict[str, Any]] | None:
    """Reads the rows of a JSON file that is one object with a list of rows in it; None for every other file."""
    if not path.endswith(".json"):
        return None
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 at byte {error.start}; {conversion(error.object)}") from error
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path} as JSON: {error}") from error
    if not isinstance(content, dict):
        return None
    found = next((content[name] for name in LISTS if isinstance(content.get(name), list)), None)
    if found is None or not all(isinstance(row, dict) for row in found):
        raise UserError(f"{path} is an object without a list of rows named {', '.join(LISTS)}")
    return found

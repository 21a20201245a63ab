"""A published layout of a benchmark: the fields of its rows, and the tasks that are made of them."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from cluster.errors import UserError
from cluster.recipe.evaluate import TaskFile
from pipelines.data.balance import Loss, require_enough
from pipelines.data.row_files import BadRow, Row, good_row
from pipelines.evaluate.tasks.items import EvaluationTask, Item, Metric

QUESTION = "Question: {}\nAnswer:"
# The most bad rows that a message names.
SHOWN = 5


@dataclass(frozen=True)
class Place:
    """A row of a file, where it is, and its number as text."""

    row: dict[str, Any]
    place: str
    number: str


@dataclass(frozen=True)
class LayoutTask:
    """A task that a layout gives.

    Attributes:
        items: makes the items of one row; none for a row that is left out.
        metric: the measure, unless the recipe names another.
        fixed: whether the recipe's metric is ignored.
        suffix: the suffix of the task's name, where a layout gives several.
        chat, bare: the same as those of `EvaluationTask`.
        left_out: the reason why a row has no item, for people.
    """

    items: Callable[[Place], list[Item]]
    metric: Metric
    fixed: bool = False
    suffix: str = ""
    chat: bool = True
    bare: str = QUESTION
    left_out: str = ""


@dataclass(frozen=True)
class Layout:
    """A published layout.

    Attributes:
        name: the name of the benchmark that has it.
        fields: the fields that its rows have.
        measures: the tasks that it gives.
    """

    name: str
    fields: tuple[str, ...]
    measures: tuple[LayoutTask, ...]

    def fits(self, row: dict[str, Any]) -> bool:
        """Tells whether a row has the layout's fields."""
        return all(row.get(field) is not None for field in self.fields)

    def tasks(
        self, rows: Sequence[Row | BadRow], places: Sequence[str], name: str, settings: TaskFile
    ) -> list[EvaluationTask]:
        """Makes the tasks of a file's rows, without those that cannot be used.

        Args:
            rows: the rows, at least one.
            places: file and line of each.
            name: the name of the tasks, behind which a suffix may come.
            settings: the task's entry in the recipe.

        Raises:
            UserError: more than `max_bad_share` of the rows cannot be used, or none has an item.
        """
        found: list[list[list[Item]]] = []
        bad: list[str] = []
        for number, (row, place) in enumerate(zip(rows, places, strict=True)):
            try:
                own = Place(good_row(row), place, str(number))
                self._require_fields(own)
                found.append([measure.items(own) for measure in self.measures])
            except UserError as error:
                bad.append(str(error))
            except (LookupError, TypeError, ValueError, AttributeError) as error:
                bad.append(f"evaluate.tasks: {place} cannot be read as {self.name}: {type(error).__name__} {error}")
        _require_few(bad, len(rows), settings)
        return [
            self._task(measure, [own[number] for own in found], bad, name, settings)
            for number, measure in enumerate(self.measures)
        ]

    def _require_fields(self, own: Place) -> None:
        if not self.fits(own.row):
            raise UserError(
                f"evaluate.tasks: {own.place} lacks one of the fields of {self.name}: {', '.join(self.fields)}"
            )

    def _task(
        self, measure: LayoutTask, rows: list[list[Item]], bad: list[str], name: str, settings: TaskFile
    ) -> EvaluationTask:
        items = [item for row in rows for item in row]
        unused = sum(not row for row in rows)
        losses = [
            Loss("cannot be used", len(bad), f"fix what is wrong, first: {bad[0]}" if bad else ""),
            Loss("left out", unused, f"use others, since these are left out: {measure.left_out}"),
        ]
        limit = "" if settings.limit is None else f" or raise its limit (now {settings.limit})"
        what, remedy = f"rows of {settings.path} (evaluate.tasks)", f"add rows{limit}"
        require_enough(what, len(rows) - unused, losses, 1, "to measure", remedy)
        if unused:
            print(
                f"triptych: {unused} of {len(rows)} rows of {settings.path} are left out: {measure.left_out}",
                file=sys.stderr,
            )
        metric = measure.metric if measure.fixed else settings.metric or measure.metric
        own, title = (f"{name}_{measure.suffix}", f"{name} ({measure.suffix})") if measure.suffix else (name, name)
        return EvaluationTask(own, title, metric, items, measure.chat, measure.bare, settings.max_tokens, tuple(bad))


def _require_few(bad: Sequence[str], rows: int, settings: TaskFile) -> None:
    """Refuses a file with too many rows that cannot be used, and names those of any other.

    Raises:
        UserError: more than `max_bad_share` of the rows cannot be used.
    """
    if not bad:
        return
    if len(bad) > settings.max_bad_share * rows:
        raise UserError(
            f"{bad[0]} ({len(bad):,} of {rows:,} rows of {settings.path} cannot be used, and max_bad_share of "
            f"evaluate.tasks, or --max-bad, lets {settings.max_bad_share:g} of them be left out)"
        )
    shown = "".join(f"\n  {reason}" for reason in bad[:SHOWN])
    more = f"\n  and {len(bad) - SHOWN:,} more" if len(bad) > SHOWN else ""
    print(
        f"triptych: {len(bad):,} of {rows:,} rows of {settings.path} cannot be used and are left out:{shown}{more}",
        file=sys.stderr,
    )

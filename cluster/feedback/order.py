"""The order in which people are asked, and why each prompt has its place in it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import bindparam
from sqlmodel import select, update

from cluster.feedback.store import Store, column
from cluster.feedback.tables import AT_RANDOM, CODE, GOLD, FeedbackPrompt, Ranking


@dataclass(frozen=True)
class Placed:
    """The place of a prompt; the fields are those of `FeedbackPrompt`."""

    prompt: str
    place: int
    chosen_by: str
    chosen_score: float | None = None


class OrderQueries(Store):
    """The queries on the order of prompts. A prompt that a person has judged keeps its place and its reason."""

    def set_order(self, order: Sequence[Placed], chosen_from: str) -> None:
        """Gives prompts their places, in one transaction; all others that nobody has judged lose theirs.

        Args:
            order: the prompts.
            chosen_from: identifies the reward model and the settings that the order follows from.
        """
        table: Any = FeedbackPrompt
        unjudged = column(FeedbackPrompt.id).not_in(_judged())
        none = dict.fromkeys(("place", "chosen_by", "chosen_score", "chosen_from"))
        with self._write() as session:
            session.execute(update(table).where(unjudged, column(FeedbackPrompt.place).is_not(None)).values(**none))
            if not order:
                return
            rows = [
                {
                    "prompt": one.prompt,
                    "to_place": one.place,
                    "to_by": one.chosen_by,
                    "to_score": one.chosen_score,
                    "to_from": chosen_from,
                }
                for one in order
            ]
            change = (
                update(table.__table__)
                .where(column(FeedbackPrompt.id) == bindparam("prompt"), unjudged)
                .values(
                    place=bindparam("to_place"),
                    chosen_by=bindparam("to_by"),
                    chosen_score=bindparam("to_score"),
                    chosen_from=bindparam("to_from"),
                )
            )
            session.connection().execute(change, rows)

    def judged_prompts(self) -> set[str]:
        """Returns the ids of the prompts that a person has judged or skipped."""
        with self._read() as session:
            found: list[str] = list(session.exec(_judged()))
        return set(found)

    def chosen_prompts(self) -> set[str]:
        """Returns the ids of the prompts that were chosen by a criterion, and did not come at random."""
        by = column(FeedbackPrompt.chosen_by)
        with self._read() as session:
            return set(session.exec(select(FeedbackPrompt.id).where(by.is_not(None), by != AT_RANDOM)))


def _judged() -> Any:
    who = column(Ranking.annotator)
    return select(Ranking.prompt_id).where(who.not_like(f"{CODE}%"), who != GOLD).distinct()

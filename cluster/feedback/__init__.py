"""What people said: prompts, the completions they saw, and how they judged them."""

from dataclasses import dataclass

from sqlmodel import func, select

from cluster.feedback.queries import (
    AnnotatorQueries,
    JudgementQueries,
    PromptQueries,
    TaskQueries,
    ThumbQueries,
    is_person,
)
from cluster.feedback.store import column, open_engine
from cluster.feedback.tables import CODE, COMPARED, GOLD, Annotator, Completion, Prompt, Ranking, Repeat, Thumb

__all__ = [
    "CODE",
    "COMPARED",
    "GOLD",
    "Annotator",
    "Completion",
    "Counts",
    "Feedback",
    "Prompt",
    "Ranking",
    "Repeat",
    "Thumb",
    "is_person",
    "open_feedback",
]


@dataclass(frozen=True)
class Counts:
    """How much there is. `rankings` leaves out the skipped and those that called every completion bad."""

    prompts: int
    completions: int
    rankings: int
    skipped: int
    all_bad: int = 0


class Feedback(PromptQueries, JudgementQueries, TaskQueries, AnnotatorQueries, ThumbQueries):
    """An open feedback database: all that can be asked of it and told to it."""

    def counts(self) -> Counts:
        """How much there is of each."""
        skipped, bad = column(Ranking.skipped), column(Ranking.all_bad)
        rows = select(func.count()).select_from(Ranking)
        with self._read() as session:
            return Counts(
                prompts=session.exec(select(func.count()).select_from(Prompt)).one(),
                completions=session.exec(select(func.count()).select_from(Completion)).one(),
                rankings=session.exec(rows.where(skipped.is_(None), bad.is_(False))).one(),
                skipped=session.exec(rows.where(skipped.is_not(None))).one(),
                all_bad=session.exec(rows.where(bad.is_(True))).one(),
            )


def open_feedback(url: str) -> Feedback:
    """Opens the database; a new one is made where there is none.

    Raises:
        UserError: as `open_engine`.
    """
    return Feedback(open_engine(url))

"""Which prompts a labeller may be given."""

from typing import Any

from sqlmodel import func, select

from cluster.feedback.store import Store, column
from cluster.feedback.tables import CODE, COMPARED, GOLD, Completion, Excluded, Ranking, Repeat


class Tasks(Store):
    """Names of prompts to judge: open ones, gold items, and prompts to judge again."""

    def open_tasks(self, labeller: str, people: int, limit: int | None = None) -> list[tuple[str, int]]:
        """Prompts that a labeller may judge: at least two completions, not judged by them, by few other people.

        Args:
            labeller: whose tasks.
            people: how many people are to judge a prompt; a skip does not count, nor does who is excluded.
            limit: at most so many.

        Returns:
            names, and how many people have judged each; those whose completions are newest first, because a stage that
            waits for people waits for these. Neither gold items nor what the compare page asked.
        """
        who = column(Ranking.labeller)
        by_people = column(Ranking.skipped).is_(None) & who.not_like(f"{CODE}%") & (who != GOLD)
        judged = (
            select(Ranking.prompt_id, func.count().label("people"))
            .where(by_people, who.not_in(select(Excluded.labeller)))
            .group_by(column(Ranking.prompt_id))
            .subquery()
        )
        found, name = func.coalesce(judged.c.people, 0), column(Completion.prompt_id)
        query = (
            select(Completion.prompt_id, found)
            .outerjoin(judged, judged.c.prompt_id == Completion.prompt_id)
            .where(name.not_in(_judged_by(labeller)), name.not_in(_judged_by(GOLD)), found < people)
            .where(name.not_like(f"{COMPARED}%"))
            .group_by(name, judged.c.people)
            .having(func.count() >= 2)
            .order_by(func.max(Completion.id).desc())
            .limit(limit)
        )
        with self._read() as session:
            return [(name, count) for name, count in session.exec(query)]

    def gold_tasks(self, labeller: str) -> list[str]:
        """Gold items that a labeller has not judged."""
        name = column(Ranking.prompt_id)
        unseen = select(Ranking.prompt_id).where(Ranking.labeller == GOLD, name.not_in(_judged_by(labeller)))
        with self._read() as session:
            return list(session.exec(unseen.order_by(name)))

    def repeatable_tasks(self, labeller: str, after: int) -> list[str]:
        """Prompts that a labeller has ranked once, before their last `after` judgements; the oldest first."""
        own = Ranking.labeller == labeller
        last = select(column(Ranking.id)).where(own).order_by(column(Ranking.id).desc()).limit(after)
        ranked = column(Ranking.skipped).is_(None) & column(Ranking.all_bad).is_(False)
        again = select(Repeat.prompt_id).where(Repeat.labeller == labeller)
        name = column(Ranking.prompt_id)
        query = (
            select(Ranking.prompt_id)
            .where(own, ranked, column(Ranking.id).not_in(last), name.not_in(again), name.not_like(f"{COMPARED}%"))
            .order_by(column(Ranking.id))
        )
        with self._read() as session:
            return list(session.exec(query))


def _judged_by(labeller: str) -> Any:
    return select(Ranking.prompt_id).where(Ranking.labeller == labeller)

"""Which prompts a labeller may be given, as queries on the feedback database."""

from typing import Any

from sqlmodel import func, select

from cluster.feedback_tables import CODE, COMPARED, GOLD, Completion, Excluded, Ranking, Repeat


def open_tasks(labeller: str, people: int, limit: int | None) -> Any:
    """Rows of (name, people who have judged it), as `Feedback.open_tasks` gives them."""
    who = _column(Ranking.labeller)
    by_people = _column(Ranking.skipped).is_(None) & who.not_like(f"{CODE}%") & (who != GOLD)
    judged = (
        select(Ranking.prompt_id, func.count().label("people"))
        .where(by_people, who.not_in(select(Excluded.labeller)))
        .group_by(_column(Ranking.prompt_id))
        .subquery()
    )
    found, name = func.coalesce(judged.c.people, 0), _column(Completion.prompt_id)
    return (
        select(Completion.prompt_id, found)
        .outerjoin(judged, judged.c.prompt_id == Completion.prompt_id)
        .where(name.not_in(_judged_by(labeller)), name.not_in(_judged_by(GOLD)), found < people)
        .where(name.not_like(f"{COMPARED}%"))
        .group_by(name, judged.c.people)
        .having(func.count() >= 2)
        .order_by(func.max(Completion.id).desc())
        .limit(limit)
    )


def gold_tasks(labeller: str) -> Any:
    """Names, as `Feedback.gold_tasks` gives them."""
    name = _column(Ranking.prompt_id)
    unseen = select(Ranking.prompt_id).where(Ranking.labeller == GOLD, name.not_in(_judged_by(labeller)))
    return unseen.order_by(name)


def repeatable_tasks(labeller: str, after: int) -> Any:
    """Names, as `Feedback.repeatable_tasks` gives them."""
    own = Ranking.labeller == labeller
    last = select(_column(Ranking.id)).where(own).order_by(_column(Ranking.id).desc()).limit(after)
    ranked = _column(Ranking.skipped).is_(None) & _column(Ranking.all_bad).is_(False)
    again = select(Repeat.prompt_id).where(Repeat.labeller == labeller)
    name = _column(Ranking.prompt_id)
    return (
        select(Ranking.prompt_id)
        .where(own, ranked, _column(Ranking.id).not_in(last), name.not_in(again), name.not_like(f"{COMPARED}%"))
        .order_by(_column(Ranking.id))
    )


def _judged_by(labeller: str) -> Any:
    return select(Ranking.prompt_id).where(Ranking.labeller == labeller)


def _column(attribute: Any) -> Any:
    """A column where SQLModel's types see the value of a row."""
    return attribute

"""The queries of the feedback database: those of `judgements`, `annotators`, `live` and `order`; here those on prompts,
their completions, and which prompts are to be judged."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import selectinload
from sqlmodel import distinct, func, select

from cluster.feedback.annotators import AnnotatorQueries
from cluster.feedback.judgements import JudgementQueries
from cluster.feedback.live import LiveQueries
from cluster.feedback.order import OrderQueries
from cluster.feedback.store import column, open_engine, query_batches
from cluster.feedback.tables import (
    CODE,
    COMPARED,
    GOLD,
    Completion,
    Excluded,
    FeedbackPrompt,
    Ranking,
    Repeat,
)


@dataclass(frozen=True)
class FeedbackCounts:
    """Numbers of rows. `rankings` leaves out skips and judgements that call every completion bad."""

    prompts: int
    completions: int
    rankings: int
    skipped: int
    all_bad: int = 0


def open_feedback(url: str) -> "Feedback":
    """Opens the feedback database, and creates it where there is none.

    Raises:
        UserError: it cannot be opened, or a newer version of Triptych made it.
    """
    return Feedback(open_engine(url))


class Feedback(JudgementQueries, AnnotatorQueries, LiveQueries, OrderQueries):
    """An open feedback database. Adding is idempotent: a row that exists is not changed."""

    def add_prompts(self, prompts: Sequence[FeedbackPrompt]) -> int:
        """Adds the prompts whose ids are new, all or none; returns how many were new."""
        with self._write() as session:
            return self._add(session, FeedbackPrompt, sorted(prompts, key=lambda prompt: prompt.id))

    def add_completions(self, completions: Sequence[Completion]) -> list[int]:
        """Adds the completions that are new, all or none.

        Returns:
            the database id of every completion given, new or old, in the same order.
        """
        with self._write() as session:
            self._add(session, Completion, sorted(completions, key=_key))
            ids = {}
            for names in query_batches({completion.prompt_id for completion in completions}):
                for row in session.exec(select(Completion).where(column(Completion.prompt_id).in_(names))):
                    ids[_key(row)] = _id(row)
        return [ids[_key(completion)] for completion in completions]

    def prompts(self, split: str | None = None, prefix: str = "") -> list[FeedbackPrompt]:
        """Lists prompts with their completions, by id; of one split, or with ids that start with `prefix`, if given."""
        query = select(FeedbackPrompt).options(selectinload(FeedbackPrompt.completions)).order_by(FeedbackPrompt.id)  # type: ignore[arg-type]
        if split is not None:
            query = query.where(FeedbackPrompt.split == split)
        if prefix:
            query = query.where(column(FeedbackPrompt.id).startswith(prefix, autoescape=True))
        with self._read() as session:
            return list(session.exec(query))

    def prompt(self, prompt_id: str) -> FeedbackPrompt | None:
        """Finds a prompt, with its completions."""
        query = select(FeedbackPrompt).options(selectinload(FeedbackPrompt.completions))  # type: ignore[arg-type]
        with self._read() as session:
            return session.exec(query.where(FeedbackPrompt.id == prompt_id)).first()

    def counts(self) -> FeedbackCounts:
        """Counts the rows of each kind."""
        skipped, bad = column(Ranking.skipped), column(Ranking.all_bad)
        rows = select(func.count()).select_from(Ranking)
        with self._read() as session:
            return FeedbackCounts(
                prompts=session.exec(select(func.count()).select_from(FeedbackPrompt)).one(),
                completions=session.exec(select(func.count()).select_from(Completion)).one(),
                rankings=session.exec(rows.where(skipped.is_(None), bad.is_(False))).one(),
                skipped=session.exec(rows.where(skipped.is_not(None))).one(),
                all_bad=session.exec(rows.where(bad.is_(True))).one(),
            )

    def open_tasks(self, annotator: str, people: int, limit: int | None = None) -> list[tuple[str, int]]:
        """Lists the prompts that an annotator may judge: with at least two different texts, not judged by them yet, and
        judged by fewer than `people` others. Gold items and prompts of the compare page are left out.

        Args:
            annotator: the name of the annotator.
            people: the number of judgements wanted for a prompt; skips and excluded annotators do not count.
            limit: the most prompts to return.

        Returns:
            prompt ids, and how many people have judged each. Prompts that have a place come first, in its order, then
            those with the newest completions, because a stage that waits for judgements waits for these.
        """
        who = column(Ranking.annotator)
        by_people = column(Ranking.skipped).is_(None) & who.not_like(f"{CODE}%") & (who != GOLD)
        judged = (
            select(Ranking.prompt_id, func.count().label("people"))
            .where(by_people, who.not_in(select(Excluded.annotator)))
            .group_by(column(Ranking.prompt_id))
            .subquery()
        )
        found, name = func.coalesce(judged.c.people, 0), column(Completion.prompt_id)
        query = (
            select(Completion.prompt_id, found)
            .select_from(Completion)
            .join(FeedbackPrompt, column(FeedbackPrompt.id) == name)
            .outerjoin(judged, judged.c.prompt_id == Completion.prompt_id)
            .where(name.not_in(_judged_by(annotator)), name.not_in(_judged_by(GOLD)), found < people)
            .where(name.not_like(f"{COMPARED}%"))
            .group_by(name, judged.c.people, column(FeedbackPrompt.place))
            .having(func.count(distinct(column(Completion.text))) >= 2)
            .order_by(column(FeedbackPrompt.place).asc().nulls_last(), func.max(Completion.id).desc())
            .limit(limit)
        )
        with self._read() as session:
            return [(name, count) for name, count in session.exec(query)]

    def gold_tasks(self, annotator: str) -> list[str]:
        """Lists the ids of the gold items that an annotator has not judged."""
        name = column(Ranking.prompt_id)
        unseen = select(Ranking.prompt_id).where(Ranking.annotator == GOLD, name.not_in(_judged_by(annotator)))
        with self._read() as session:
            return list(session.exec(unseen.order_by(name)))

    def repeatable_tasks(self, annotator: str, after: int) -> list[str]:
        """Lists prompts that an annotator has ranked once, before their last `after` judgements; the oldest first."""
        own = Ranking.annotator == annotator
        last = select(column(Ranking.id)).where(own).order_by(column(Ranking.id).desc()).limit(after)
        ranked = column(Ranking.skipped).is_(None) & column(Ranking.all_bad).is_(False)
        again = select(Repeat.prompt_id).where(Repeat.annotator == annotator)
        name = column(Ranking.prompt_id)
        query = (
            select(Ranking.prompt_id)
            .where(own, ranked, column(Ranking.id).not_in(last), name.not_in(again), name.not_like(f"{COMPARED}%"))
            .order_by(column(Ranking.id))
        )
        with self._read() as session:
            return list(session.exec(query))


def _key(row: Completion) -> tuple[str, str, int]:
    return row.prompt_id, row.weights, row.index


def _id(row: Completion) -> int:
    assert row.id is not None, "stored rows have an id"
    return row.id


def _judged_by(annotator: str) -> Any:
    return select(Ranking.prompt_id).where(Ranking.annotator == annotator)

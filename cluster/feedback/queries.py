"""The queries of the feedback database.

The order of the methods is that of the data: prompts and completions, which prompts are to be judged, the judgements,
and the thumbs of those who chat with a served model.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy.orm import selectinload
from sqlmodel import Session, delete, distinct, func, select

from cluster.errors import UserError
from cluster.feedback.annotators import AnnotatorQueries
from cluster.feedback.live import LiveQueries
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
    Thumb,
    ranking_error,
)

# Unique keys: one judgement (and one repeat) of a prompt by an annotator, one thumb of an answer by a caller.
RANKING_KEYS = ("prompt_id", "annotator")
THUMB_KEYS = ("request", "caller")


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


class Feedback(AnnotatorQueries, LiveQueries):
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
            prompt ids, and how many people have judged each. Prompts with the newest completions come first, because a
            stage that waits for judgements waits for these.
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
            .outerjoin(judged, judged.c.prompt_id == Completion.prompt_id)
            .where(name.not_in(_judged_by(annotator)), name.not_in(_judged_by(GOLD)), found < people)
            .where(name.not_like(f"{COMPARED}%"))
            .group_by(name, judged.c.people)
            .having(func.count(distinct(column(Completion.text))) >= 2)
            .order_by(func.max(Completion.id).desc())
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

    def add_rankings(self, rankings: Sequence[Ranking]) -> int:
        """Adds the judgements of prompts that their annotator had not judged, all or none; returns how many were new.

        Raises:
            UserError: a judgement names a completion of another prompt, has a rank below 1, or is not exactly one of
                ranks, "all bad" and a skip.
        """
        with self._write() as session:
            _check(session, rankings)
            return self._add(session, Ranking, sorted(rankings, key=lambda row: (row.prompt_id, row.annotator)))

    def add_ranking(self, ranking: Ranking) -> bool:
        """Adds one judgement; returns False, and changes nothing, if the annotator has judged the prompt before."""
        return self.add_rankings([ranking]) == 1

    def save_ranking(self, ranking: Ranking) -> None:
        """Stores a judgement in place of the annotator's earlier one of the same prompt, if there is one.

        Storing the same judgement twice changes nothing, so a client that got no reply may send it again.

        Raises:
            UserError: the judgement is invalid, see `add_rankings`.
        """
        with self._write() as session:
            _check(session, [ranking])
            self._put(session, Ranking, ranking.model_dump(exclude={"id"}), RANKING_KEYS)

    def replace_ranking(self, ranking: Ranking, seen: float | None) -> bool:
        """Stores a judgement in place of the one that its author saw, in one transaction.

        A repeated request, with the save id of the stored judgement or the same content, changes nothing.

        Args:
            ranking: the judgement.
            seen: the time of creation of the judgement that its author saw, which it replaces; None if there was none.

        Returns:
            False, and nothing is changed, if the annotator's stored judgement is another one than they saw.

        Raises:
            UserError: the judgement is invalid, see `add_rankings`.
        """
        own = (Ranking.prompt_id == ranking.prompt_id, Ranking.annotator == ranking.annotator)
        with self._write() as session:
            _check(session, [ranking])
            if self._add(session, Ranking, [ranking]):
                return True
            stored = session.exec(select(Ranking).where(*own).with_for_update()).one()
            if (ranking.save_id and stored.save_id == ranking.save_id) or stored.says() == ranking.says():
                return True
            if stored.created != seen:
                return False
            self._put(session, Ranking, ranking.model_dump(exclude={"id"}), RANKING_KEYS)
            return True

    def save_repeat(self, ranking: Ranking) -> None:
        """Stores an annotator's second judgement of a prompt; the first is kept.

        Raises:
            UserError: the judgement is invalid, see `add_rankings`.
        """
        with self._write() as session:
            _check(session, [ranking])
            values = ranking.model_dump(include={*RANKING_KEYS, "ranks", "presented", "seconds", "created"})
            self._put(session, Repeat, values, RANKING_KEYS)

    def rankings(self) -> list[Ranking]:
        """Lists the rankings to learn from, in the order given: no skips, no "all bad", no excluded annotators."""
        query = select(Ranking).where(column(Ranking.annotator).not_in(select(Excluded.annotator)))
        with self._read() as session:
            return [row for row in session.exec(query.order_by(column(Ranking.id))) if row.ranks]

    def judgements(self, annotator: str | None = None) -> list[Ranking]:
        """Lists all judgements, with skips and "all bad", in the order given; of one annotator if named."""
        query = select(Ranking).order_by(column(Ranking.id))
        with self._read() as session:
            return list(session.exec(query if annotator is None else query.where(Ranking.annotator == annotator)))

    def judgement(self, prompt_id: str, annotator: str) -> Ranking | None:
        """Finds an annotator's judgement of a prompt."""
        query = select(Ranking).where(Ranking.prompt_id == prompt_id, Ranking.annotator == annotator)
        with self._read() as session:
            return session.exec(query).first()

    def repeats(self, annotator: str | None = None) -> list[Repeat]:
        """Lists the second judgements of prompts, in the order given; of one annotator if named."""
        query = select(Repeat).order_by(column(Repeat.id))
        with self._read() as session:
            return list(session.exec(query if annotator is None else query.where(Repeat.annotator == annotator)))

    def save_thumb(self, thumb: Thumb) -> None:
        """Stores a caller's thumb for an answer, in place of their earlier one."""
        with self._write() as session:
            self._put(session, Thumb, thumb.model_dump(exclude={"id"}), THUMB_KEYS)

    def remove_thumb(self, request: str, caller: str) -> None:
        """Deletes a caller's thumb for an answer, if there is one."""
        with self._write() as session:
            session.exec(delete(Thumb).where(column(Thumb.request) == request, column(Thumb.caller) == caller))

    def delete(self, table: Literal["rankings", "votes", "thumbs"], number: int) -> None:
        """Deletes a judgement from the database.

        Args:
            table: rankings, votes of the compare page, or thumbs.
            number: its number there.

        Raises:
            UserError: there is none of that number.
        """
        with self._write() as session:
            row = session.get(Thumb if table == "thumbs" else Ranking, number)
            if row is None or (isinstance(row, Ranking) and row.prompt_id.startswith(COMPARED) != (table == "votes")):
                raise UserError(f"there is no judgement {number} among the {table}: the page /runs lists them")
            if isinstance(row, Ranking):
                again = (column(Repeat.prompt_id) == row.prompt_id, column(Repeat.annotator) == row.annotator)
                session.exec(delete(Repeat).where(*again))
            session.delete(row)

    def thumbs(self) -> list[Thumb]:
        """Lists all thumbs, in the order given."""
        with self._read() as session:
            return list(session.exec(select(Thumb).order_by(column(Thumb.id))))


def _key(row: Completion) -> tuple[str, str, int]:
    return row.prompt_id, row.weights, row.index


def _id(row: Completion) -> int:
    assert row.id is not None, "stored rows have an id"
    return row.id


def _judged_by(annotator: str) -> Any:
    return select(Ranking.prompt_id).where(Ranking.annotator == annotator)


def _check(session: Session, rankings: Sequence[Ranking]) -> None:
    known: dict[str, set[str]] = defaultdict(set)
    for names in query_batches({ranking.prompt_id for ranking in rankings}):
        inside = column(Completion.prompt_id).in_(names)
        for name, completion in session.exec(select(Completion.prompt_id, Completion.id).where(inside)):
            known[name].add(str(completion))
    for ranking in rankings:
        if wrong := ranking_error(ranking, known[ranking.prompt_id]):
            raise UserError(f"ranking of {ranking.prompt_id}: {wrong}")

"""What people said of the answers, as they said it: rankings with ties, skips, "all bad"; pairs are derived."""

import hashlib
import re
import secrets
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from sqlalchemy.orm import selectinload
from sqlmodel import Session, delete, func, select

from cluster.errors import UserError
from cluster.feedback.store import Store, column, pieces
from cluster.feedback.tables import (
    CODE,
    COMPARED,
    GOLD,
    Annotator,
    Completion,
    Excluded,
    Prompt,
    Ranking,
    Repeat,
    Thumb,
    wrong_in,
)

# What there is one judgement of.
KEYS = ("prompt_id", "annotator")


class JudgementQueries(Store):
    """One judgement of each person and prompt, and one repeat."""

    def add_rankings(self, rankings: Sequence[Ranking]) -> int:
        """Adds those of prompts that their annotator has not judged yet, all or none. Returns how many were new.

        Raises:
            UserError: a judgement names a completion that is not its prompt's, has a rank below 1, or is not exactly
                one of ranks, "all bad" and a skip.
        """
        with self._write() as session:
            _check(session, rankings)
            return self._add(session, Ranking, sorted(rankings, key=lambda row: (row.prompt_id, row.annotator)))

    def add_ranking(self, ranking: Ranking) -> bool:
        """Adds one judgement; False, and nothing is changed, if that annotator has judged that prompt before."""
        return self.add_rankings([ranking]) == 1

    def save_ranking(self, ranking: Ranking) -> None:
        """Stores one judgement in place of what that annotator has said of that prompt before, if anything.

        Saying the same again changes nothing: whoever does not know whether it was stored may send it again.

        Raises:
            UserError: as `add_rankings`.
        """
        with self._write() as session:
            _check(session, [ranking])
            self._put(session, Ranking, ranking.model_dump(exclude={"id"}), KEYS)

    def save_repeat(self, ranking: Ranking) -> None:
        """Stores what an annotator said when they got a prompt of theirs again; the first time stays as it is.

        Raises:
            UserError: as `add_rankings`.
        """
        with self._write() as session:
            _check(session, [ranking])
            values = ranking.model_dump(include={*KEYS, "ranks", "presented", "seconds", "created"})
            self._put(session, Repeat, values, KEYS)

    def rankings(self) -> list[Ranking]:
        """Every judgement that counts and ranks, neither skipped nor "all bad", in the order given: none of an excluded
        annotator."""
        query = select(Ranking).where(column(Ranking.annotator).not_in(select(Excluded.annotator)))
        with self._read() as session:
            return [row for row in session.exec(query.order_by(column(Ranking.id))) if row.ranks]

    def judgements(self, annotator: str | None = None) -> list[Ranking]:
        """Every judgement, skips and "all bad" too, in the order given; of one annotator if named."""
        query = select(Ranking).order_by(column(Ranking.id))
        with self._read() as session:
            return list(session.exec(query if annotator is None else query.where(Ranking.annotator == annotator)))

    def judgement(self, prompt_id: str, annotator: str) -> Ranking | None:
        """What an annotator said of a prompt."""
        query = select(Ranking).where(Ranking.prompt_id == prompt_id, Ranking.annotator == annotator)
        with self._read() as session:
            return session.exec(query).first()

    def repeats(self, annotator: str | None = None) -> list[Repeat]:
        """What annotators said of prompts that they got again; of one annotator if named."""
        query = select(Repeat).order_by(column(Repeat.id))
        with self._read() as session:
            return list(session.exec(query if annotator is None else query.where(Repeat.annotator == annotator)))


def _check(session: Session, rankings: Sequence[Ranking]) -> None:
    known: dict[str, set[str]] = defaultdict(set)
    for names in pieces({ranking.prompt_id for ranking in rankings}):
        inside = column(Completion.prompt_id).in_(names)
        for name, completion in session.exec(select(Completion.prompt_id, Completion.id).where(inside)):
            known[name].add(str(completion))
    for ranking in rankings:
        if wrong := wrong_in(ranking, known[ranking.prompt_id]):
            raise UserError(f"ranking of {ranking.prompt_id}: {wrong}")


# The people who judge: their tokens, and whose judgements count.
def is_person(annotator: str) -> bool:
    """Whether a judgement's annotator is a person, neither a rule written in code nor what a gold item expects."""
    return not annotator.startswith((CODE, GOLD))


class AnnotatorQueries(Store):
    """Who may sign in, and who is excluded."""

    def add_annotator(self, name: str, renew: bool = False) -> str:
        """Lets a person sign in. With `renew`, a person who is there gets another token and the old one ends.

        Returns:
            the token, which is not kept: only its hash is.

        Raises:
            UserError: the name is taken, unknown (to renew), or not a name.
        """
        if not re.fullmatch(r"\w[\w .@-]{0,59}", name):
            raise UserError(f"{name!r} is no annotator's name: up to 60 letters, digits, spaces and . @ - _")
        token = secrets.token_urlsafe(32)
        with self._write() as session:
            found = session.get(Annotator, name)
            if (found is not None) != renew:
                advice = f"`triptych annotator {'add' if renew else 'renew'} {name!r}` is for that"
                raise UserError(f"{name} is {'no annotator yet' if renew else 'an annotator already'}; {advice}")
            row = found or Annotator(name=name, token_hash="")
            row.token_hash = _hash(token)
            session.add(row)
        return token

    def annotator_of(self, token: str) -> str | None:
        """The name of the person whose token it is."""
        with self._read() as session:
            return session.exec(select(Annotator.name).where(Annotator.token_hash == _hash(token))).first()

    def annotators(self) -> list[str]:
        """Everyone who may sign in, by name."""
        with self._read() as session:
            return list(session.exec(select(Annotator.name).order_by(Annotator.name)))

    def exclude(self, annotator: str, excluded: bool = True) -> None:
        """Takes an annotator's judgements out of all that is learned, or back in; they are kept either way.

        Raises:
            UserError: nobody of that name may sign in or has judged.
        """
        with self._write() as session:
            known = (
                session.get(Annotator, annotator)
                or session.exec(select(Ranking.id).where(Ranking.annotator == annotator)).first()
                or session.exec(select(Thumb.id).where(Thumb.caller == annotator)).first()
            )
            if not known:
                raise UserError(f"there is no annotator {annotator}: `triptych annotator list` names them")
            found = session.get(Excluded, annotator)
            if excluded and found is None:
                session.add(Excluded(annotator=annotator))
            elif found is not None and not excluded:
                session.delete(found)

    def excluded(self) -> list[str]:
        """Everyone whose judgements count for nothing, by name."""
        with self._read() as session:
            return list(session.exec(select(Excluded.annotator).order_by(Excluded.annotator)))


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


# What was asked and what the models answered.
class PromptQueries(Store):
    """Prompts and their completions. Adding is idempotent: what is there already is left as it is."""

    def add_prompts(self, prompts: Sequence[Prompt]) -> int:
        """Adds those that are not there yet, all or none. Returns how many were new."""
        with self._write() as session:
            return self._add(session, Prompt, sorted(prompts, key=lambda prompt: prompt.id))

    def add_completions(self, completions: Sequence[Completion]) -> list[int]:
        """Adds those that are not there yet, all or none.

        Returns:
            the id of every completion, in the order given, whether new or there before.
        """
        with self._write() as session:
            self._add(session, Completion, sorted(completions, key=_key))
            ids = {}
            for names in pieces({completion.prompt_id for completion in completions}):
                for row in session.exec(select(Completion).where(column(Completion.prompt_id).in_(names))):
                    ids[_key(row)] = _id(row)
        return [ids[_key(completion)] for completion in completions]

    def prompts(self, split: str | None = None, prefix: str = "") -> list[Prompt]:
        """Prompts with their completions, by id; of a split, or with names that begin so, if given."""
        query = select(Prompt).options(selectinload(Prompt.completions)).order_by(Prompt.id)  # type: ignore[arg-type]
        if split is not None:
            query = query.where(Prompt.split == split)
        if prefix:
            query = query.where(column(Prompt.id).startswith(prefix, autoescape=True))
        with self._read() as session:
            return list(session.exec(query))

    def prompt(self, prompt_id: str) -> Prompt | None:
        """One prompt with its completions."""
        query = select(Prompt).options(selectinload(Prompt.completions))  # type: ignore[arg-type]
        with self._read() as session:
            return session.exec(query.where(Prompt.id == prompt_id)).first()


def _key(row: Completion) -> tuple[str, str, int]:
    return row.prompt_id, row.weights, row.index


def _id(row: Completion) -> int:
    assert row.id is not None, "stored rows have an id"
    return row.id


# Which prompts an annotator may be given.
class TaskQueries(Store):
    """Names of prompts to judge: open ones, gold items, and prompts to judge again."""

    def open_tasks(self, annotator: str, people: int, limit: int | None = None) -> list[tuple[str, int]]:
        """Prompts that an annotator may judge: at least two completions, not judged by them, by few other people.

        Args:
            annotator: whose tasks.
            people: how many people are to judge a prompt; a skip does not count, nor does who is excluded.
            limit: at most so many.

        Returns:
            names, and how many people have judged each; those whose completions are newest first, because a stage that
            waits for people waits for these. Neither gold items nor what the compare page asked.
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
            .having(func.count() >= 2)
            .order_by(func.max(Completion.id).desc())
            .limit(limit)
        )
        with self._read() as session:
            return [(name, count) for name, count in session.exec(query)]

    def gold_tasks(self, annotator: str) -> list[str]:
        """Gold items that an annotator has not judged."""
        name = column(Ranking.prompt_id)
        unseen = select(Ranking.prompt_id).where(Ranking.annotator == GOLD, name.not_in(_judged_by(annotator)))
        with self._read() as session:
            return list(session.exec(unseen.order_by(name)))

    def repeatable_tasks(self, annotator: str, after: int) -> list[str]:
        """Prompts that an annotator has ranked once, before their last `after` judgements; the oldest first."""
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


def _judged_by(annotator: str) -> Any:
    return select(Ranking.prompt_id).where(Ranking.annotator == annotator)


# What people thought of single answers that a served model gave them.
# What there is one thumb of.
KEYS = ("request", "caller")


class ThumbQueries(Store):
    """One thumb of each caller and answer."""

    def save_thumb(self, thumb: Thumb) -> None:
        """Stores what a caller thinks of an answer, in place of what they thought before."""
        with self._write() as session:
            self._put(session, Thumb, thumb.model_dump(exclude={"id"}), KEYS)

    def remove_thumb(self, request: str, caller: str) -> None:
        """Takes back what a caller thought of an answer, if anything."""
        with self._write() as session:
            session.exec(delete(Thumb).where(column(Thumb.request) == request, column(Thumb.caller) == caller))

    def thumbs(self) -> list[Thumb]:
        """Every thumb, in the order given."""
        with self._read() as session:
            return list(session.exec(select(Thumb).order_by(column(Thumb.id))))

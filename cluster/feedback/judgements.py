"""The judgements of annotators, and the thumbs of those who chat with a served model: checked, stored and read."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from sqlmodel import Session, delete, select

from cluster.errors import UserError
from cluster.feedback.store import Store, column, query_batches
from cluster.feedback.tables import COMPARED, MARKS, Completion, Excluded, Ranking, Repeat, Thumb, is_person

# Unique keys: one judgement (and one repeat) of a prompt by an annotator, one thumb of an answer by a caller.
RANKING_KEYS = ("prompt_id", "annotator")
THUMB_KEYS = ("request", "caller")


@dataclass(frozen=True)
class PeoplesJudgements:
    """All judgements of people who are not excluded, as of one moment, in the order given; no skips.

    Attributes:
        rankings: the rankings of prompts, with those that call every answer bad.
        votes: the votes of the compare page.
        thumbs: up and down, for answers of served models.
    """

    rankings: list[Ranking]
    votes: list[Ranking]
    thumbs: list[Thumb]


class JudgementQueries(Store):
    """The queries on judgements and thumbs."""

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

    def peoples_judgements(self) -> PeoplesJudgements:
        """Lists the judgements that a model may learn from: of people who are not excluded, without skips."""
        with self._read() as session:
            excluded = set(session.exec(select(Excluded.annotator)))
        given = [
            row
            for row in self.judgements()
            if row.skipped is None and is_person(row.annotator) and row.annotator not in excluded
        ]
        return PeoplesJudgements(
            rankings=[row for row in given if not row.prompt_id.startswith(COMPARED)],
            votes=[row for row in given if row.prompt_id.startswith(COMPARED)],
            thumbs=[row for row in self.thumbs() if row.caller not in excluded],
        )


def _check(session: Session, rankings: Sequence[Ranking]) -> None:
    known: dict[str, set[str]] = defaultdict(set)
    for names in query_batches({ranking.prompt_id for ranking in rankings}):
        inside = column(Completion.prompt_id).in_(names)
        for name, completion in session.exec(select(Completion.prompt_id, Completion.id).where(inside)):
            known[name].add(str(completion))
    for ranking in rankings:
        if wrong := _error(ranking, known[ranking.prompt_id]):
            raise UserError(f"ranking of {ranking.prompt_id}: {wrong}")


def _error(ranking: Ranking, known: set[str]) -> str | None:
    """Returns the fault of a judgement in words, or None.

    Args:
        ranking: the judgement.
        known: the ids, as text, of its prompt's completions.
    """
    shown = set(map(str, ranking.presented))
    if foreign := sorted({*ranking.ranks, *ranking.marks, *shown} - known):
        return f"{', '.join(foreign)} is not one of its completions"
    if any(rank < 1 for rank in ranking.ranks.values()):
        return "ranks start at 1, the best"
    if bool(ranking.ranks) + ranking.all_bad + (ranking.skipped is not None) != 1:
        return 'give exactly one of ranks, "all bad" and the reason it was skipped'
    if ranking.ranks and shown and ranking.ranks.keys() != shown:
        return "every completion that was shown needs a rank"
    if foreign := sorted({mark for marks in ranking.marks.values() for mark in marks} - set(MARKS)):
        return f"{', '.join(foreign)} is not a mark: those are {', '.join(MARKS)}"
    return None

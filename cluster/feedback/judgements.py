"""What people said of the answers, as they said it: rankings with ties, skips, "all bad"; pairs are derived."""

from collections import defaultdict
from collections.abc import Sequence

from sqlmodel import Session, select

from cluster.failures import UserError
from cluster.feedback.store import Store, column, pieces
from cluster.feedback.tables import Completion, Excluded, Ranking, Repeat, wrong_in

# What there is one judgement of.
KEYS = ("prompt_id", "labeller")


class Judgements(Store):
    """One judgement of each person and prompt, and one repeat."""

    def add_rankings(self, rankings: Sequence[Ranking]) -> int:
        """Adds those of prompts that their labeller has not judged yet, all or none. Returns how many were new.

        Raises:
            UserError: a judgement names a completion that is not its prompt's, has a rank below 1, or is not exactly
                one of ranks, "all bad" and a skip.
        """
        with self._write() as session:
            _check(session, rankings)
            return self._add(session, Ranking, sorted(rankings, key=lambda row: (row.prompt_id, row.labeller)))

    def add_ranking(self, ranking: Ranking) -> bool:
        """Adds one judgement; False, and nothing is changed, if that labeller has judged that prompt before."""
        return self.add_rankings([ranking]) == 1

    def save_ranking(self, ranking: Ranking) -> None:
        """Stores one judgement in place of what that labeller has said of that prompt before, if anything.

        Saying the same again changes nothing: whoever does not know whether it was stored may send it again.

        Raises:
            UserError: as `add_rankings`.
        """
        with self._write() as session:
            _check(session, [ranking])
            self._put(session, Ranking, ranking.model_dump(exclude={"id"}), KEYS)

    def save_repeat(self, ranking: Ranking) -> None:
        """Stores what a labeller said when they got a prompt of theirs again; the first time stays as it is.

        Raises:
            UserError: as `add_rankings`.
        """
        with self._write() as session:
            _check(session, [ranking])
            values = ranking.model_dump(include={*KEYS, "ranks", "presented", "seconds", "created"})
            self._put(session, Repeat, values, KEYS)

    def rankings(self) -> list[Ranking]:
        """Every judgement that counts and ranks, neither skipped nor "all bad", in the order given: none of a labeller
        who is excluded."""
        query = select(Ranking).where(column(Ranking.labeller).not_in(select(Excluded.labeller)))
        with self._read() as session:
            return [row for row in session.exec(query.order_by(column(Ranking.id))) if row.ranks]

    def judgements(self, labeller: str | None = None) -> list[Ranking]:
        """Every judgement, skips and "all bad" too, in the order given; of one labeller if named."""
        query = select(Ranking).order_by(column(Ranking.id))
        with self._read() as session:
            return list(session.exec(query if labeller is None else query.where(Ranking.labeller == labeller)))

    def judgement(self, prompt_id: str, labeller: str) -> Ranking | None:
        """What a labeller said of a prompt."""
        query = select(Ranking).where(Ranking.prompt_id == prompt_id, Ranking.labeller == labeller)
        with self._read() as session:
            return session.exec(query).first()

    def repeats(self, labeller: str | None = None) -> list[Repeat]:
        """What labellers said of prompts that they got again; of one labeller if named."""
        query = select(Repeat).order_by(column(Repeat.id))
        with self._read() as session:
            return list(session.exec(query if labeller is None else query.where(Repeat.labeller == labeller)))


def _check(session: Session, rankings: Sequence[Ranking]) -> None:
    known: dict[str, set[str]] = defaultdict(set)
    for names in pieces({ranking.prompt_id for ranking in rankings}):
        inside = column(Completion.prompt_id).in_(names)
        for name, completion in session.exec(select(Completion.prompt_id, Completion.id).where(inside)):
            known[name].add(str(completion))
    for ranking in rankings:
        if wrong := wrong_in(ranking, known[ranking.prompt_id]):
            raise UserError(f"ranking of {ranking.prompt_id}: {wrong}")

"""What was asked and what the models answered."""

from collections.abc import Sequence

from sqlalchemy.orm import selectinload
from sqlmodel import select

from cluster.feedback.store import Store, column, pieces
from cluster.feedback.tables import Completion, Prompt


class Prompts(Store):
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

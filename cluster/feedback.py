"""What people said: prompts, the completions they saw, and how they ranked them.

SQLite by default, in write-ahead mode so that the pages, a stage and a labeller can write at once; any SQLAlchemy URL,
such as PostgreSQL's, works. Rankings are stored as given (K-way, ties, skips, the order shown); pairs are derived.
Adding is idempotent: what is there already, by its unique key, is left as it is and its id is given back.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from sqlalchemy import Engine, UniqueConstraint, event
from sqlalchemy.exc import OperationalError, SQLAlchemyError
from sqlalchemy.orm import selectinload
from sqlmodel import JSON, Column, Field, Relationship, Session, SQLModel, create_engine, func, select

from cluster.failures import UserError

SCHEMA_VERSION = 1
BUSY_SECONDS = 30.0


class Meta(SQLModel, table=True):
    """One row a setting of the database itself."""

    key: str = Field(primary_key=True)
    value: str


class Prompt(SQLModel, table=True):
    """A conversation to answer.

    Attributes:
        id: its name, unique in the database.
        messages: the chat so far, `[{"role": ..., "content": ...}]`.
        details: what the recipe's source knows of it, such as its kind and the right answer.
        split: train or held_out; every derived pair follows its prompt.
    """

    id: str = Field(primary_key=True)
    messages: list[dict[str, str]] = Field(sa_column=Column(JSON, nullable=False))
    details: dict[str, Any] = Field(default_factory=dict, sa_column=Column(JSON, nullable=False))
    split: str = "train"
    completions: list["Completion"] = Relationship(back_populates="prompt")


class Completion(SQLModel, table=True):
    """One answer to a prompt, with what drew it."""

    __table_args__ = (UniqueConstraint("prompt_id", "weights", "index"),)

    id: int | None = Field(default=None, primary_key=True)
    prompt_id: str = Field(foreign_key="prompt.id", index=True)
    index: int
    text: str
    token_ids: list[int] = Field(sa_column=Column(JSON, nullable=False))
    model: str
    weight_version: int = 0
    weights: str = Field(description="checksum of the weights that drew it")
    sampling: dict[str, Any] = Field(default_factory=dict, sa_column=Column(JSON, nullable=False))
    prompt: Prompt = Relationship(back_populates="completions")


class Ranking(SQLModel, table=True):
    """One labeller's judgement of one prompt's completions.

    Attributes:
        ranks: completion id (as text, JSON's only kind of key) to rank; 1 is best, equal ranks tie. Empty if skipped.
        skipped: why the labeller passed, or None.
        presented: completion ids in the order shown.
        seconds: how long it took.
    """

    __table_args__ = (UniqueConstraint("prompt_id", "labeller"),)

    id: int | None = Field(default=None, primary_key=True)
    prompt_id: str = Field(foreign_key="prompt.id", index=True)
    labeller: str
    ranks: dict[str, int] = Field(default_factory=dict, sa_column=Column(JSON, nullable=False))
    skipped: str | None = None
    presented: list[int] = Field(default_factory=list, sa_column=Column(JSON, nullable=False))
    seconds: float = 0.0
    created: float = Field(default_factory=time.time)


@dataclass(frozen=True)
class Counts:
    """How much there is. `rankings` leaves out the skipped."""

    prompts: int
    completions: int
    rankings: int
    skipped: int


class Feedback:
    """An open feedback database. Rows that it gives back are detached: they can be read after it is closed."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes every connection."""
        self._engine.dispose()

    def add_prompts(self, prompts: Sequence[Prompt]) -> int:
        """Adds those that are not there yet, all or none. Returns how many were new."""
        with self._write() as session:
            known = set(session.exec(select(Prompt.id)))
            new = {prompt.id: prompt for prompt in prompts if prompt.id not in known}
            session.add_all(new.values())
            session.commit()
        return len(new)

    def add_completions(self, completions: Sequence[Completion]) -> list[int]:
        """Adds those that are not there yet, all or none.

        Returns:
            the id of every completion, in the order given, whether new or there before.
        """
        with self._write() as session:
            rows = []
            for completion in completions:
                same = select(Completion).where(
                    Completion.prompt_id == completion.prompt_id,
                    Completion.weights == completion.weights,
                    Completion.index == completion.index,
                )
                found = session.exec(same).first()
                rows.append(found or completion)
                session.add(rows[-1])
                session.flush()
            ids = [_id(row) for row in rows]
            session.commit()
        return ids

    def add_rankings(self, rankings: Sequence[Ranking]) -> int:
        """Adds those of prompts that their labeller has not ranked yet, all or none. Returns how many were new.

        Raises:
            UserError: a ranking names a completion that is not its prompt's, or has a rank below 1.
        """
        with self._write() as session:
            new = 0
            for ranking in rankings:
                _check(session, ranking)
                same = select(Ranking.id).where(
                    Ranking.prompt_id == ranking.prompt_id, Ranking.labeller == ranking.labeller
                )
                if session.exec(same).first() is None:
                    session.add(ranking)
                    session.flush()
                    new += 1
            session.commit()
        return new

    def add_ranking(self, ranking: Ranking) -> bool:
        """Adds one ranking; False if that labeller has ranked that prompt before."""
        return self.add_rankings([ranking]) == 1

    def prompts(self, split: str | None = None) -> list[Prompt]:
        """Prompts with their completions, by id."""
        query = select(Prompt).options(selectinload(Prompt.completions)).order_by(Prompt.id)  # type: ignore[arg-type]
        with Session(self._engine) as session:
            return list(session.exec(query if split is None else query.where(Prompt.split == split)))

    def rankings(self) -> list[Ranking]:
        """Every ranking that was not skipped, in the order given."""
        query = select(Ranking).where(Ranking.skipped == None).order_by(Ranking.id)  # type: ignore[arg-type]  # noqa: E711
        with Session(self._engine) as session:
            return list(session.exec(query))

    def prompts_without_ranking(self, labeller: str, limit: int | None = None) -> list[Prompt]:
        """Prompts that have at least two completions and that this labeller has neither ranked nor skipped."""
        seen = select(Ranking.prompt_id).where(Ranking.labeller == labeller)
        enough = select(Completion.prompt_id).group_by(Completion.prompt_id).having(func.count() >= 2)
        column: Any = Prompt.id
        query = select(Prompt).options(selectinload(Prompt.completions))  # type: ignore[arg-type]
        query = query.where(column.not_in(seen), column.in_(enough)).order_by(column).limit(limit)
        with Session(self._engine) as session:
            return list(session.exec(query))

    def counts(self) -> Counts:
        """How much there is of each."""
        skipped: Any = Ranking.skipped
        with Session(self._engine) as session:
            return Counts(
                prompts=session.exec(select(func.count()).select_from(Prompt)).one(),
                completions=session.exec(select(func.count()).select_from(Completion)).one(),
                rankings=session.exec(select(func.count()).select_from(Ranking).where(skipped.is_(None))).one(),
                skipped=session.exec(select(func.count()).select_from(Ranking).where(skipped.is_not(None))).one(),
            )

    def _write(self) -> Session:
        # Objects stay readable after the commit, for the caller who made them.
        return Session(self._engine.execution_options(writes=True), expire_on_commit=False)


def open_feedback(url: str) -> Feedback:
    """Opens the database, and makes its tables if it is new.

    Raises:
        UserError: it cannot be opened, or another version of Triptych made it.
    """
    try:
        engine = create_engine(url)
        if engine.dialect.name == "sqlite":
            event.listen(engine, "connect", _prepare_sqlite)
            event.listen(engine, "begin", _begin)
        with engine.execution_options(writes=True).begin() as connection:
            SQLModel.metadata.create_all(connection)
        with Session(engine.execution_options(writes=True)) as session:
            found = session.get(Meta, "schema")
            if found is None:
                session.add(Meta(key="schema", value=str(SCHEMA_VERSION)))
                session.commit()
            elif found.value != str(SCHEMA_VERSION):
                raise UserError(
                    f"the feedback database {url} has schema {found.value} and this version of Triptych reads "
                    f"{SCHEMA_VERSION}: use the version that made it"
                )
    except (SQLAlchemyError, ImportError) as error:
        raise UserError(f"cannot open the feedback database {url}: {_reason(error)}") from error
    return Feedback(engine)


def _prepare_sqlite(connection: Any, record: Any) -> None:
    del record
    # SQLAlchemy begins transactions, by the event below; the driver's own late "begin" would let two writers deadlock.
    connection.isolation_level = None
    connection.execute(f"PRAGMA busy_timeout = {int(BUSY_SECONDS * 1000)}")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA foreign_keys = ON")


def _begin(connection: Any) -> None:
    # A transaction that reads first and then writes fails at once if another wrote in between, busy timeout or not.
    writes = connection.get_execution_options().get("writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _check(session: Session, ranking: Ranking) -> None:
    known = {str(key) for key in session.exec(select(Completion.id).where(Completion.prompt_id == ranking.prompt_id))}
    foreign = sorted({*ranking.ranks, *map(str, ranking.presented)} - known)
    if foreign:
        raise UserError(f"ranking of {ranking.prompt_id}: {', '.join(foreign)} is not one of its completions")
    if any(rank < 1 for rank in ranking.ranks.values()):
        raise UserError(f"ranking of {ranking.prompt_id}: ranks start at 1, the best")
    if bool(ranking.ranks) == (ranking.skipped is not None):
        raise UserError(f"ranking of {ranking.prompt_id}: give either ranks or the reason it was skipped")


def _id(row: Completion) -> int:
    assert row.id is not None, "flushed rows have an id"
    return row.id


def _reason(error: Exception) -> str:
    return str(error.orig) if isinstance(error, OperationalError) else str(error).splitlines()[0]

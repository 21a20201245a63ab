"""What people said: prompts, the completions they saw, and how they judged them.

SQLite by default, in write-ahead mode so that the pages, a stage and a labeller can write at once; any SQLAlchemy URL,
such as PostgreSQL's, works. Judgements are stored as given (K-way, ties, skips, the order shown); pairs are derived.
Adding is idempotent: what is there already, by its unique key, is left as it is and its id is given back.
"""

import hashlib
import re
import secrets
import threading
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Self

from sqlalchemy import Engine, event, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import OperationalError, SQLAlchemyError
from sqlalchemy.orm import selectinload
from sqlmodel import Session, SQLModel, create_engine, func, select

from cluster.failures import UserError
from cluster.feedback_tables import (
    CODE,
    COMPARED,
    GOLD,
    SCHEMA_VERSION,
    Completion,
    Excluded,
    Labeller,
    Meta,
    Prompt,
    Ranking,
    Repeat,
    migrate,
    wrong_in,
)
from cluster.feedback_tasks import gold_tasks, open_tasks, repeatable_tasks

__all__ = [
    "CODE",
    "COMPARED",
    "GOLD",
    "Completion",
    "Counts",
    "Feedback",
    "Labeller",
    "Prompt",
    "Ranking",
    "Repeat",
    "is_person",
    "open_feedback",
]

BUSY_SECONDS = 30.0
# Names of rows in one query: SQLite takes 32,766 parameters at most.
ASKED_TOGETHER = 1_000
# Any number that only Triptych uses: whoever makes or changes the tables on PostgreSQL holds this lock.
SCHEMA_LOCK = 7_412_950_618


@dataclass(frozen=True)
class Counts:
    """How much there is. `rankings` leaves out the skipped and those that called every completion bad."""

    prompts: int
    completions: int
    rankings: int
    skipped: int
    all_bad: int = 0


def is_person(labeller: str) -> bool:
    """Whether a judgement's labeller is a person, neither a rule written in code nor what a gold item expects."""
    return not labeller.startswith((CODE, GOLD))


class Feedback:
    """An open feedback database. Rows that it gives back are detached: they can be read after it is closed."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        # SQLite has one writer, and its waiters poll: threads of one process wait here instead, in turn.
        self._turn = threading.Lock() if engine.dialect.name == "sqlite" else nullcontext()

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
            return self._add(session, Prompt, sorted(prompts, key=lambda prompt: prompt.id))

    def add_completions(self, completions: Sequence[Completion]) -> list[int]:
        """Adds those that are not there yet, all or none.

        Returns:
            the id of every completion, in the order given, whether new or there before.
        """
        with self._write() as session:
            self._add(session, Completion, sorted(completions, key=_completion_key))
            ids = {}
            for names in _pieces({completion.prompt_id for completion in completions}):
                for row in session.exec(select(Completion).where(_column(Completion.prompt_id).in_(names))):
                    ids[_completion_key(row)] = _id(row)
        return [ids[_completion_key(completion)] for completion in completions]

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
            values = ranking.model_dump(exclude={"id"})
            keys = ("prompt_id", "labeller")
            changed = {name: value for name, value in values.items() if name not in keys}
            insert = self._insert(Ranking).values(values)
            session.execute(insert.on_conflict_do_update(index_elements=keys, set_=changed))

    def save_repeat(self, ranking: Ranking) -> None:
        """Stores what a labeller said when they got a prompt of theirs again; the first time stays as it is.

        Raises:
            UserError: as `add_rankings`.
        """
        with self._write() as session:
            _check(session, [ranking])
            values = ranking.model_dump(include={"prompt_id", "labeller", "ranks", "presented", "seconds", "created"})
            keys = ("prompt_id", "labeller")
            changed = {name: value for name, value in values.items() if name not in keys}
            insert = self._insert(Repeat).values(values)
            session.execute(insert.on_conflict_do_update(index_elements=keys, set_=changed))

    def prompts(self, split: str | None = None, prefix: str = "") -> list[Prompt]:
        """Prompts with their completions, by id; of a split, or with names that begin so, if given."""
        query = select(Prompt).options(selectinload(Prompt.completions)).order_by(Prompt.id)  # type: ignore[arg-type]
        if split is not None:
            query = query.where(Prompt.split == split)
        if prefix:
            query = query.where(_column(Prompt.id).startswith(prefix, autoescape=True))
        with Session(self._engine) as session:
            return list(session.exec(query))

    def prompt(self, prompt_id: str) -> Prompt | None:
        """One prompt with its completions."""
        query = select(Prompt).options(selectinload(Prompt.completions))  # type: ignore[arg-type]
        with Session(self._engine) as session:
            return session.exec(query.where(Prompt.id == prompt_id)).first()

    def rankings(self) -> list[Ranking]:
        """Every judgement that counts and ranks, neither skipped nor "all bad", in the order given: none of a labeller
        who is excluded."""
        excluded = set(self.excluded())
        return [row for row in self.judgements() if row.ranks and row.labeller not in excluded]

    def judgements(self, labeller: str | None = None) -> list[Ranking]:
        """Every judgement, skips and "all bad" too, in the order given; of one labeller if named."""
        query = select(Ranking).order_by(_column(Ranking.id))
        with Session(self._engine) as session:
            return list(session.exec(query if labeller is None else query.where(Ranking.labeller == labeller)))

    def judgement(self, prompt_id: str, labeller: str) -> Ranking | None:
        """What a labeller said of a prompt."""
        query = select(Ranking).where(Ranking.prompt_id == prompt_id, Ranking.labeller == labeller)
        with Session(self._engine) as session:
            return session.exec(query).first()

    def repeats(self, labeller: str | None = None) -> list[Repeat]:
        """What labellers said of prompts that they got again; of one labeller if named."""
        query = select(Repeat).order_by(_column(Repeat.id))
        with Session(self._engine) as session:
            return list(session.exec(query if labeller is None else query.where(Repeat.labeller == labeller)))

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
        with Session(self._engine) as session:
            return [(name, count) for name, count in session.exec(open_tasks(labeller, people, limit))]

    def gold_tasks(self, labeller: str) -> list[str]:
        """Gold items that a labeller has not judged."""
        with Session(self._engine) as session:
            return list(session.exec(gold_tasks(labeller)))

    def repeatable_tasks(self, labeller: str, after: int) -> list[str]:
        """Prompts that a labeller has ranked once, before their last `after` judgements; the oldest first."""
        with Session(self._engine) as session:
            return list(session.exec(repeatable_tasks(labeller, after)))

    def counts(self) -> Counts:
        """How much there is of each."""
        skipped, bad = _column(Ranking.skipped), _column(Ranking.all_bad)
        rows = select(func.count()).select_from(Ranking)
        with Session(self._engine) as session:
            return Counts(
                prompts=session.exec(select(func.count()).select_from(Prompt)).one(),
                completions=session.exec(select(func.count()).select_from(Completion)).one(),
                rankings=session.exec(rows.where(skipped.is_(None), bad.is_(False))).one(),
                skipped=session.exec(rows.where(skipped.is_not(None))).one(),
                all_bad=session.exec(rows.where(bad.is_(True))).one(),
            )

    def add_labeller(self, name: str, renew: bool = False) -> str:
        """Lets a person sign in. With `renew`, a person who is there gets another token and the old one ends.

        Returns:
            the token, which is not kept: only its hash is.

        Raises:
            UserError: the name is taken, unknown (to renew), or not a name.
        """
        if not re.fullmatch(r"\w[\w .@-]{0,59}", name):
            raise UserError(f"{name!r} is no labeller's name: up to 60 letters, digits, spaces and . @ - _")
        token = secrets.token_urlsafe(32)
        with self._write() as session:
            found = session.get(Labeller, name)
            if (found is not None) != renew:
                advice = f"`triptych labeller {'add' if renew else 'renew'} {name!r}` is for that"
                raise UserError(f"{name} is {'no labeller yet' if renew else 'a labeller already'}; {advice}")
            row = found or Labeller(name=name, token_hash="")
            row.token_hash = _hash(token)
            session.add(row)
        return token

    def labeller_of(self, token: str) -> str | None:
        """The name of the person whose token it is."""
        with Session(self._engine) as session:
            return session.exec(select(Labeller.name).where(Labeller.token_hash == _hash(token))).first()

    def exclude(self, labeller: str, excluded: bool = True) -> None:
        """Takes a labeller's judgements out of all that is learned, or back in; they are kept either way.

        Raises:
            UserError: nobody of that name may sign in or has judged.
        """
        with self._write() as session:
            known = (
                session.get(Labeller, labeller)
                or session.exec(select(Ranking.id).where(Ranking.labeller == labeller)).first()
            )
            if not known:
                raise UserError(f"there is no labeller {labeller}: `triptych labeller list` names them")
            found = session.get(Excluded, labeller)
            if excluded and found is None:
                session.add(Excluded(labeller=labeller))
            elif found is not None and not excluded:
                session.delete(found)

    def excluded(self) -> list[str]:
        """Everyone whose judgements count for nothing, by name."""
        with Session(self._engine) as session:
            return list(session.exec(select(Excluded.labeller).order_by(Excluded.labeller)))

    def labellers(self) -> list[str]:
        """Everyone who may sign in, by name."""
        with Session(self._engine) as session:
            return list(session.exec(select(Labeller.name).order_by(Labeller.name)))

    def _insert(self, table: Any) -> Any:
        dialect: Any = postgresql if self._engine.dialect.name == "postgresql" else sqlite
        return dialect.insert(table)

    def _add(self, session: Session, table: Any, rows: list[Any]) -> int:
        # The database decides what is new: two writers that both look first would both insert. Both insert in the
        # order of the keys, so neither waits for the other.
        values = [row.model_dump(exclude=None if table is Prompt else {"id"}) for row in rows]
        if not values:
            return 0
        insert = self._insert(table).on_conflict_do_nothing().returning(table.id)
        return len(session.execute(insert, values).all())

    @contextmanager
    def _write(self) -> Iterator[Session]:
        # Objects stay readable after the commit, for the caller who made them.
        with self._turn, Session(self._engine.execution_options(writes=True), expire_on_commit=False) as session:
            yield session
            session.commit()


def open_feedback(url: str) -> Feedback:
    """Opens the database. Makes its tables if it is new, and brings those of an older Triptych to this one's schema.

    Raises:
        UserError: it cannot be opened, or a newer version of Triptych made it.
    """
    try:
        engine = create_engine(url)
        try:
            _prepare(engine, url)
        except (SQLAlchemyError, UserError):
            engine.dispose()
            raise
    except (SQLAlchemyError, ImportError) as error:
        raise UserError(f"cannot open the feedback database {url}: {_reason(error)}") from error
    return Feedback(engine)


def _prepare(engine: Engine, url: str) -> None:
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin)
    with Session(engine.execution_options(writes=True)) as session:
        if engine.dialect.name == "postgresql":
            session.execute(text(f"SELECT pg_advisory_xact_lock({SCHEMA_LOCK})"))
        SQLModel.metadata.create_all(session.connection())
        found = session.get(Meta, "schema") or Meta(key="schema", value=str(SCHEMA_VERSION))
        if int(found.value) > SCHEMA_VERSION:
            raise UserError(
                f"the feedback database {url} has schema {found.value} and this version of Triptych reads up to "
                f"{SCHEMA_VERSION}: use the version that made it"
            )
        migrate(session.connection(), int(found.value))
        found.value = str(SCHEMA_VERSION)
        session.add(found)
        session.commit()


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


def _check(session: Session, rankings: Sequence[Ranking]) -> None:
    known: dict[str, set[str]] = defaultdict(set)
    for names in _pieces({ranking.prompt_id for ranking in rankings}):
        column = _column(Completion.prompt_id)
        for name, completion in session.exec(select(Completion.prompt_id, Completion.id).where(column.in_(names))):
            known[name].add(str(completion))
    for ranking in rankings:
        if wrong := wrong_in(ranking, known[ranking.prompt_id]):
            raise UserError(f"ranking of {ranking.prompt_id}: {wrong}")


def _pieces(names: set[str]) -> list[list[str]]:
    ordered = sorted(names)
    return [ordered[begin : begin + ASKED_TOGETHER] for begin in range(0, len(ordered), ASKED_TOGETHER)]


def _completion_key(row: Completion) -> tuple[str, str, int]:
    return row.prompt_id, row.weights, row.index


def _column(attribute: Any) -> Any:
    """A column where SQLModel's types see the value of a row."""
    return attribute


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def _id(row: Completion) -> int:
    assert row.id is not None, "stored rows have an id"
    return row.id


def _reason(error: Exception) -> str:
    return str(error.orig) if isinstance(error, OperationalError) else str(error).splitlines()[0]

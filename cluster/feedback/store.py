"""The database itself: how it is opened, and how its transactions run so that many may write at once.

SQLite by default, in write-ahead mode so that the pages, a stage and an annotator can write at once; PostgreSQL by URL.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Self

from sqlalchemy import URL, Engine, event, inspect, make_url, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlmodel import Session, SQLModel, create_engine

from cluster.errors import UserError, first_line
from cluster.feedback.tables import SCHEMA_VERSION, Meta, Prompt, migrate

BUSY_SECONDS = 30.0
# Names of rows in one query: SQLite takes 32,766 parameters at most.
ASKED_TOGETHER = 1_000
# Any number that only Triptych uses: whoever makes or changes the tables on PostgreSQL holds this lock.
SCHEMA_LOCK = 7_412_950_618
# The driver for PostgreSQL that comes with Triptych, unless the URL names another.
DRIVER = "postgresql+pg8000"


class Store:
    """An open database. Rows that it gives back are detached: they can be read after it is closed."""

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

    def _read(self) -> Session:
        return Session(self._engine)

    @contextmanager
    def _write(self) -> Iterator[Session]:
        # Objects stay readable after the commit, for the caller who made them.
        with self._turn, Session(self._engine.execution_options(writes=True), expire_on_commit=False) as session:
            yield session
            session.commit()

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

    def _put(self, session: Session, table: Any, values: dict[str, Any], keys: tuple[str, ...]) -> None:
        """Adds a row, in place of the one with the same keys if there is one."""
        changed = {name: value for name, value in values.items() if name not in keys}
        insert = self._insert(table).values(values)
        session.execute(insert.on_conflict_do_update(index_elements=keys, set_=changed))


def column(attribute: Any) -> Any:
    """A column where SQLModel's types see the value of a row."""
    return attribute


def pieces(names: set[str]) -> list[list[str]]:
    """The names in order, as many together as one query may ask for."""
    ordered = sorted(names)
    return [ordered[begin : begin + ASKED_TOGETHER] for begin in range(0, len(ordered), ASKED_TOGETHER)]


def open_engine(url: str) -> Engine:
    """Connects to the database. Makes its tables if it is new, and brings those of an older Triptych to this schema.

    Raises:
        UserError: it cannot be opened, or a newer version of Triptych made it. No message has the URL's password.
    """
    place = _place_of(url)
    try:
        if place.drivername == "postgresql":
            place = place.set(drivername=DRIVER)
        # A server that was restarted leaves dead connections behind; a wait for it or for its locks has an end.
        limits = {"timeout": BUSY_SECONDS} if place.drivername == DRIVER else {}
        engine = create_engine(place, pool_pre_ping=place.get_backend_name() != "sqlite", connect_args=limits)
        try:
            _prepare(engine)
        except (SQLAlchemyError, UserError):
            engine.dispose()
            raise
    except (SQLAlchemyError, ImportError) as error:
        raise UserError(f"cannot open the feedback database {place!r}: {_reason(error)}") from error
    return engine


def _place_of(url: str) -> URL:
    """The parts of the URL.

    Raises:
        UserError: it is none. Nothing of it is shown, because any part of it may be of a password.
    """
    refusal = UserError(
        "cannot read the URL of the feedback database: write it as postgresql://NAME:PASSWORD@HOST:PORT/DATABASE, and "
        "an @ in the password as %40"
    )
    try:
        place = make_url(url)
    except (SQLAlchemyError, ValueError):
        # Its message, too, shows what was read for a port.
        raise refusal from None
    if place.get_backend_name() != "sqlite" and "@" in f"{place.host}{place.database}":
        raise refusal
    return place


def _prepare(engine: Engine) -> None:
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin)
    with Session(engine.execution_options(writes=True)) as session:
        if engine.dialect.name == "postgresql":
            session.execute(text(f"SELECT pg_advisory_xact_lock({SCHEMA_LOCK})"))
        new = not inspect(session.connection()).has_table("meta")
        found = None if new else session.get(Meta, "schema")
        found = found or Meta(key="schema", value=str(SCHEMA_VERSION))
        if int(found.value) > SCHEMA_VERSION:
            raise UserError(
                f"the feedback database {engine.url!r} has schema {found.value} and this version of Triptych reads up "
                f"to {SCHEMA_VERSION}: use the version that made it"
            )
        migrate(session.connection(), int(found.value))
        SQLModel.metadata.create_all(session.connection())
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


def _reason(error: Exception) -> str:
    return str(error.orig) if isinstance(error, DBAPIError) else first_line(error)

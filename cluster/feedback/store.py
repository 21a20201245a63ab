"""The connection to the feedback database, and transactions under which many processes may write at once.

The default is SQLite in write-ahead mode, so that the web pages, a stage and the command line can write at the same
time; on network file systems, where that mode does not work, SQLite keeps a rollback journal. A URL selects PostgreSQL.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Self

from sqlalchemy import URL, Engine, event, inspect, make_url, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlmodel import Session, SQLModel, create_engine

from cluster.errors import UserError, first_line
from cluster.feedback.tables import SCHEMA_VERSION, FeedbackPrompt, Meta, migrate
from cluster.run.atomic import make_private
from cluster.run.storage.mounts import is_network

# The longest wait for another writer, or for a server that does not answer.
BUSY_SECONDS = 30.0
# Parameters of one query: SQLite takes at most 32,766.
MAX_PARAMETERS = 1_000
# Key of the PostgreSQL advisory lock that guards the creation and migration of tables: any number of our own.
SCHEMA_LOCK = 7_412_950_618
# The PostgreSQL driver that Triptych requires; a URL may name another.
DRIVER = "postgresql+pg8000"


class Store:
    """An open database, and the three ways to write rows. Rows are returned detached: readable after it is closed."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._journal_left = False
        # SQLite has one writer, and those who wait poll: threads of one process take turns at this lock instead.
        self._write_lock = threading.Lock() if engine.dialect.name == "sqlite" else nullcontext()

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
        # Without expiry on commit the caller can still read the objects that it added.
        with self._write_lock, Session(self._engine.execution_options(writes=True), expire_on_commit=False) as session:
            yield session
            session.commit()

    def _purge_journal(self) -> None:
        """Empties SQLite's write-ahead journal, which still holds rows that were deleted, unless somebody reads it.

        `_journal_left` then says that it has to be called again.
        """
        if self._engine.dialect.name == "sqlite":
            connection = self._engine.raw_connection()
            try:
                found = connection.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
                self._journal_left = found is not None and bool(found[0])
            finally:
                connection.close()

    def _insert(self, table: Any) -> Any:
        dialect: Any = postgresql if self._engine.dialect.name == "postgresql" else sqlite
        return dialect.insert(table)

    def _add(self, session: Session, table: Any, rows: list[Any]) -> int:
        """Inserts the rows whose unique key is new; returns how many were."""
        # The database decides what is new: two writers that both looked first would both insert. All writers insert in
        # the order of the keys, so that no two wait for each other.
        values = [row.model_dump(exclude=None if table is FeedbackPrompt else {"id"}) for row in rows]
        if not values:
            return 0
        insert = self._insert(table).on_conflict_do_nothing().returning(table.id)
        return len(session.execute(insert, values).all())

    def _put(self, session: Session, table: Any, values: dict[str, Any], keys: tuple[str, ...]) -> None:
        """Inserts a row, or updates the row with the same keys."""
        changed = {name: value for name, value in values.items() if name not in keys}
        insert = self._insert(table).values(values)
        session.execute(insert.on_conflict_do_update(index_elements=keys, set_=changed))


def column(attribute: Any) -> Any:
    """Casts an attribute to the SQL column that it is in a query; SQLModel types it as the value of a row."""
    return attribute


def query_batches(names: set[str]) -> list[list[str]]:
    """Sorts names and splits them into batches that fit the parameters of one query."""
    ordered = sorted(names)
    return [ordered[begin : begin + MAX_PARAMETERS] for begin in range(0, len(ordered), MAX_PARAMETERS)]


def open_engine(url: str) -> Engine:
    """Connects to the database; creates its tables if it is new, and migrates those of an older version of Triptych.

    Raises:
        UserError: it cannot be opened, or a newer version of Triptych made it. No message has the URL's password.
    """
    place = _parse_url(url)
    try:
        if place.drivername == "postgresql":
            place = place.set(drivername=DRIVER)
        # A restarted server leaves dead connections behind (hence the pings); every wait for it has an end.
        limits = {"timeout": BUSY_SECONDS} if place.drivername == DRIVER else {}
        engine = create_engine(place, pool_pre_ping=place.get_backend_name() != "sqlite", connect_args=limits)
        try:
            _set_up(engine)
        except (SQLAlchemyError, UserError):
            engine.dispose()
            raise
    except (SQLAlchemyError, ImportError) as error:
        raise UserError(f"cannot open the feedback database {place!r}: {_reason(error)}") from error
    return engine


def _parse_url(url: str) -> URL:
    """Splits a URL into its parts.

    Raises:
        UserError: it is malformed. The message shows nothing of it, because any part may belong to a password.
    """
    refusal = UserError(
        "cannot read the URL of the feedback database: write it as postgresql://NAME:PASSWORD@HOST:PORT/DATABASE, and "
        "an @ in the password as %40"
    )
    try:
        place = make_url(url)
    except (SQLAlchemyError, ValueError):
        # The original error quotes the text that it took for a port, which may be a password.
        raise refusal from None
    if place.get_backend_name() != "sqlite" and "@" in f"{place.host}{place.database}":
        raise refusal
    return place


def _set_up(engine: Engine) -> None:
    if engine.dialect.name == "sqlite":
        if engine.url.database and Path(engine.url.database).parent.is_dir():
            # SQLite gives its journal the rights of the database.
            make_private(Path(engine.url.database))
        event.listen(engine, "connect", _set_up_sqlite)
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


def _set_up_sqlite(connection: Any, record: Any) -> None:
    del record
    # `_begin` begins the transactions: the driver's own, late BEGIN would let two writers deadlock.
    connection.isolation_level = None
    connection.execute(f"PRAGMA busy_timeout = {int(BUSY_SECONDS * 1000)}")
    (file,) = (name for _, place, name in connection.execute("PRAGMA database_list") if place == "main")
    # In write-ahead mode all that open the database share memory, which processes of several machines cannot
    # (sqlite.org/wal.html): on a network file system writers keep a journal beside it, and readers wait for them.
    connection.execute(f"PRAGMA journal_mode = {'DELETE' if file and is_network(Path(file)) else 'WAL'}")
    connection.execute("PRAGMA foreign_keys = ON")
    # What is deleted is overwritten: people's prompts and judgements are not left behind in free pages.
    connection.execute("PRAGMA secure_delete = ON")


def _begin(connection: Any) -> None:
    # A transaction that reads and then writes fails at once, busy timeout or not, if another one wrote in between.
    writes = connection.get_execution_options().get("writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _reason(error: Exception) -> str:
    return str(error.orig) if isinstance(error, DBAPIError) else first_line(error)

"""The tables of the feedback database, and how a database of an older schema becomes one of this schema."""

import time
from typing import Any

from sqlalchemy import Connection, Dialect, String, TypeDecorator, UniqueConstraint, inspect, text
from sqlmodel import JSON, Column, Field, Relationship, SQLModel

SCHEMA_VERSION = 5
# What makes a database of schema N one of schema N + 1, before tables that are new are made.
MIGRATIONS = {
    1: (
        "ALTER TABLE ranking ADD COLUMN all_bad BOOLEAN NOT NULL DEFAULT FALSE",
        "ALTER TABLE ranking ADD COLUMN marks JSON NOT NULL DEFAULT '{}'",
        "ALTER TABLE ranking ADD COLUMN better VARCHAR",
    ),
    2: (),
    3: (),
    4: (),
}
# Schema 4 called annotators labellers.
RENAMED_COLUMNS = ("ranking", "repeat", "excluded")
MARKS = ("helpful", "honest", "harmless")
# The annotators who are no people: a rule written in code, and the ranking that a gold item should get.
CODE = "code ("
GOLD = "gold (expected)"
# What the names of the prompts of the compare page begin with.
COMPARED = "compare "


class AnyText(TypeDecorator[str]):
    """Text in which a model may have written anything. PostgreSQL holds no NUL, which becomes U+FFFD."""

    impl = String
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        return value.replace("\0", "\ufffd") if value and dialect.name == "postgresql" else value


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
    text: str = Field(sa_type=AnyText)
    token_ids: list[int] = Field(sa_column=Column(JSON, nullable=False))
    model: str
    weight_version: int = 0
    weights: str = Field(description="checksum of the weights that drew it")
    sampling: dict[str, Any] = Field(default_factory=dict, sa_column=Column(JSON, nullable=False))
    prompt: Prompt = Relationship(back_populates="completions")


class Ranking(SQLModel, table=True):
    """One annotator's judgement of one prompt's completions: ranks, "all bad", or a skip; exactly one of the three.

    Attributes:
        ranks: completion id (as text, JSON's only kind of key) to rank; 1 is best, equal ranks tie.
        skipped: why the annotator passed, or None.
        all_bad: no completion is worth ranking.
        marks: completion id to what the annotator said of it: helpful, honest or harmless, true or false; what was
            not said is not there.
        better: the answer that the annotator would have given, or None.
        presented: completion ids in the order shown.
        seconds: how long it took.
    """

    __table_args__ = (UniqueConstraint("prompt_id", "annotator"),)

    id: int | None = Field(default=None, primary_key=True)
    prompt_id: str = Field(foreign_key="prompt.id", index=True)
    annotator: str
    ranks: dict[str, int] = Field(default_factory=dict, sa_column=Column(JSON, nullable=False))
    skipped: str | None = Field(default=None, sa_type=AnyText)
    all_bad: bool = False
    marks: dict[str, dict[str, bool]] = Field(default_factory=dict, sa_column=Column(JSON, nullable=False))
    better: str | None = Field(default=None, sa_type=AnyText)
    presented: list[int] = Field(default_factory=list, sa_column=Column(JSON, nullable=False))
    seconds: float = 0.0
    created: float = Field(default_factory=time.time)


class Annotator(SQLModel, table=True):
    """A person who may sign in. The token itself is kept nowhere; it is 256 random bits, so a plain hash hides it."""

    name: str = Field(primary_key=True)
    token_hash: str = Field(unique=True, description="SHA-256 of the token, in hexadecimal")
    created: float = Field(default_factory=time.time)


class Repeat(SQLModel, table=True):
    """What an annotator said when they were given a prompt of theirs again, to see whether they say the same twice.

    Attributes:
        ranks: as a ranking's; empty where they skipped it or called all bad this time.
        presented: completion ids in the order shown.
    """

    __table_args__ = (UniqueConstraint("prompt_id", "annotator"),)

    id: int | None = Field(default=None, primary_key=True)
    prompt_id: str = Field(foreign_key="prompt.id", index=True)
    annotator: str
    ranks: dict[str, int] = Field(default_factory=dict, sa_column=Column(JSON, nullable=False))
    presented: list[int] = Field(default_factory=list, sa_column=Column(JSON, nullable=False))
    seconds: float = 0.0
    created: float = Field(default_factory=time.time)


class Thumb(SQLModel, table=True):
    """What somebody thought of one answer of a served model.

    Attributes:
        request: the number under which the server answered.
        caller: the name of their key; empty where the server asks for none.
        messages: the chat that was answered.
        good: thumb up, or down.
    """

    __table_args__ = (UniqueConstraint("request", "caller"),)

    id: int | None = Field(default=None, primary_key=True)
    request: str
    caller: str
    model: str
    weights: str = Field(description="checksum of the weights that answered")
    messages: list[dict[str, str]] = Field(sa_column=Column(JSON, nullable=False))
    answer: str = Field(sa_type=AnyText)
    good: bool
    created: float = Field(default_factory=time.time)


class Excluded(SQLModel, table=True):
    """An annotator whose judgements are kept and count for nothing. They need not be one who can sign in."""

    annotator: str = Field(primary_key=True)
    created: float = Field(default_factory=time.time)


def migrate(connection: Connection, version: int) -> None:
    """Brings the tables of schema `version` to `SCHEMA_VERSION`, within the connection's transaction."""
    for step in range(version, SCHEMA_VERSION):
        for statement in MIGRATIONS[step]:
            connection.execute(text(statement))
    if version < 5:
        _rename_labellers(connection)


def _rename_labellers(connection: Connection) -> None:
    there = set(inspect(connection).get_table_names())
    for table in there.intersection(RENAMED_COLUMNS):
        connection.execute(text(f'ALTER TABLE "{table}" RENAME COLUMN labeller TO annotator'))
    if "labeller" in there:
        connection.execute(text("ALTER TABLE labeller RENAME TO annotator"))


def wrong_in(ranking: Ranking, known: set[str]) -> str | None:
    """What is wrong with a judgement of a prompt whose completions are `known`, or None."""
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

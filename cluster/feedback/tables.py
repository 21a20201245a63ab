"""The tables of the feedback database, and the migration of databases with an older schema."""

import time
import uuid
from collections.abc import Iterable
from typing import Any

from sqlalchemy import Connection, Dialect, String, TypeDecorator, UniqueConstraint, inspect, text
from sqlmodel import JSON, Column, Field, Relationship, SQLModel

SCHEMA_VERSION = 8
# Statements that bring schema N to N + 1; they run before new tables are created.
MIGRATIONS = {
    1: (
        "ALTER TABLE ranking ADD COLUMN all_bad BOOLEAN NOT NULL DEFAULT FALSE",
        "ALTER TABLE ranking ADD COLUMN marks JSON NOT NULL DEFAULT '{}'",
        "ALTER TABLE ranking ADD COLUMN better VARCHAR",
    ),
    2: (),
    3: (),
    4: (),
    5: ("ALTER TABLE ranking ADD COLUMN save_id VARCHAR",),
    6: (),
    7: (
        "ALTER TABLE prompt ADD COLUMN place INTEGER",
        "ALTER TABLE prompt ADD COLUMN chosen_by VARCHAR",
        "ALTER TABLE prompt ADD COLUMN chosen_score FLOAT",
        "ALTER TABLE prompt ADD COLUMN chosen_from VARCHAR",
    ),
}
# Tables whose column `annotator` was called `labeller` up to schema 4.
RENAMED_COLUMNS = ("ranking", "repeat", "excluded")
MARKS = ("helpful", "honest", "harmless")
# Annotator names that stand for no person: the prefix of synthetic annotators, and the author of the rankings that gold
# items are expected to get.
CODE = "code ("
GOLD = "gold (expected)"
# Prefix of the ids of prompts that come from the compare page.
COMPARED = "compare "
# What a prompt was chosen by that comes in a random place.
AT_RANDOM = "random"
# The kind, in their details, of prompts that come from live traffic.
LIVE = "live"


class AnyText(TypeDecorator[str]):
    """Text of any content. PostgreSQL stores no NUL characters: they become U+FFFD."""

    impl = String
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        return value.replace("\0", "\ufffd") if value and dialect.name == "postgresql" else value


class Meta(SQLModel, table=True):
    """A setting of the database itself, such as its schema version."""

    key: str = Field(primary_key=True)
    value: str


class FeedbackPrompt(SQLModel, table=True):
    """A conversation to answer.

    Attributes:
        id: a unique name.
        messages: the chat so far, `[{"role": ..., "content": ...}]`.
        details: facts from the recipe's source, such as its kind and the right answer.
        split: train or held_out; pairs belong to the split of their prompt.
        place: its place in the order in which people are asked; those without one come last.
        chosen_by: why it has this place: `AT_RANDOM`, or the criterion by which it was chosen; None if nothing chose.
        chosen_score: the value of the criterion, where it is known.
        chosen_from: identifies the reward model and the settings that gave it its place.
    """

    __tablename__ = "prompt"

    id: str = Field(primary_key=True)
    messages: list[dict[str, str]] = Field(sa_column=Column(JSON, nullable=False))
    details: dict[str, Any] = Field(default_factory=dict, sa_column=Column(JSON, nullable=False))
    split: str = "train"
    place: int | None = None
    chosen_by: str | None = None
    chosen_score: float | None = None
    chosen_from: str | None = None
    completions: list["Completion"] = Relationship(back_populates="prompt")


class Completion(SQLModel, table=True):
    """An answer to a prompt, with the model, weights and sampling settings that generated it."""

    __table_args__ = (UniqueConstraint("prompt_id", "weights", "index"),)

    id: int | None = Field(default=None, primary_key=True)
    prompt_id: str = Field(foreign_key="prompt.id", index=True)
    index: int
    text: str = Field(sa_type=AnyText)
    token_ids: list[int] = Field(sa_column=Column(JSON, nullable=False))
    model: str
    weight_version: int = 0
    weights: str = Field(description="checksum of the weights that generated it")
    sampling: dict[str, Any] = Field(default_factory=dict, sa_column=Column(JSON, nullable=False))
    prompt: FeedbackPrompt = Relationship(back_populates="completions")


class Ranking(SQLModel, table=True):
    """An annotator's judgement of the completions of a prompt: exactly one of ranks, "all bad" and a skip.

    Attributes:
        ranks: completion id (as text, JSON's only kind of key) to rank; 1 is best, equal ranks are a tie.
        skipped: the reason for a skip, or None.
        all_bad: whether no completion is worth ranking.
        marks: completion id to {mark: true or false}, of `MARKS`; marks that were not given are absent.
        better: the answer that the annotator would have given, or None.
        presented: completion ids in the order shown.
        seconds: the time that the judgement took.
        save_id: the id that the client gave to the save, by which a repeated request is recognized.
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
    save_id: str | None = None

    def says(self) -> dict[str, Any]:
        """Returns the content of the judgement, without its time, duration and order of presentation."""
        return self.model_dump(include={"ranks", "skipped", "all_bad", "marks", "better"})


class Annotator(SQLModel, table=True):
    """A person who may sign in with a token. Tokens are 256 random bits, so that storing a plain hash is safe."""

    name: str = Field(primary_key=True)
    token_hash: str = Field(unique=True, description="SHA-256 of the token, in hexadecimal")
    created: float = Field(default_factory=time.time)


class Repeat(SQLModel, table=True):
    """An annotator's second judgement of a prompt, which measures whether they agree with themselves.

    Attributes:
        ranks: see `Ranking`; empty where the second judgement is a skip or "all bad".
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
    """A thumb up or down for an answer of a served model.

    Attributes:
        request: the request id of the answer.
        caller: the name of the caller's key; empty where the server asks for no key.
        messages: the chat that was answered.
        good: True for a thumb up, False for a thumb down.
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


class LivePrompt(SQLModel, table=True):
    """A prompt of live traffic, stored by consent until it expires, with personal data replaced by placeholders.

    Attributes:
        id: a random name, which no later prompt gets.
        request: the id of the request.
        caller: the name of the caller's key; empty where the server asks for no key.
        model: the model that answered.
        messages: the conversation before the answer.
        consent: what allowed it to be stored, one of the modes of `serve.record`.
        created: when it was stored, in seconds since 1970.
        expires: from when on it is deleted, in seconds since 1970.
    """

    __tablename__ = "live_prompt"

    id: str = Field(default_factory=lambda: uuid.uuid4().hex, primary_key=True)
    request: str = Field(index=True)
    caller: str = Field(index=True)
    model: str
    messages: list[dict[str, str]] = Field(sa_column=Column(JSON, nullable=False))
    consent: str
    created: float = Field(default_factory=time.time)
    expires: float = Field(index=True)


class Excluded(SQLModel, table=True):
    """An annotator, registered or not, whose judgements stay stored but are left out of training and statistics."""

    annotator: str = Field(primary_key=True)
    created: float = Field(default_factory=time.time)


def migrate(connection: Connection, version: int) -> None:
    """Migrates the tables from schema `version` to `SCHEMA_VERSION`, within the connection's transaction."""
    for step in range(version, SCHEMA_VERSION):
        for statement in MIGRATIONS[step]:
            connection.execute(text(statement))
    if version < 5:
        _rename_labellers(connection)


def is_person(annotator: str) -> bool:
    """Tells whether an annotator is a person: not a synthetic annotator, nor the author of gold rankings."""
    return not annotator.startswith((CODE, GOLD))


def distinct_completions(completions: Iterable[Completion]) -> list[Completion]:
    """Lists the first completion of each text, in the order given. Annotators see equal texts as one answer."""
    first: dict[str, Completion] = {}
    for completion in completions:
        first.setdefault(completion.text, completion)
    return list(first.values())


def _rename_labellers(connection: Connection) -> None:
    tables = set(inspect(connection).get_table_names())
    for table in tables.intersection(RENAMED_COLUMNS):
        connection.execute(text(f'ALTER TABLE "{table}" RENAME COLUMN labeller TO annotator'))
    if "labeller" in tables:
        connection.execute(text("ALTER TABLE labeller RENAME TO annotator"))

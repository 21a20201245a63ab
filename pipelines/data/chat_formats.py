"""Reads conversations in the common layouts, from files or from functions that a recipe names."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from actors.model.tokenizer import REASONING
from cluster.errors import UserError
from cluster.recipe.collect import ChatSource
from pipelines.data.row_files import BadRow, Row, bad_row
from pipelines.data.source_rows import source_rows
from pipelines.data.turns import (
    SYSTEM_FIELDS,
    Messages,
    Turns,
    columns,
    instruction_of,
    read_tools,
    read_turns,
    turns_before,
)

# Layouts of a single exchange, in the order in which they are tried: the fields of the user and of the assistant.
EXCHANGE_LAYOUTS = {
    "instruction/output": ("instruction", "output"),
    "prompt/response": ("prompt", "response"),
    "prompt/completion": ("prompt", "completion"),
    "question/answer": ("question", "answer"),
    "question/response": ("question", "response"),
}


@dataclass(frozen=True)
class Conversation:
    """A conversation to learn from.

    Attributes:
        messages: the messages as in `Turns`.
        place: file and line.
        tools: declarations of the tools that the assistant may call.
        untrained: indices of the assistant's turns that are context alone.
    """

    messages: Messages
    place: str = field(compare=False)
    tools: list[Any] | None = None
    untrained: tuple[int, ...] = ()


@dataclass
class ConversationCounts:
    """Counts of the rows that were read.

    Attributes:
        layouts: the number of conversations in each layout.
        ignored: the number of rows with each field that nothing reads; of turns, as turn.FIELD.
        bad: rows that could not be read.
    """

    layouts: Counter[str] = field(default_factory=Counter)
    ignored: Counter[str] = field(default_factory=Counter)
    bad: list[BadRow] = field(default_factory=list)


@dataclass(frozen=True)
class Conversations:
    """Conversations in memory, with the attributes of `ConversationCounts`."""

    items: list[Conversation]
    layouts: dict[str, int]
    bad: list[BadRow]
    ignored: dict[str, int]

    @property
    def messages(self) -> list[Messages]:
        """The turns of every conversation."""
        return [item.messages for item in self.items]


def read_conversations(sources: Sequence[ChatSource], seed: int) -> Conversations:
    """Reads all conversations of sources at once. Rows that cannot be read are returned with the reason.

    Args:
        sources: the recipe's.
        seed: the seed for sources that are functions.

    Raises:
        UserError: there is no conversation, or a file is missing or damaged.
    """
    counts = ConversationCounts()
    items = [item for source in sources for item in conversations(source_rows(source, seed), counts)]
    require_rows(len(items) + len(counts.bad), sources)
    return Conversations(items, dict(counts.layouts), counts.bad, dict(counts.ignored))


def require_rows(count: int, sources: Iterable[ChatSource]) -> None:
    """Refuses sources of which no row was read.

    Raises:
        UserError: `count` is 0.
    """
    if not count:
        names = ", ".join(str(source.path or source.function) for source in sources)
        raise UserError(f"sft.sources hold no conversation: {names}")


def conversations(rows: Iterable[tuple[Row | BadRow, str]], counts: ConversationCounts) -> Iterator[Conversation]:
    """Yields the conversations of rows as they are read; those that cannot be read are added to `counts`."""
    for row, place in rows:
        if isinstance(row, BadRow):
            counts.bad.append(row)
            continue
        try:
            item, layout, fields, unread = conversation_of(row, place)
        except UserError as error:
            counts.bad.append(bad_row(place, str(error), row))
            continue
        counts.layouts[layout] += 1
        given = {name for name, value in row.items() if value is not None}
        counts.ignored.update(given - fields - {"tools"})
        counts.ignored.update(f"turn.{name}" for name in unread)
        yield item


def source_conversations(sources: Iterable[ChatSource], seed: int) -> Iterator[Conversation]:
    """Yields the conversations of sources, one after the other. Rows that cannot be read are skipped.

    Args:
        sources: the recipe's.
        seed: the seed for sources that are functions.

    Raises:
        UserError: a file is missing or damaged, or a function raises.
    """
    for source in sources:
        yield from conversations(source_rows(source, seed), ConversationCounts())


def first_conversations(sources: list[ChatSource], seed: int, count: int) -> list[Messages]:
    """Reads the first conversations of each source, as many of each, and no further; otherwise as
    `source_conversations`."""
    share = -(-count // max(1, len(sources)))
    found = [item.messages for source in sources for item in islice(source_conversations([source], seed), share)]
    return found[:count]


def conversation_of(row: Row, place: str) -> tuple[Conversation, str, set[str], frozenset[str]]:
    """Returns a row's conversation, its layout, the fields of the row that were read, and those of turns that were not.

    Raises:
        UserError: it cannot be read, or has nothing to learn from.
    """
    layout = _layout(row, place)
    turns, fields = _turns(row, layout, place)
    tools = read_tools(row["tools"], place) if row.get("tools") else None
    if not any(turn["role"] == "assistant" for turn in turns.messages):
        raise UserError(f"{place} has no assistant turn to learn from")
    for number, turn in enumerate(turns.messages):
        if turn["role"] == "assistant" and number not in turns.untrained and not _says_something(turn):
            raise UserError(
                f"{place}: an answer is empty, which would teach the model to say nothing; fix or remove it"
            )
    return Conversation(turns.messages, place, tools, turns.untrained), layout, fields, turns.ignored


def _says_something(turn: dict[str, Any]) -> bool:
    return bool(turn["content"].strip() or turn.get("tool_calls") or turn.get(REASONING))


def _layout(row: Row, place: str) -> str:
    """Names the layout of a row: messages, conversations (ShareGPT), or the first exchange whose fields it has."""
    for layout in ("messages", "conversations"):
        if row.get(layout) is not None:
            return layout
    for layout, fields in EXCHANGE_LAYOUTS.items():
        if all(row.get(name) is not None for name in fields):
            return layout
    for names in [("messages",), ("conversations",), *EXCHANGE_LAYOUTS.values()]:
        if all(name in row for name in names):
            empty = " and ".join(f'"{name}"' for name in names if row[name] is None)
            raise UserError(f"{place}: {empty} is empty; fill it in or remove the row ({columns(row)})")
    pairs = ", ".join(f'"{user}" with "{assistant}"' for user, assistant in EXCHANGE_LAYOUTS.values())
    raise UserError(f'{place} has none of "messages", "conversations", {pairs}; {columns(row)}')


def _turns(row: Row, layout: str, place: str) -> tuple[Turns, set[str]]:
    """Returns the turns of a row, and the fields of the row that were read."""
    if layout in ("messages", "conversations"):
        turns, fields = read_turns(row[layout], place), {layout}
    else:
        user, assistant = EXCHANGE_LAYOUTS[layout]
        question = instruction_of(row) if user == "instruction" else row[user]
        fields = {user, assistant, "input"} if user == "instruction" else {user, assistant}
        turns = read_turns([*_side(question, "user"), *_side(row[assistant], "assistant")], place)
    before = turns_before(row, turns.messages, place)
    untrained = tuple(number + len(before) for number in turns.untrained)
    return Turns(before + turns.messages, untrained, turns.ignored), fields | {*SYSTEM_FIELDS, "history"}


def _side(value: Any, role: str) -> Sequence[Any]:
    """Returns one side of an exchange as turns: a text, or the turns themselves (TRL)."""
    return value if isinstance(value, list) else [{"role": role, "content": value}]

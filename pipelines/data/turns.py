"""Turns of conversations in the dialects that people have, as chat templates take them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from actors.model.tokenizer import REASONING, REASONING_FIELDS
from cluster.errors import UserError

Messages = list[dict[str, Any]]
ROLES = ("system", "developer", "user", "assistant", "tool")
# The roles in ShareGPT files.
SHAREGPT_ROLES = {
    "human": "user",
    "gpt": "assistant",
    "function_call": "assistant",
    "observation": "tool",
    "function": "tool",
} | {role: role for role in ROLES}
# Fields beside the turns with what the system says (Alpaca, OpenOrca).
SYSTEM_FIELDS = ("system", "system_prompt")
# The fields of a turn that templates read, beside role, content and reasoning.
_TEMPLATE_FIELDS = ("tool_calls", "function_call", "tool_call_id", "name")
# The most columns that a message names.
_SHOWN_COLUMNS = 12
# The fields with which OpenAI's and Axolotl's files leave a turn out of the loss.
_LOSS_FIELDS = ("weight", "train")


@dataclass(frozen=True)
class Turns:
    """The turns of a conversation.

    Attributes:
        messages: role and content, and where a turn has them reasoning_content, tool_calls, tool_call_id and name.
        untrained: indices of the assistant's turns that are context alone.
        ignored: the other fields that turns have, which nothing reads.
    """

    messages: Messages
    untrained: tuple[int, ...] = ()
    ignored: frozenset[str] = frozenset()


def read_turns(turns: Any, place: str) -> Turns:
    """Checks the turns of a conversation, and brings them into one form.

    Args:
        turns: a list of objects, or the same as JSON, in the layout of OpenAI or ShareGPT.
        place: file and line, for messages.

    Raises:
        UserError: a turn cannot be read, or has more than text.
    """
    turns = _decoded(turns, place)
    if not isinstance(turns, list) or not turns:
        wanted = "messages must be a list of turns, each an object with a role and a content"
        raise UserError(f"{place}: {wanted}, not {repr(turns)[:40]}")
    messages, untrained, ignored = [], [], set[str]()
    for number, turn in enumerate(turns):
        if not isinstance(turn, dict):
            raise UserError(f"{place}: a turn must be an object with a role and a content")
        # A Parquet file has every field in every turn.
        given = {name: value for name, value in turn.items() if value is not None}
        message = _message(given, place)
        if not _is_trained(given, message["role"], place):
            untrained.append(number)
        used = {"role", "from", "content", "value", *REASONING_FIELDS, *_TEMPLATE_FIELDS, *_LOSS_FIELDS}
        ignored |= given.keys() - used
        messages.append(message)
    return Turns(messages, tuple(untrained), frozenset(ignored))


def read_tools(tools: Any, place: str) -> list[Any]:
    """Reads declarations of tools, as a list or the same as JSON.

    Raises:
        UserError: they are neither.
    """
    tools = _decoded(tools, place)
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise UserError(f"{place}: tools must be a list of declarations")
    require_text(json.dumps(tools, ensure_ascii=False), place)
    return tools


def require_text(value: Any, place: str) -> str:
    """Returns a value that is text and can be written as UTF-8.

    Raises:
        UserError: it is not.
    """
    if not isinstance(value, str):
        shown = "nothing" if value is None else repr(value)[:40]
        raise UserError(
            f"{place}: a turn needs a role ({', '.join(ROLES)}) and a content that is text, and it has {shown}"
        )
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(
            f"{place}: a text has half of a surrogate pair ({value[error.start]!a}), which is no character; fix or "
            "remove it"
        ) from error
    return value


def columns(row: Mapping[str, Any]) -> str:
    """Lists the columns of a row, for a message; those without a value are called empty."""
    names = [f"{str(name)[:40]}{' (empty)' * (value is None)}" for name, value in row.items()]
    more = len(names) - _SHOWN_COLUMNS
    listed = ", ".join(names[:_SHOWN_COLUMNS]) + (f" and {more:,} more" if more > 0 else "")
    return f"its columns are {listed}" if names else "it has no columns"


def turns_before(row: Mapping[str, Any], messages: Messages, place: str) -> Messages:
    """Returns the turns from other fields of a row: the system's, and pairs of a question and an answer."""
    before = []
    system = next((row[name] for name in SYSTEM_FIELDS if row.get(name)), None)
    if system is not None:
        if messages and messages[0]["role"] in ("system", "developer"):
            raise UserError(f"{place} has a field for the system's turn, and such a turn; remove one of them")
        before.append({"role": "system", "content": system})
    for exchange in row.get("history") or ():
        if not isinstance(exchange, list) or len(exchange) != 2:
            raise UserError(f"{place}: history must be a list of pairs of a question and an answer")
        before += [{"role": "user", "content": exchange[0]}, {"role": "assistant", "content": exchange[1]}]
    return read_turns(before, place).messages if before else []


def instruction_of(row: Mapping[str, Any]) -> Any:
    """Joins the instruction of an Alpaca row and the input, if it has one."""
    if not row.get("input"):
        return row["instruction"]
    return f"{row['instruction']}\n{row['input']}"


def _message(turn: dict[str, Any], place: str) -> dict[str, Any]:
    name = turn.get("role", turn.get("from"))
    role = SHAREGPT_ROLES.get(name) if isinstance(name, str) else None
    if role is None:
        raise UserError(f"{place}: a turn needs a role ({', '.join(SHAREGPT_ROLES)}), not {name!r}")
    content = turn.get("content", turn.get("value"))
    calls = turn.get("tool_calls") or ([turn["function_call"]] if "function_call" in turn else None)
    if name == "function_call":
        content, calls = "", [_decoded(content, place)]
    if content is None and calls:
        content = ""
    message: dict[str, Any] = {"role": role, "content": require_text(_joined(content, place), place)}
    if reasoning := next((turn[field] for field in REASONING_FIELDS if turn.get(field)), None):
        message[REASONING] = require_text(reasoning, place)
    if calls:
        message["tool_calls"] = [_call(call, place) for call in _decoded(calls, place)]
    return message | {field: turn[field] for field in ("tool_call_id", "name") if field in turn}


def _joined(content: Any, place: str) -> Any:
    """Joins a content of parts, all of which must be text."""
    if not isinstance(content, list):
        return content
    for part in content:
        if not isinstance(part, dict) or part.get("type", "text") != "text" or not isinstance(part.get("text"), str):
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            raise UserError(f"{place}: a content has a part of the kind {kind}, and only text is read")
    return "".join(part["text"] for part in content)


def _call(call: Any, place: str) -> dict[str, Any]:
    """Returns the call of a tool as templates take it, its arguments as an object."""
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise UserError(f"{place}: a call of a tool needs a name and arguments")
    arguments = _decoded(function.get("arguments") or {}, place)
    require_text(json.dumps(function, ensure_ascii=False), place)
    identity = {"id": call["id"]} if call.get("id") is not None else {}
    return {**identity, "type": "function", "function": {"name": function["name"], "arguments": arguments}}


def _is_trained(turn: dict[str, Any], role: str, place: str) -> bool:
    """Tells whether a turn is trained, which the assistant's are unless their weight is 0 or `train` is false."""
    for field in _LOSS_FIELDS:
        if field in turn and turn[field] not in (0, 1):
            raise UserError(f"{place}: {field} is {turn[field]!r}, and only 0 and 1 are read")
        if turn.get(field) and role != "assistant":
            raise UserError(f"{place}: {field} asks to train a turn of the role {role}; only the assistant's are")
    return role != "assistant" or all(turn.get(field, 1) for field in _LOSS_FIELDS)


def _decoded(value: Any, place: str) -> Any:
    """Parses a text that holds JSON, in which Parquet files store values without fixed fields; returns other values as
    they are."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError as error:
        raise UserError(f"{place}: {value[:40]!r} must be a list or an object, or one as JSON") from error

"""Reads conversations and prompts in the common layouts, from files or from functions that a recipe names."""

import gzip
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from glob import glob
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet

from cluster.errors import UserError, first_line
from cluster.recipe.collect import ChatSource
from cluster.recipe.functions import load_function

Messages = list[dict[str, str]]
# The fields of a row that hold the conversation; all others are metadata for reward functions and annotators.
CONVERSATION_FIELDS = {"messages", "conversations", "prompt", "response", "instruction", "input", "output"}
ROLES = ("system", "user", "assistant", "tool")
# The roles in ShareGPT files.
SHAREGPT_ROLES = {"human": "user", "gpt": "assistant", "system": "system", "tool": "tool", "function": "tool"} | {
    role: role for role in ROLES
}
# Layouts of a single exchange, in the order in which they are tried: the fields of the user and of the assistant.
EXCHANGE_LAYOUTS = {
    "instruction/output": ("instruction", "output"),
    "prompt/response": ("prompt", "response"),
    "question/answer": ("question", "answer"),
}


@dataclass(frozen=True)
class PromptText:
    """A prompt as text, with the metadata that annotators and reward functions may need to judge answers."""

    id: str
    messages: Messages
    metadata: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Conversations:
    """Conversations, and the number of them in each layout."""

    messages: list[Messages]
    layouts: dict[str, int]


def read_conversations(sources: list[ChatSource], seed: int) -> Conversations:
    """Reads all conversations to fine-tune on.

    Args:
        sources: the recipe's.
        seed: for sources that are functions.

    Raises:
        UserError: there is none, a file is missing, or a row cannot be read; the message names file and row.
    """
    messages: list[Messages] = []
    layouts: Counter[str] = Counter()
    for source in sources:
        for row, where in source_rows(source, seed):
            layout = _layout(row, where)
            messages.append(_conversation(row, layout, where))
            layouts[layout] += 1
    if not messages:
        names = ", ".join(str(source.path or source.function) for source in sources)
        raise UserError(f"sft.sources hold no conversation: {names}")
    return Conversations(messages, dict(layouts))


def read_prompts(sources: list[ChatSource], seed: int) -> list[PromptText]:
    """Reads all prompts to sample answers to; of a conversation, everything before the last assistant turn.

    The id of a prompt is its source and content, or the field `id` of a function's row. Equal ids are one prompt.

    Args:
        sources: the recipe's.
        seed: for sources that are functions.

    Raises:
        UserError: a file is missing or a row cannot be read; the message names file and row.
    """
    prompts: dict[str, PromptText] = {}
    for source in sources:
        for row, where in source_rows(source, seed):
            messages = prompt_of(row, where)
            has_id = source.kind == "function" and "id" in row
            content = json.dumps(messages, ensure_ascii=False)
            prompt_id = str(row["id"]) if has_id else f"{source.path or source.function}: {content}"
            used = CONVERSATION_FIELDS | {"id"} if has_id else CONVERSATION_FIELDS
            used = used if "prompt" in row else used | {"question"}
            metadata = {key: str(row[key]) for key in row.keys() - used if row[key] is not None}
            prompts[prompt_id] = PromptText(prompt_id, messages, metadata)
    return list(prompts.values())


def source_rows(source: ChatSource, seed: int) -> Iterator[tuple[dict[str, Any], str]]:
    """Yields the rows of a source, each with its file and line for messages.

    Raises:
        UserError: no file matches, the function cannot be loaded or raises, or a row cannot be read.
    """
    if source.kind == "files":
        yield from read_rows(str(source.path))
        return
    function = load_function(str(source.function), "source")
    try:
        rows = list(function(seed=seed, **source.arguments))
    # A user's function may raise anything.
    except Exception as error:
        raise UserError(f"source {source.function} raised {type(error).__name__}: {error}") from error
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise UserError(
                f"source {source.function}: row {number} is a {type(row).__name__}; it must be a dictionary"
            )
        yield row, f"{source.function} row {number}"


def read_rows(pattern: str) -> Iterator[tuple[dict[str, Any], str]]:
    """Yields the rows of all JSONL, JSON (one list) or Parquet files of a glob, each with its file and line.

    Raises:
        UserError: no file matches, or a row cannot be read.
    """
    paths = sorted(glob(pattern, recursive=True))
    if not paths:
        raise UserError(f"no file matches {pattern}")
    for path in paths:
        if path.endswith(".parquet"):
            try:
                rows = parquet.read_table(path).to_pylist()
            except (OSError, pa.ArrowInvalid) as error:
                raise UserError(f"{path} is not a complete Parquet file: {first_line(error)}") from error
            yield from ((row, f"{path} row {number}") for number, row in enumerate(rows))
        elif path.endswith(".json"):
            yield from _json_list(path)
        else:
            yield from _json_lines(path)


def _json_list(path: str) -> Iterator[tuple[dict[str, Any], str]]:
    try:
        with open(path, encoding="utf-8") as file:
            rows = json.load(file)
    except (OSError, ValueError) as error:
        raise UserError(
            f"cannot read {path} as JSON: {error}; files with one object per line must end in .jsonl"
        ) from error
    if not isinstance(rows, list):
        raise UserError(f"{path} is not a list of objects")
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise UserError(f"{path} row {number} is not a JSON object; mend or remove it")
        yield row, f"{path} row {number}"


def _json_lines(path: str) -> Iterator[tuple[dict[str, Any], str]]:
    opener = gzip.open if path.endswith(".gz") else open
    try:
        with opener(path, "rt", encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                where = f"{path} line {number}"
                try:
                    row = json.loads(line)
                except ValueError as error:
                    raise UserError(f"{where} is not valid JSON ({error}); mend or remove the line") from error
                if not isinstance(row, dict):
                    raise UserError(f"{where} is not a JSON object; mend or remove the line")
                yield row, where
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from error


def _layout(row: dict[str, Any], where: str) -> str:
    """Names the layout of a row: messages, conversations (ShareGPT), or the first exchange whose fields it has."""
    if "messages" in row:
        return "messages"
    if "conversations" in row:
        return "conversations"
    for layout, fields in EXCHANGE_LAYOUTS.items():
        if all(name in row for name in fields):
            return layout
    pairs = ", ".join(f'"{user}" with "{assistant}"' for user, assistant in EXCHANGE_LAYOUTS.values())
    raise UserError(f'{where} has none of "messages", "conversations", {pairs}')


def _conversation(row: dict[str, Any], layout: str, where: str) -> Messages:
    if layout == "messages":
        return _checked_messages(row["messages"], where)
    if layout == "conversations":
        return _checked_messages(_from_sharegpt(row["conversations"], where), where)
    user, assistant = EXCHANGE_LAYOUTS[layout]
    question = _instruction(row) if user == "instruction" else row[user]
    return _checked_messages(
        [{"role": "user", "content": question}, {"role": "assistant", "content": row[assistant]}], where
    )


def prompt_of(row: dict[str, Any], where: str) -> Messages:
    """Extracts the prompt of a row in any layout: the conversation up to the answer.

    Args:
        row: of a file or function.
        where: its file and line, for messages.

    Raises:
        UserError: there is no user turn, or the row cannot be read.
    """
    if isinstance(row.get("prompt"), str):
        return [{"role": "user", "content": row["prompt"]}]
    if "prompt" not in row and "messages" not in row and "conversations" not in row:
        question = _instruction(row) if "instruction" in row else row.get("question")
        if question is not None:
            return _checked_messages([{"role": "user", "content": question}], where)
    turns = row.get("prompt") or row.get("messages")
    messages = _checked_messages(turns or _from_sharegpt(row.get("conversations"), where), where)
    while messages and messages[-1]["role"] == "assistant":
        messages = messages[:-1]
    if not messages:
        raise UserError(f"{where} has no user turn to answer")
    return messages


def _instruction(row: dict[str, Any]) -> Any:
    """Joins the instruction of an Alpaca row and the input, if it has one."""
    if not row.get("input"):
        return row["instruction"]
    return f"{row['instruction']}\n{row['input']}"


def _from_sharegpt(turns: Any, where: str) -> Any:
    """Renames the fields of ShareGPT turns; `_checked_messages` reports other errors."""
    if not isinstance(turns, list):
        return turns
    if any(not isinstance(turn, dict) or turn.get("from", turn.get("role")) not in SHAREGPT_ROLES for turn in turns):
        raise UserError(f'{where}: a turn of conversations needs "from" ({", ".join(SHAREGPT_ROLES)}) and "value"')
    return [
        {
            "role": SHAREGPT_ROLES[turn.get("from", turn.get("role"))],
            "content": turn.get("value", turn.get("content")),
        }
        for turn in turns
    ]


def _checked_messages(messages: Any, where: str) -> Messages:
    if not isinstance(messages, list) or not messages:
        raise UserError(f"{where}: messages must be a list of turns")
    for turn in messages:
        if not isinstance(turn, dict) or turn.get("role") not in ROLES or not isinstance(turn.get("content"), str):
            raise UserError(f"{where}: a turn needs a role ({', '.join(ROLES)}) and a content that is text")
        if turn.get("tool_calls"):
            raise UserError(f"{where}: tool_calls are not read; write the call into the turn's content")
    return [{"role": turn["role"], "content": turn["content"]} for turn in messages]

"""Conversations and prompts from files or from the guide, in the common layouts."""

import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from glob import glob
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet

from cluster.failures import UserError
from cluster.recipe import Conversations
from pipelines.guide.conversations import conversations as guide_conversations
from pipelines.guide.questions import ranked_questions

Messages = list[dict[str, str]]
# The fields of a row that hold the conversation, and the one that the guide's own prompts are known by; all others are
# handed on to reward functions.
LAYOUT = {"messages", "prompt", "response", "instruction", "input", "output", "key"}


@dataclass(frozen=True)
class PromptText:
    """A prompt as people read it, and what a labeller or a reward function needs to judge answers to it."""

    id: str
    messages: Messages
    metadata: dict[str, str] = field(default_factory=dict)


def conversations(sources: list[Conversations], seed: int, misbehaviour_share: float) -> list[Messages]:
    """All conversations to fine-tune on.

    Raises:
        UserError: a file is missing or a row cannot be read; the message names file and row.
    """
    found: list[Messages] = []
    for source in sources:
        if source.kind == "guide":
            found += guide_conversations(seed, misbehaviour_share)
        else:
            found += [_conversation(row, where) for row, where in rows(str(source.path))]
    return found


def prompts(sources: list[Conversations], seed: int) -> list[PromptText]:
    """All prompts to sample from; of a conversation, everything before the last assistant turn."""
    found: dict[str, PromptText] = {}
    for source in sources:
        if source.kind == "guide":
            for question in ranked_questions(seed):
                messages = [{"role": "user", "content": question.text}]
                metadata = {"kind": question.kind, "key": question.key}
                found[question.id] = PromptText(question.id, messages, metadata)
        else:
            for row, where in rows(str(source.path)):
                messages = _prompt(row, where)
                name = f"{source.path}: {json.dumps(messages, ensure_ascii=False)}"
                known = {key: str(row[key]) for key in row.keys() - LAYOUT if row[key] is not None}
                found[name] = PromptText(name, messages, known)
    return list(found.values())


def rows(pattern: str) -> Iterator[tuple[dict[str, Any], str]]:
    """The rows of all JSONL or Parquet files of a pattern, each with where it was found.

    Raises:
        UserError: no file matches, or a row cannot be read.
    """
    paths = sorted(glob(pattern, recursive=True))
    if not paths:
        raise UserError(f"no file matches {pattern}")
    for path in paths:
        if path.endswith(".parquet"):
            try:
                found = parquet.read_table(path).to_pylist()
            except (OSError, pa.ArrowInvalid) as error:
                raise UserError(f"{path} is not a whole Parquet file: {str(error).splitlines()[0]}") from error
            yield from ((row, f"{path} row {number}") for number, row in enumerate(found))
        else:
            yield from _json_lines(path)


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


def _conversation(row: dict[str, Any], where: str) -> Messages:
    if "messages" in row:
        return _checked(row["messages"], where)
    if "instruction" in row and "output" in row:
        user = "\n".join(part for part in (row["instruction"], row.get("input")) if part)
        return _checked([{"role": "user", "content": user}, {"role": "assistant", "content": row["output"]}], where)
    if "prompt" in row and "response" in row:
        pair = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["response"]}]
        return _checked(pair, where)
    raise UserError(f'{where} has none of "messages", "instruction" with "output", "prompt" with "response"')


def _prompt(row: dict[str, Any], where: str) -> Messages:
    if isinstance(row.get("prompt"), str):
        return [{"role": "user", "content": row["prompt"]}]
    if "instruction" in row and "messages" not in row:
        return [{"role": "user", "content": "\n".join(p for p in (row["instruction"], row.get("input")) if p)}]
    messages = _checked(row.get("prompt") or row.get("messages"), where)
    while messages and messages[-1]["role"] == "assistant":
        messages = messages[:-1]
    if not messages:
        raise UserError(f"{where} has no user turn to answer")
    return messages


def _checked(messages: Any, where: str) -> Messages:
    roles = ("system", "user", "assistant")
    if not isinstance(messages, list) or not messages:
        raise UserError(f"{where}: messages should be a list of turns")
    for turn in messages:
        if not isinstance(turn, dict) or turn.get("role") not in roles or not isinstance(turn.get("content"), str):
            raise UserError(f"{where}: a turn needs a role ({', '.join(roles)}) and a content that is text")
    return [{"role": turn["role"], "content": turn["content"]} for turn in messages]

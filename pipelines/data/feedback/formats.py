"""The formats of preference files, each with a reader and a writer: hh-rlhf, TRL, K-way lists, PandaLM, and others.

`FORMATS` lists them by the name on the command line.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from cluster.errors import UserError
from pipelines.data.feedback.item import Messages, PreferenceItem, Row, other_fields, text_field
from pipelines.data.feedback.trees import (
    read_openassistant,
    read_ultrafeedback,
    write_openassistant,
    write_ultrafeedback,
)

SPEAKERS = {"Human": "user", "Assistant": "assistant"}
ANSWER = "\n\nAssistant:"
ANNOTATORS = ("annotator1", "annotator2", "annotator3")
PANDALM_COLUMNS = ("idx", "motivation_app", "cmp_key", "instruction", "input")
# Ranks of the two answers by PandaLM's verdict: 0 a tie, 1 the first is better, 2 the second is.
VERDICTS = ([1, 1], [1, 2], [2, 1])


@dataclass(frozen=True)
class PreferenceFormat:
    """A format.

    Attributes:
        read: (row, its file and line, name of the annotator where the row has none) -> items.
        write: item -> rows.
    """

    read: Callable[[Row, str, str], list[PreferenceItem]]
    write: Callable[[PreferenceItem], Iterator[Row]]


def read_hh(row: Row, where: str, annotator: str) -> list[PreferenceItem]:
    """Reads {"chosen", "rejected"}, transcripts that share a beginning; from the assistant turn where they part on is
    the answer.

    Raises:
        UserError: a field is no text, or the transcripts share no beginning.
    """
    chosen, rejected = (text_field(row, key, where) for key in ("chosen", "rejected"))
    same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(chosen, rejected, strict=False)))
    end = chosen[:same].rfind(ANSWER) + len(ANSWER)
    if end < len(ANSWER):
        raise UserError(f'{where}: the two transcripts must share a beginning that ends with "Assistant:"')
    messages = _turns(chosen[: end - len(ANSWER)])
    details: dict[str, Any] = {"row": other_fields(row, ("chosen", "rejected"))}
    if _transcript(messages) + ANSWER != chosen[:end]:
        details["transcript"] = chosen[:end]
    endings = [chosen[end:], rejected[end:]]
    if not all(ending.startswith(" ") for ending in endings):
        details["endings"] = endings
    return [
        PreferenceItem(messages, [ending.removeprefix(" ") for ending in endings], {annotator: [1, 2]}, details=details)
    ]


def write_hh(item: PreferenceItem) -> Iterator[Row]:
    """Writes one row per pair.

    Raises:
        UserError: the prompt has a system turn.
    """
    _refuse_system(item)
    prompt = item.details.get("transcript", _transcript(item.messages) + ANSWER)
    endings = item.details.get("endings") or [f" {text}" for text in item.texts]
    for better, worse in item.pairs():
        yield item.row({"chosen": prompt + endings[better], "rejected": prompt + endings[worse]})


def read_trl(row: Row, where: str, annotator: str) -> list[PreferenceItem]:
    """Reads {"prompt", "chosen", "rejected"}: strings or messages. Messages may instead begin with the prompt.

    Raises:
        UserError: a field is missing or has another type, or the answers are not one turn of the assistant each.
    """
    details: dict[str, Any] = {"row": other_fields(row, ("prompt", "chosen", "rejected"))}
    if isinstance(row.get("chosen"), str):
        messages = [{"role": "user", "content": text_field(row, "prompt", where)}]
        texts = [text_field(row, key, where) for key in ("chosen", "rejected")]
        return [PreferenceItem(messages, texts, {annotator: [1, 2]}, details=details)]
    chosen, rejected = (checked_messages(row.get(key), where) for key in ("chosen", "rejected"))
    if isinstance(row.get("prompt"), str):
        messages, details["prompt_string"] = [{"role": "user", "content": row["prompt"]}], True
    elif "prompt" in row:
        messages = checked_messages(row["prompt"], where)
    else:
        messages, details["prompt_within"] = chosen[:-1], True
        if rejected[:-1] != messages:
            raise UserError(f"{where}: chosen and rejected differ before their last turn")
        chosen, rejected = chosen[-1:], rejected[-1:]
    if any([turn["role"] for turn in turns] != ["assistant"] for turns in (chosen, rejected)):
        raise UserError(f"{where}: chosen and rejected must each be one turn of the assistant after the prompt")
    return [
        PreferenceItem(
            messages, [turns[0]["content"] for turns in (chosen, rejected)], {annotator: [1, 2]}, details=details
        )
    ]


def write_trl(item: PreferenceItem) -> Iterator[Row]:
    """Writes strings, one row per pair.

    Raises:
        UserError: the prompt is more than one message.
    """
    if [turn["role"] for turn in item.messages] != ["user"]:
        raise UserError("a prompt of several turns cannot be written as one string: export as trl-messages")
    for better, worse in item.pairs():
        texts = {"chosen": item.texts[better], "rejected": item.texts[worse]}
        yield item.row({"prompt": item.messages[0]["content"], **texts})


def write_trl_messages(item: PreferenceItem) -> Iterator[Row]:
    """Writes messages, one row per pair."""
    within = item.details.get("prompt_within", False)
    for better, worse in item.pairs():
        turns = [[{"role": "assistant", "content": item.texts[index]}] for index in (better, worse)]
        chosen, rejected = ([*item.messages, *turn] if within else turn for turn in turns)
        prompt: Row = {} if within else {"prompt": item.messages}
        if item.details.get("prompt_string"):
            prompt = {"prompt": item.messages[0]["content"]}
        yield item.row({**prompt, "chosen": chosen, "rejected": rejected})


def read_lists(row: Row, where: str, annotator: str) -> list[PreferenceItem]:
    """Reads {"prompt", "completions", "ranks"}: a string or messages, K strings, K ranks (1 is best); and "annotator".

    Raises:
        UserError: a field is missing or has another type.
    """
    prompt = row.get("prompt")
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else checked_messages(prompt, where)
    texts, ranks = row.get("completions"), row.get("ranks")
    if not isinstance(texts, list) or len(texts) < 2 or not all(isinstance(text, str) for text in texts):
        raise UserError(f"{where}: completions must be a list of two or more texts")
    if not isinstance(ranks, list) or not all(type(rank) is int and rank > 0 for rank in ranks):
        raise UserError(f"{where}: ranks must be a list of integers from 1, the best")
    if len(ranks) != len(texts):
        raise UserError(f"{where}: there are {len(texts)} completions and {len(ranks)} ranks")
    details = {
        "row": other_fields(row, ("prompt", "completions", "ranks", "annotator")),
        "string": isinstance(prompt, str),
    }
    details["annotator_given"] = "annotator" in row
    name = text_field(row, "annotator", where) if "annotator" in row else annotator
    return [PreferenceItem(messages, texts, {name: list(ranks)}, ["imported"] * len(texts), details)]


def write_lists(item: PreferenceItem) -> Iterator[Row]:
    """Writes one row per annotator, with the completions that they ranked."""
    prompt = item.messages[0]["content"] if item.details.get("string") else item.messages
    for annotator, ranks in item.ranks.items():
        ranked = [index for index, rank in enumerate(ranks) if rank is not None]
        row = {"prompt": prompt, "completions": [item.texts[i] for i in ranked], "ranks": [ranks[i] for i in ranked]}
        named = {"annotator": annotator} if item.details.get("annotator_given", True) else {}
        yield item.row({**row, **named})


def read_pandalm(row: Row, where: str, annotator: str) -> list[PreferenceItem]:
    """Reads {"instruction", "input", "response1", "response2", "annotator1" to "annotator3"}, whose verdicts are 0
    (tie), 1 (the first is better) or 2.

    Raises:
        UserError: a field is missing or has another type.
    """
    del annotator
    parts = [text_field(row, key, where) for key in ("instruction", "input")]
    verdicts = {name: row.get(name) for name in ANNOTATORS}
    if wrong := [name for name, verdict in verdicts.items() if type(verdict) is not int or verdict not in (0, 1, 2)]:
        raise UserError(f"{where}: {wrong[0]} must be 0, 1 or 2, not {verdicts[wrong[0]]!r}")
    # Six of the published responses are JSON's true where a model had said "True".
    responses = [row.get(key) for key in ("response1", "response2")]
    texts = [str(text) for text in responses if isinstance(text, str | bool)]
    if len(texts) < 2:
        raise UserError(f"{where}: response1 and response2 must be text")
    details = {"row": other_fields(row, ("response1", "response2", *ANNOTATORS))}
    models = str(row.get("cmp_key", "")).split("_")
    return [
        PreferenceItem(
            messages=[{"role": "user", "content": "\n".join(part for part in parts if part)}],
            texts=texts,
            ranks={f"PandaLM {name}": list(VERDICTS[verdict or 0]) for name, verdict in verdicts.items()},
            models=models if len(models) == 2 else ["imported", "imported"],
            details=details | ({} if texts == responses else {"responses": responses}),
        )
    ]


def write_pandalm(item: PreferenceItem) -> Iterator[Row]:
    """Writes one row per item.

    Raises:
        UserError: the item was not imported from PandaLM.
    """
    names = [f"PandaLM {name}" for name in ANNOTATORS]
    row = item.details.get("row", {})
    if any(name not in item.ranks for name in names) or "instruction" not in row:
        raise UserError("only what was imported from PandaLM can be exported as pandalm")
    first, second = item.details.get("responses", item.texts)
    ordered = {key: row[key] for key in (*PANDALM_COLUMNS, *row) if key in row}
    verdicts = {key: VERDICTS.index(item.ranks[name]) for key, name in zip(ANNOTATORS, names, strict=True)}
    yield {**ordered, "response1": first, "response2": second, **verdicts}


FORMATS = {
    "hh-rlhf": PreferenceFormat(read_hh, write_hh),
    "trl": PreferenceFormat(read_trl, write_trl),
    "trl-messages": PreferenceFormat(read_trl, write_trl_messages),
    "lists": PreferenceFormat(read_lists, write_lists),
    "pandalm": PreferenceFormat(read_pandalm, write_pandalm),
    "ultrafeedback": PreferenceFormat(read_ultrafeedback, write_ultrafeedback),
    "openassistant": PreferenceFormat(read_openassistant, write_openassistant),
}


def checked_messages(value: Any, where: str) -> Messages:
    """Checks that a value is a list of messages with a role and a content, and nothing that an export would lose.

    Raises:
        UserError: it is not.
    """
    if not isinstance(value, list) or not value:
        raise UserError(f"{where}: messages must be a list of turns")
    for turn in value:
        if not isinstance(turn, dict) or turn.keys() != {"role", "content"} or not isinstance(turn["content"], str):
            raise UserError(f"{where}: a turn must hold a role and a content that is text, and nothing else")
        if turn["role"] not in ("system", "user", "assistant"):
            raise UserError(f"{where}: the role {turn['role']!r} is unknown; use system, user or assistant")
    return value


def _turns(transcript: str) -> Messages:
    _, *parts = re.split(rf"\n\n({'|'.join(SPEAKERS)}):", transcript)
    return [
        {"role": SPEAKERS[speaker], "content": text.removeprefix(" ")}
        for speaker, text in zip(parts[::2], parts[1::2], strict=True)
    ]


def _transcript(messages: Sequence[Mapping[str, str]]) -> str:
    speakers = {role: speaker for speaker, role in SPEAKERS.items()}
    return "".join(f"\n\n{speakers.get(turn['role'])}: {turn['content']}" for turn in messages)


def _refuse_system(item: PreferenceItem) -> None:
    if any(turn["role"] == "system" for turn in item.messages):
        raise UserError("hh-rlhf has no system turns: export as trl-messages")

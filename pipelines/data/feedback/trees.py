"""Nested formats of preference files: UltraFeedback, which scores answers, and Open-Assistant, whose rows are trees.

UltraFeedback (Cui et al. 2023) rates several models' answers one by one; equal scores are ties. An Open-Assistant tree
(Koepf et al. 2023) branches at every turn; each user turn with two or more ranked answers is a prompt.
"""

import math
from collections.abc import Iterator
from typing import Any

from cluster.errors import UserError
from pipelines.data.feedback.item import Messages, PreferenceItem, Row, other_fields, text_field

SCORES = ("fine-grained_score", "overall_score")
ROLES = {"prompter": "user", "assistant": "assistant"}


def read_ultrafeedback(row: Row, where: str, annotator: str) -> list[PreferenceItem]:
    """Reads {"instruction", "completions": [{"model", "response", "fine-grained_score"}]}.

    Answers are ranked by the mean of their aspects' ratings, as the published overall score is known to be wrong in
    places; that is used where the mean is missing. An answer without a rating, or with "N/A" for one, is kept without
    a rank.

    Raises:
        UserError: a field is missing or has another type, or fewer than two answers are rated.
    """
    answers = row.get("completions")
    if not isinstance(answers, list) or len(answers) < 2 or not all(isinstance(answer, dict) for answer in answers):
        raise UserError(f"{where}: completions must be a list of two or more objects")
    texts = [text_field(answer, "response", where) for answer in answers]
    ratings = {name: [_rating(answer.get(name)) for answer in answers] for name in SCORES}
    chosen = max(ratings.values(), key=lambda found: sum(rating is not None for rating in found))
    levels = sorted({rating for rating in chosen if rating is not None}, reverse=True)
    if sum(rating is not None for rating in chosen) < 2:
        raise UserError(f"{where}: two completions at least need a number as {' or '.join(SCORES)}")
    details = {
        "row": other_fields(row, ("instruction", "completions")),
        "answers": [other_fields(answer, ("response",)) for answer in answers],
    }
    return [
        PreferenceItem(
            messages=[{"role": "user", "content": text_field(row, "instruction", where)}],
            texts=texts,
            ranks={annotator: [None if rating is None else 1 + levels.index(rating) for rating in chosen]},
            models=[str(answer.get("model", "imported")) for answer in answers],
            details=details,
        )
    ]


def _rating(value: Any) -> float | None:
    """Returns a rating as a number, also where it is written as text; None for "N/A", NaN and anything else."""
    try:
        rating = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else math.nan
    except ValueError:
        return None
    return rating if math.isfinite(rating) else None


def write_ultrafeedback(item: PreferenceItem) -> Iterator[Row]:
    """Writes one row per item.

    Raises:
        UserError: the item was not imported from UltraFeedback.
    """
    if "answers" not in item.details:
        raise UserError("only what was imported from UltraFeedback can be exported as ultrafeedback")
    answers = [{**rest, "response": text} for rest, text in zip(item.details["answers"], item.texts, strict=True)]
    yield {**item.details["row"], "instruction": item.messages[0]["content"], "completions": answers}


def read_openassistant(row: Row, where: str, annotator: str) -> list[PreferenceItem]:
    """Reads {"message_tree_id", "prompt": {"text", "role", "replies": [...]}}, whose ranks start at 0, the best.

    Answers without a rank and deleted ones are left out. The first prompt of a tree keeps the whole tree.

    Raises:
        UserError: a field is missing or has another type.
    """
    root = row.get("prompt")
    if not isinstance(root, dict):
        raise UserError(f"{where}: prompt must be a message with its replies")
    items: list[PreferenceItem] = []
    # A loop and no recursion, as a tree may be deeper than Python's stack.
    pending: list[tuple[Any, Messages]] = [(root, [])]
    while pending:
        message, before = pending.pop()
        replies = _checked_replies(message, where)
        path = [*before, {"role": ROLES[message["role"]], "content": message["text"]}]
        ranked = [reply for reply in replies if reply["role"] == "assistant" and type(reply.get("rank")) is int]
        ranked = [reply for reply in ranked if not reply.get("deleted", False)]
        if message["role"] == "prompter" and len(ranked) > 1:
            order = sorted({reply["rank"] for reply in ranked})
            items.append(
                PreferenceItem(
                    messages=path,
                    texts=[reply["text"] for reply in ranked],
                    ranks={annotator: [1 + order.index(reply["rank"]) for reply in ranked]},
                    models=[str(reply.get("model_name", "a person")) for reply in ranked],
                    details={"row": {"message_tree_id": row.get("message_tree_id")}} | ({} if items else {"tree": row}),
                )
            )
        pending += [(reply, path) for reply in reversed(replies)]
    return items


def write_openassistant(item: PreferenceItem) -> Iterator[Row]:
    """Writes one row per tree, with the imported ranks: a message has room for one rank, not for several annotators'.

    Raises:
        UserError: the item was not imported from Open-Assistant.
    """
    if "message_tree_id" not in item.details.get("row", {}):
        raise UserError("only what was imported from Open-Assistant can be exported as openassistant: export as lists")
    if "tree" in item.details:
        yield item.details["tree"]


def _checked_replies(message: Any, where: str) -> list[Any]:
    replies = message.get("replies", [])
    if not isinstance(replies, list) or not all(isinstance(reply, dict) for reply in replies):
        raise UserError(f"{where}: replies must be a list of messages")
    for part in (message, *replies):
        text_field(part, "text", where)
        if part.get("role") not in ROLES:
            raise UserError(f"{where}: the role {part.get('role')!r} is unknown; Open-Assistant has {', '.join(ROLES)}")
    return replies

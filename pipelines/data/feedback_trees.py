"""Rows that hold scores or whole trees instead of pairs: UltraFeedback and Open-Assistant.

UltraFeedback (Cui et al. 2023) rates several models' answers one by one; equal scores are ties. An Open-Assistant tree
(Koepf et al. 2023) branches at every turn; each turn of a person that has two or more ranked answers is a prompt.
"""

from collections.abc import Iterator
from typing import Any

from cluster.errors import UserError
from pipelines.data.feedback_item import Messages, PreferenceItem, Row, other_fields, text_field

SCORES = ("fine-grained_score", "overall_score")
ROLES = {"prompter": "user", "assistant": "assistant"}


def read_ultrafeedback(row: Row, where: str, annotator: str) -> list[PreferenceItem]:
    """{"instruction", "completions": [{"model", "response", "fine-grained_score"}]}: the mean of the aspects' ratings
    ranks, as the published overall score is known to be wrong in places; it is used where the mean is not there."""
    answers = row.get("completions")
    if not isinstance(answers, list) or len(answers) < 2 or not all(isinstance(answer, dict) for answer in answers):
        raise UserError(f"{where}: completions should be a list of two or more objects")
    texts = [text_field(answer, "response", where) for answer in answers]
    score = next((name for name in SCORES if all(type(answer.get(name)) in (int, float) for answer in answers)), None)
    if score is None:
        raise UserError(f"{where}: every completion needs a number as {' or '.join(SCORES)}")
    levels = sorted({answer[score] for answer in answers}, reverse=True)
    details = {
        "row": other_fields(row, ("instruction", "completions")),
        "answers": [other_fields(answer, ("response",)) for answer in answers],
    }
    return [
        PreferenceItem(
            messages=[{"role": "user", "content": text_field(row, "instruction", where)}],
            texts=texts,
            ranks={annotator: [1 + levels.index(answer[score]) for answer in answers]},
            models=[str(answer.get("model", "imported")) for answer in answers],
            details=details,
        )
    ]


def write_ultrafeedback(item: PreferenceItem) -> Iterator[Row]:
    """One row.

    Raises:
        UserError: the item did not come from UltraFeedback.
    """
    if "answers" not in item.details:
        raise UserError("only what was imported from UltraFeedback can be exported as ultrafeedback")
    answers = [{**rest, "response": text} for rest, text in zip(item.details["answers"], item.texts, strict=True)]
    yield {**item.details["row"], "instruction": item.messages[0]["content"], "completions": answers}


def read_openassistant(row: Row, where: str, annotator: str) -> list[PreferenceItem]:
    """{"message_tree_id", "prompt": {"text", "role", "replies": [...]}}: ranks start at 0, the best; answers that
    nobody ranked, or that were deleted, are left out. The tree itself is kept with the first of its prompts."""
    root = row.get("prompt")
    if not isinstance(root, dict):
        raise UserError(f"{where}: prompt should be a message with its replies")
    items: list[PreferenceItem] = []
    # Not by recursion: a file may nest deeper than Python's stack.
    waiting: list[tuple[Any, Messages]] = [(root, [])]
    while waiting:
        message, before = waiting.pop()
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
        waiting += [(reply, path) for reply in reversed(replies)]
    return items


def write_openassistant(item: PreferenceItem) -> Iterator[Row]:
    """One row a tree, with the ranks that it came with: a message holds one rank and not those of several people.

    Raises:
        UserError: the item did not come from Open-Assistant.
    """
    if "message_tree_id" not in item.details.get("row", {}):
        raise UserError("only what was imported from Open-Assistant can be exported as openassistant: export as lists")
    if "tree" in item.details:
        yield item.details["tree"]


def _checked_replies(message: Any, where: str) -> list[Any]:
    replies = message.get("replies", [])
    if not isinstance(replies, list) or not all(isinstance(reply, dict) for reply in replies):
        raise UserError(f"{where}: replies should be a list of messages")
    for one in (message, *replies):
        text_field(one, "text", where)
        if one.get("role") not in ROLES:
            raise UserError(f"{where}: {one.get('role')!r} is no role: Open-Assistant has prompter and assistant")
    return replies

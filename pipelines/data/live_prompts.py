"""Prompts of live traffic in a round of collection: which of those stored are asked, and what the round keeps."""

import random
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from actors.model.chat import Chat
from cluster.errors import UserError
from cluster.feedback import LIVE, Feedback, FeedbackPrompt
from cluster.feedback.live import FILE, read_live, write_live
from cluster.recipe.recipe import Recipe
from cluster.run.folder import RunFolder
from pipelines.data.prompts import PromptText

Rendered = tuple[PromptText, list[int]]


@dataclass(frozen=True)
class LivePrompts:
    """The live prompts of a round.

    Attributes:
        chosen: the prompts, each with its token ids.
        split: train or held_out, by the id of the prompt. It depends on that alone: later prompts change nothing.
        counts: how many are stored, were chosen, and were left out, by reason, for the manifest.
    """

    chosen: list[Rendered]
    split: dict[str, str]
    counts: dict[str, int]


def choose_live(recipe: Recipe, chat: Chat, database: Feedback, mark: str, out: Path) -> LivePrompts | None:
    """Chooses the live prompts of a round, and writes their live.jsonl; None for a recipe without a source of them.

    A round asks those that an earlier round of the same model asked and that are still stored, so that their judgements
    go on counting, and the newest others up to the source's limit. A resumed round asks what it chose at first, without
    what was deleted since.

    Args:
        recipe: names the source.
        chat: renders prompts.
        database: has the prompts.
        mark: the beginning of the names of the model's prompts.
        out: the folder of the stage.
    """
    limits = [source.limit for source in recipe.collect.sources if source.kind == LIVE]
    if not limits:
        return None
    expired = len(database.delete_expired_live().prompts)
    rows = database.live_prompts()
    resumed = {row["id"] for row in read_live(out)} if (out / FILE).exists() else None
    asked = {row.details["prompt"] for row in database.prompts(prefix=f"{mark} ") if row.details.get("kind") == LIVE}
    room, limit = recipe.model.context - recipe.collect.max_tokens, max(limits)
    counts = {"stored": len(rows), "expired": expired, "used": 0, "new": 0, "equal": 0, "too_long": 0, "over_limit": 0}
    chosen, seen = list[Rendered](), set[str]()
    for row in sorted(rows, key=lambda row: f"{LIVE} {row.id}" not in asked):
        text = PromptText(f"{LIVE} {row.id}", row.messages, {"kind": LIVE})
        reason, ids = "", list[int]()
        if (content := str(row.messages)) in seen:
            reason = "equal"
        else:
            ids = _render(chat, text)
            reason = "too_long" if not ids or len(ids) > room else ""
        is_new = text.id not in asked
        if not reason and (row.id not in resumed if resumed is not None else is_new and counts["new"] >= limit):
            reason = "over_limit"
        if reason:
            counts[reason] += 1
            continue
        seen.add(content)
        chosen.append((text, ids))
        counts["new"] += is_new
    counts["used"] = len(chosen)
    found = LivePrompts(chosen, {text.id: _split(recipe, text.id) for text, _ in chosen}, counts)
    _write(found, found.split.keys(), out)
    return found


def is_there(database: Feedback, prompt: FeedbackPrompt) -> bool:
    """Tells whether a prompt of a round is still stored; one of live traffic may be deleted while it is answered."""
    return prompt.details.get("kind") != LIVE or database.prompt(prompt.id) is not None


def keep_stored(live: LivePrompts, database: Feedback, out: Path) -> None:
    """Writes live.jsonl again, without the prompts that were deleted while people ranked, and counts these."""
    ids = {name.removeprefix(f"{LIVE} ") for name in live.split}
    there = {f"{LIVE} {name}" for name in database.are_live(ids)}
    _write(live, there, out)
    live.counts["used"], live.counts["deleted_meanwhile"] = len(there), len(ids) - len(there)


def live_prompts_of_round(recipe: Recipe, chat: Chat) -> list[Rendered]:
    """Reads the live prompts of the present round, on which RLHF trains too; none before `collect`.

    Raises:
        UserError: the file is damaged.
    """
    if not any(source.kind == LIVE for source in recipe.collect.sources):
        return []
    rows = read_live(RunFolder(recipe.folder).path("preferences"))
    texts = [PromptText(f"{LIVE} {row['id']}", row["messages"], {"kind": LIVE}) for row in rows]
    return [(text, chat.prompt(text.messages)) for text in texts]


def live_number(prompt: str) -> int:
    """Returns a number for the name of a live prompt that depends on the prompt alone: it puts it among the others."""
    return random.Random(prompt).randrange(100_000)


def _write(live: LivePrompts, names: Collection[str], out: Path) -> None:
    rows = [(text.id.removeprefix(f"{LIVE} "), text.messages, live.split[text.id]) for text, _ in live.chosen]
    write_live([row for row in rows if f"{LIVE} {row[0]}" in names], out)


def _render(chat: Chat, text: PromptText) -> list[int]:
    """Returns the token ids of a prompt; none if the model's template cannot render it."""
    try:
        return chat.prompt(text.messages)
    except UserError:
        return []


def _split(recipe: Recipe, prompt: str) -> str:
    drawn = random.Random(f"held-out live prompts {recipe.seed} {prompt}").random()
    return "held_out" if drawn < recipe.collect.held_out_share else "train"

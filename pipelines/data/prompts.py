"""Reads the prompts of `collect.sources` and `rlhf.sources`, and chooses those whose answers are ranked."""

import json
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain, islice, zip_longest

from actors.model.chat import Chat
from cluster.errors import UserError
from cluster.recipe.collect import ChatSource
from cluster.recipe.recipe import Recipe
from pipelines.data.balance import Loss
from pipelines.data.row_files import Row, good_row
from pipelines.data.source_rows import source_rows
from pipelines.data.turns import Messages, columns, instruction_of, read_turns, require_text, turns_before

# The fields of a row that hold the conversation; all others are metadata for reward functions and annotators.
CONVERSATION_FIELDS = {
    "messages",
    "conversations",
    "prompt",
    "response",
    "instruction",
    "input",
    "output",
    "system",
    "system_prompt",
    "history",
    "tools",
}
# Those of which a prompt needs one.
PROMPT_FIELDS = ("prompt", "messages", "conversations", "instruction", "question")


@dataclass(frozen=True)
class PromptText:
    """A prompt as text, with the metadata that annotators and reward functions may need to judge answers."""

    id: str
    messages: Messages
    metadata: dict[str, str] = field(default_factory=dict)


def read_prompts(sources: list[ChatSource], seed: int) -> list[PromptText]:
    """Reads all prompts to sample answers to; of a conversation, everything before the last assistant turn.

    The id of a prompt is its source and content, or the field `id` of a function's row. Equal ids are one prompt.

    Args:
        sources: the recipe's.
        seed: the seed for sources that are functions.

    Raises:
        UserError: a file is missing or a row cannot be read; the message names file and row.
    """
    prompts: dict[str, PromptText] = {}
    for source in sources:
        for read, place in source_rows(source, seed):
            row = good_row(read)
            messages = prompt_of(row, place)
            has_id = source.kind == "function" and "id" in row
            content = json.dumps(messages, ensure_ascii=False)
            prompt_id = str(row["id"]) if has_id else f"{source.path or source.function}: {content}"
            used = CONVERSATION_FIELDS | {"id"} if has_id else CONVERSATION_FIELDS
            used = used if "prompt" in row else used | {"question"}
            metadata = {key: require_text(str(row[key]), place) for key in row.keys() - used if row[key] is not None}
            prompts[prompt_id] = PromptText(prompt_id, messages, metadata)
    return list(prompts.values())


def prompt_of(row: Row, place: str) -> Messages:
    """Extracts the prompt of a row in any layout: the conversation up to the answer.

    Args:
        row: a row of a file or function.
        place: its file and line, for messages.

    Raises:
        UserError: there is no user turn, or the row cannot be read.
    """
    if row.get("tools"):
        raise UserError(f"{place} has tools, which prompts are not sampled with; remove them")
    given = next((row[name] for name in ("prompt", "messages", "conversations") if row.get(name)), None)
    if given is None and (row.get("instruction") or row.get("question")):
        given = [{"role": "user", "content": instruction_of(row) if row.get("instruction") else row["question"]}]
    elif row.get("prompt") and not isinstance(row["prompt"], list):
        given = [{"role": "user", "content": row["prompt"]}]
    if not given:
        empty = [name for name in PROMPT_FIELDS if name in row]
        if empty:
            raise UserError(f'{place}: "{empty[0]}" is empty; fill it in or remove the row ({columns(row)})')
        raise UserError(f"{place} has none of {', '.join(map(repr, PROMPT_FIELDS))}; {columns(row)}")
    messages = read_turns(given, place).messages
    messages = turns_before(row, messages, place) + messages
    while messages and messages[-1]["role"] == "assistant":
        messages = messages[:-1]
    if not any(message["role"] == "user" and message["content"].strip() for message in messages):
        raise UserError(f"{place} has no user turn to answer")
    return messages


def interleave_kinds(prompts: Sequence[PromptText], seed: int) -> list[PromptText]:
    """Shuffles prompts and interleaves their kinds, so that rare kinds are not lost in any first part of the list."""
    kinds: dict[str, list[PromptText]] = defaultdict(list)
    for prompt in prompts:
        kinds[prompt.metadata.get("kind", "")].append(prompt)
    shuffled = [random.Random(f"collect {seed} {kind}").sample(kinds[kind], len(kinds[kind])) for kind in sorted(kinds)]
    return [prompt for prompt in chain(*zip_longest(*shuffled)) if prompt is not None]


def all_prompts(recipe: Recipe) -> list[PromptText]:
    """Reads all prompts of `collect.sources`, in the order of `interleave_kinds`."""
    return interleave_kinds(read_prompts(recipe.collect.sources, recipe.seed), recipe.seed)


def rlhf_prompts(recipe: Recipe) -> list[PromptText]:
    """Reads all prompts of `rlhf.sources`, in the order of `interleave_kinds`; none where RLHF has no own sources."""
    return interleave_kinds(read_prompts(recipe.rlhf.sources, recipe.seed), recipe.seed)


def select_prompts(recipe: Recipe, chat: Chat, prompts: Sequence[PromptText]) -> list[tuple[PromptText, list[int]]]:
    """Selects the prompts whose answers are ranked, and that RLHF trains on where it has no sources of its own.

    Args:
        recipe: decides their number.
        chat: renders them.
        prompts: all of them, in the order of `all_prompts`.

    Returns:
        The first `collect.prompts` that leave room for an answer, each with its token ids.
    """
    room = recipe.model.context - recipe.collect.max_tokens
    rendered = ((text, chat.prompt(text.messages)) for text in prompts)
    return list(islice(((text, ids) for text, ids in rendered if len(ids) <= room), recipe.collect.prompts))


def prompt_losses(recipe: Recipe, chat: Chat) -> list[Loss]:
    """Counts the rows of `collect.sources` that `select_prompts` does not select, by reason, for `balance`."""
    settings, context = recipe.collect, recipe.model.context
    prompts = all_prompts(recipe)
    rows = sum(1 for source in settings.sources for _ in source_rows(source, recipe.seed))
    fitting = sum(len(chat.prompt(text.messages)) <= context - settings.max_tokens for text in prompts)
    room = f"raise model.context (now {context}) or lower collect.max_tokens (now {settings.max_tokens})"
    more = f"raise collect.prompts (now {settings.prompts})"
    return [
        Loss("equal to another", rows - len(prompts)),
        Loss("no room for an answer", len(prompts) - fitting, room),
        Loss("more than collect.prompts", max(0, fitting - settings.prompts), more),
    ]


def split_prompts(prompt_ids: Sequence[str], held_out_share: float, seed: int) -> dict[str, str]:
    """Assigns `train` or `held_out` to every prompt id; at least one of each if there are two or more."""
    count = min(max(1, round(len(prompt_ids) * held_out_share)), len(prompt_ids) - 1)
    held_out = set(random.Random(f"held-out rankings {seed}").sample(list(prompt_ids), count))
    return {name: "held_out" if name in held_out else "train" for name in prompt_ids}

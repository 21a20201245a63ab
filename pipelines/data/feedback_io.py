"""Preferences from files into a run's database, and out of it."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from cluster.errors import UserError
from cluster.feedback import GOLD, Completion, Feedback, Prompt, Ranking, is_person
from cluster.run.atomic import write_text
from cluster.run.files import require_writable
from cluster.run.folder import fingerprint
from pipelines.data.chat_formats import read_rows
from pipelines.data.feedback_formats import FORMATS, PreferenceItem, Row

# What takes the place of the weights' checksum where nobody knows which weights drew an answer.
WEIGHTS = "imported"
# Answers that annotators wrote themselves, as conversations to fine-tune on; only out.
ANSWERS = "answers"
# Thumbs of the chat page, in TRL's layout of preferences without pairs; only out.
THUMBS = "thumbs"


def import_file(
    database: Feedback, kind: str, path: Path, name: str, annotator: str, held_out_share: float, gold: bool = False
) -> int:
    """Adds the rows of a file. The same file again adds nothing, or what is missing where the first time was cut off.

    Args:
        database: where to.
        kind: a key of `FORMATS`.
        path: a JSONL (also .gz), Parquet or JSON file; JSON holds a list of rows.
        name: what the rows are called in the database; `export_file` finds them by it.
        annotator: who ranked, where the rows do not say.
        held_out_share: share of the prompts to hold out; equal prompts are on the same side.
        gold: whether the rankings are the right ones, on which annotators are tested without being told; of several
            rankings of a prompt the first.

    Returns:
        how many prompts were new.

    Raises:
        UserError: a row cannot be read; the message names it, and nothing was added.
    """
    items, ids = [], []
    for number, (row, where) in enumerate(_rows(path)):
        read = FORMATS[_known(kind)].read(row, where, annotator)
        # The number keeps the order and equal rows apart; the mark keeps apart the rows of another file of that name.
        stem = f"{name} {number:07d} {fingerprint(row)[:8]}"
        items += read
        ids += [stem] if len(read) == 1 else [f"{stem} {part:03d}" for part in range(len(read))]
    if not items:
        raise UserError(f"{path} holds no rows with answers that are ranked")
    new = database.add_prompts(
        [
            Prompt(
                id=prompt_id,
                messages=item.messages,
                details={**item.details, "import": {"name": name, "format": kind}},
                split=_split(item, held_out_share),
            )
            for prompt_id, item in zip(ids, items, strict=True)
        ]
    )
    completions = [
        Completion(prompt_id=prompt_id, index=index, text=text, token_ids=[], model=model, weights=WEIGHTS)
        for prompt_id, item in zip(ids, items, strict=True)
        for index, (text, model) in enumerate(zip(item.texts, item.models, strict=True))
    ]
    stored: dict[str, list[int]] = defaultdict(list)
    for completion, key in zip(completions, database.add_completions(completions), strict=True):
        stored[completion.prompt_id].append(key)
    database.add_rankings(
        [
            Ranking(
                prompt_id=prompt_id,
                annotator=who,
                ranks={str(key): rank for key, rank in zip(stored[prompt_id], ranks, strict=True) if rank is not None},
            )
            for prompt_id, item in zip(ids, items, strict=True)
            for who, ranks in ([(GOLD, next(iter(item.ranks.values())))] if gold else item.ranks.items())
        ]
    )
    return new


def export_file(database: Feedback, kind: str, path: Path, name: str | None = None) -> int:
    """Writes people's rankings to a file: to the side, then renamed.

    Args:
        database: where from.
        kind: a key of `FORMATS`, "answers" for the better answers that annotators wrote, to fine-tune on, or "thumbs".
        path: JSONL, or JSON if it ends so.
        name: only what was imported under this name; all by default.

    Returns:
        how many rows.

    Raises:
        UserError: there is nothing to write, the format cannot hold it, the file cannot be written, or thumbs, which
            are never imported, are asked for by a name.
    """
    if kind == THUMBS and name is not None:
        raise UserError(f"{THUMBS} are not imported, so none has a name: leave out --name {name}")
    require_writable(path)
    found = _thumbs(database) if kind == THUMBS else _judged(database, kind, name)
    if not found:
        raise UserError(f"the database holds nothing to export as {kind}" + (f" under the name {name}" if name else ""))
    if path.suffix == ".json":
        write_text(path, json.dumps(found, ensure_ascii=False, indent=1))
    else:
        write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found))
    return len(found)


def _judged(database: Feedback, kind: str, name: str | None) -> list[Row]:
    write = None if kind == ANSWERS else FORMATS[_known(kind)].write
    found: list[Row] = []
    judgements: dict[str, list[Ranking]] = defaultdict(list)
    excluded = database.excluded()
    for row in database.judgements():
        if is_person(row.annotator) and row.annotator not in excluded:
            judgements[row.prompt_id].append(row)
    for prompt in database.prompts():
        if name is not None and prompt.details.get("import", {}).get("name") != name:
            continue
        if write is None:
            said = [row.better for row in judgements[prompt.id] if row.better]
            found += [{"messages": [*prompt.messages, {"role": "assistant", "content": text}]} for text in said]
        elif item := _item(prompt, judgements[prompt.id]):
            try:
                found += write(item)
            except UserError as error:
                raise UserError(f"prompt {prompt.id[:80]}: {error}") from error
    return found


def _thumbs(database: Feedback) -> list[Row]:
    excluded = database.excluded()
    return [
        {
            "prompt": thumb.messages,
            "completion": [{"role": "assistant", "content": thumb.answer}],
            "label": thumb.good,
            "model": thumb.model,
            "weights": thumb.weights,
        }
        for thumb in database.thumbs()
        if thumb.caller not in excluded
    ]


def _item(prompt: Prompt, judgements: list[Ranking]) -> PreferenceItem | None:
    completions = sorted(prompt.completions, key=lambda row: row.id or 0)
    ranks: dict[str, list[int | None]] = {
        row.annotator: [row.ranks.get(str(completion.id)) for completion in completions]
        for row in judgements
        if row.ranks
    }
    if not ranks:
        return None
    models = [row.model for row in completions]
    return PreferenceItem(prompt.messages, [row.text for row in completions], ranks, models, prompt.details)


def _rows(path: Path) -> list[tuple[Row, str]]:
    if path.suffix != ".json":
        return list(read_rows(str(path)))
    try:
        found: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    if not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
        raise UserError(f"{path} should hold a list of objects")
    return [(row, f"{path} row {number}") for number, row in enumerate(found)]


def _known(kind: str) -> str:
    if kind not in FORMATS:
        raise UserError(f"{kind!r} is not a format: choose one of {', '.join(FORMATS)}")
    return kind


def _split(item: PreferenceItem, held_out_share: float) -> str:
    chance = int(fingerprint(item.messages)[:12], 16) / 16**12
    return "held_out" if chance < held_out_share else "train"

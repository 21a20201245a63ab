"""Imports preference files into a run's feedback database, and exports rankings, answers and thumbs from it."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from cluster.errors import UserError
from cluster.feedback import GOLD, Completion, Feedback, FeedbackPrompt, Ranking, is_person
from cluster.run.atomic import write_text
from cluster.run.files import require_writable
from cluster.run.folder import fingerprint
from pipelines.data.feedback_formats import FORMATS, PreferenceItem, Row
from pipelines.data.source_rows import read_rows

# Takes the place of the checksum of unknown weights.
WEIGHTS = "imported"
# Answers that annotators wrote, as conversations for fine-tuning; export only.
ANSWERS = "answers"
# Thumbs up or down on the chat page, in TRL's layout of unpaired preferences; export only.
THUMBS = "thumbs"


def import_file(
    database: Feedback, kind: str, path: Path, name: str, annotator: str, held_out_share: float, gold: bool = False
) -> int:
    """Adds the rows of a preference file to the database. Importing a file again adds only what is missing.

    Args:
        database: the run's.
        kind: a key of `FORMATS`.
        path: a JSONL (also .gz), Parquet or JSON file; JSON holds a list of rows.
        name: of the rows in the database, by which `export_file` finds them.
        annotator: who ranked, where a row does not say.
        held_out_share: share of the prompts to hold out; equal prompts are on the same side of the split.
        gold: whether the rankings are reference answers, on which annotators are tested without knowing; of several
            rankings of a prompt the first is used.

    Returns:
        How many prompts were new.

    Raises:
        UserError: a row cannot be read; the message names it, and nothing was added.
    """
    items, ids = [], []
    for number, (row, where) in enumerate(_rows(path)):
        read = FORMATS[_known(kind)].read(row, where, annotator)
        # The number keeps the order and distinguishes equal rows; the hash distinguishes another file of that name.
        stem = f"{name} {number:07d} {fingerprint(row)[:8]}"
        items += read
        ids += [stem] if len(read) == 1 else [f"{stem} {part:03d}" for part in range(len(read))]
    if not items:
        raise UserError(f"{path} holds no rows with ranked answers")
    new = database.add_prompts(
        [
            FeedbackPrompt(
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
    """Writes people's feedback to a file, which appears whole or not at all.

    Args:
        database: the run's.
        kind: a key of `FORMATS`; "answers" for answers that annotators wrote; or "thumbs".
        path: ends in .json for a JSON list; JSONL otherwise.
        name: export only what was imported under this name; None for everything.

    Returns:
        How many rows were written.

    Raises:
        UserError: there is nothing to write, the format cannot represent it, the file cannot be written, or a name is
            given for thumbs, which are never imported.
    """
    if kind == THUMBS and name is not None:
        raise UserError(f"{THUMBS} are not imported and have no name: leave out --name {name}")
    require_writable(path)
    exported = _thumbs(database) if kind == THUMBS else _judged(database, kind, name)
    if not exported:
        raise UserError(f"the database holds nothing to export as {kind}" + (f" under the name {name}" if name else ""))
    if path.suffix == ".json":
        write_text(path, json.dumps(exported, ensure_ascii=False, indent=1))
    else:
        write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in exported))
    return len(exported)


def _judged(database: Feedback, kind: str, name: str | None) -> list[Row]:
    write = None if kind == ANSWERS else FORMATS[_known(kind)].write
    exported: list[Row] = []
    judgements: dict[str, list[Ranking]] = defaultdict(list)
    excluded = database.excluded()
    for row in database.judgements():
        if is_person(row.annotator) and row.annotator not in excluded:
            judgements[row.prompt_id].append(row)
    for prompt in database.prompts():
        if name is not None and prompt.details.get("import", {}).get("name") != name:
            continue
        if write is None:
            written = [row.better for row in judgements[prompt.id] if row.better]
            exported += [{"messages": [*prompt.messages, {"role": "assistant", "content": text}]} for text in written]
        elif item := _item(prompt, judgements[prompt.id]):
            try:
                exported += write(item)
            except UserError as error:
                raise UserError(f"prompt {prompt.id[:80]}: {error}") from error
    return exported


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


def _item(prompt: FeedbackPrompt, judgements: list[Ranking]) -> PreferenceItem | None:
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
        content: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
    if not isinstance(content, list) or not all(isinstance(row, dict) for row in content):
        raise UserError(f"{path} must hold a list of objects")
    return [(row, f"{path} row {number}") for number, row in enumerate(content)]


def _known(kind: str) -> str:
    if kind not in FORMATS:
        raise UserError(f"{kind!r} is not a format of preferences: choose one of {', '.join(FORMATS)}")
    return kind


def _split(item: PreferenceItem, held_out_share: float) -> str:
    chance = int(fingerprint(item.messages)[:12], 16) / 16**12
    return "held_out" if chance < held_out_share else "train"

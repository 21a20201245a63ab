"""Imports preference files into a run's feedback database, and exports rankings, answers and thumbs from it."""

import json
import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.errors import UserError
from cluster.feedback import COMPARED, GOLD, Completion, Feedback, FeedbackPrompt, Ranking, is_person
from cluster.run.atomic import write_text
from cluster.run.folder import fingerprint
from cluster.run.storage.files import require_writable
from pipelines.data.balance import Loss, require_enough
from pipelines.data.feedback.formats import FORMATS, PreferenceItem, Row
from pipelines.data.feedback.item import split_of
from pipelines.data.row_files import BadRow, bad_row, good_row
from pipelines.data.source_rows import file_rows, quarantine
from pipelines.data.turns import require_text

# Takes the place of the checksum of unknown weights.
WEIGHTS = "imported"
# Answers that annotators wrote, as conversations for fine-tuning; export only.
ANSWERS = "answers"
# Thumbs up or down on the chat page, in TRL's layout of unpaired preferences; export only.
THUMBS = "thumbs"
# Votes between models on the compare page; export only.
VOTES = "votes"
SURROGATE = re.compile("[\\ud800-\\udfff]")


@dataclass(frozen=True)
class Imported:
    """The outcome of an import: how many prompts were new, how many rows there were, and those that were left out."""

    new: int
    rows: int
    bad: list[BadRow]


@dataclass(frozen=True)
class ExportedFeedback:
    """The outcome of an export.

    Attributes:
        rows: how many rows were written.
        votes: judgements of the compare page that preference formats leave out; `VOTES` writes them.
        repaired: rows in which a character or number that JSON cannot hold was replaced, by U+FFFD or null.
    """

    rows: int
    votes: int = 0
    repaired: int = 0


def import_file(
    database: Feedback,
    kind: str,
    path: Path,
    name: str,
    annotator: str,
    held_out_share: float,
    gold: bool = False,
    max_bad_share: float = 0.0,
    quarantine_file: Path | None = None,
) -> Imported:
    """Adds the rows of a preference file to the database. Importing a file again adds only what is missing.

    Args:
        database: the run's.
        kind: a key of `FORMATS`.
        path: a JSONL (also .gz), Parquet or JSON file; JSON holds a list of rows.
        name: the name of the rows in the database, by which `export_file` finds them.
        annotator: the annotator of rows that name none.
        held_out_share: share of the prompts to hold out; equal prompts are on the same side of the split.
        gold: whether the rankings are reference answers, on which annotators are tested without knowing; of several
            rankings of a prompt the first is used.
        max_bad_share: the largest share of rows that may be left out because they cannot be read.
        quarantine_file: the file to list these rows in, with their lines and reasons; beside the source file if None.

    Raises:
        UserError: too many rows cannot be read; the message names the first, and nothing was added.
    """
    read = FORMATS[_known(kind)].read
    items: list[PreferenceItem] = []
    ids: list[str] = []
    bad: list[BadRow] = []
    total = 0
    for number, (row, where) in enumerate(file_rows(str(path))):
        total += 1
        try:
            found = read(good_row(row), where, annotator)
            for text in (text for item in found for text in item.texts):
                require_text(text, where)
        except UserError as error:
            bad.append(row if isinstance(row, BadRow) else bad_row(where, str(error), row))
            continue
        # The number keeps the order and distinguishes equal rows; the hash distinguishes another file of that name.
        stem = f"{name} {number:07d} {fingerprint(row)[:8]}"
        items += found
        ids += [stem] if len(found) == 1 else [f"{stem} {part:03d}" for part in range(len(found))]
    place = quarantine_file or path.with_name(f"{path.name}.rejected.jsonl")
    quarantine(bad, total, max_bad_share, place, str(path), "--max-bad")
    losses = [
        Loss("cannot be used", len(bad), f"fix what is wrong, first: {bad[0].reason}" if bad else ""),
        Loss("without ranked answers", total - len(bad) if not items else 0),
    ]
    require_enough(f"rows of {path}", len(items), losses, 1, "with ranked answers", "import another file")
    new = database.add_prompts(
        [
            FeedbackPrompt(
                id=prompt_id,
                messages=item.messages,
                details={**item.details, "import": {"name": name, "format": kind}},
                split=split_of(item.messages, held_out_share),
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
    return Imported(new, total, bad)


def export_file(database: Feedback, kind: str, path: Path, name: str | None = None) -> ExportedFeedback:
    """Writes people's feedback to a file, which appears whole or not at all.

    Args:
        database: the run's.
        kind: a key of `FORMATS`; "answers" for answers that annotators wrote; "thumbs"; or "votes" of the compare page.
        path: ends in .json for a JSON list; JSONL otherwise.
        name: export only what was imported under this name; None for everything.

    Raises:
        UserError: there is nothing to write, the format cannot represent it, the file cannot be written, or a name is
            given for thumbs or votes, which are never imported.
    """
    if kind in (THUMBS, VOTES) and name is not None:
        raise UserError(f"{kind} are not imported and have no name: leave out --name {name}")
    require_writable(path)
    judgements = _judgements(database)
    votes = {prompt: rows for prompt, rows in judgements.items() if prompt.startswith(COMPARED)}
    if kind == THUMBS:
        exported = _thumbs(database)
    elif kind == VOTES:
        exported = _votes(database, votes)
    else:
        exported = _judged(database, kind, name, judgements)
    if not exported:
        raise UserError(f"the database holds nothing to export as {kind}" + (f" under the name {name}" if name else ""))
    written = [storable(row) for row in exported]
    if path.suffix == ".json":
        write_text(path, json.dumps(written, ensure_ascii=False, allow_nan=False, indent=1))
    else:
        write_text(path, "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in written))
    left_out = sum(map(len, votes.values())) if kind in FORMATS and name is None else 0
    repaired = sum(before != after for before, after in zip(exported, written, strict=True))
    return ExportedFeedback(len(exported), left_out, repaired)


def exportable(database: Feedback) -> dict[str, int]:
    """Counts the rows that `export_file` writes of all people's feedback: rankings, as `lists`, and the other kinds."""
    judgements = _judgements(database)
    votes = {prompt: rows for prompt, rows in judgements.items() if prompt.startswith(COMPARED)}
    return {
        "lists": len(_judged(database, "lists", None, judgements)),
        ANSWERS: len(_judged(database, ANSWERS, None, judgements)),
        VOTES: len(_votes(database, votes)),
        THUMBS: len(_thumbs(database)),
    }


def storable(value: Any) -> Any:
    """Returns a JSON value without what strict JSON in UTF-8 cannot hold: lone surrogates become U+FFFD, and NaN and
    infinities null."""
    if isinstance(value, str):
        return SURROGATE.sub("\ufffd", value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {storable(key): storable(held) for key, held in value.items()}
    return [storable(held) for held in value] if isinstance(value, list | tuple) else value


def _judgements(database: Feedback) -> dict[str, list[Ranking]]:
    """Returns the judgements of people who are not excluded, by prompt."""
    excluded = database.excluded()
    found: dict[str, list[Ranking]] = defaultdict(list)
    for row in database.judgements():
        if is_person(row.annotator) and row.annotator not in excluded:
            found[row.prompt_id].append(row)
    return found


def _judged(database: Feedback, kind: str, name: str | None, judgements: Mapping[str, Sequence[Ranking]]) -> list[Row]:
    write = None if kind == ANSWERS else FORMATS[_known(kind)].write
    exported: list[Row] = []
    for prompt in database.prompts():
        # A vote between models is another task than a ranking of one model's answers.
        if prompt.id.startswith(COMPARED):
            continue
        if name is not None and prompt.details.get("import", {}).get("name") != name:
            continue
        if write is None:
            written = [row.better for row in judgements.get(prompt.id, []) if row.better]
            exported += [{"messages": [*prompt.messages, {"role": "assistant", "content": text}]} for text in written]
        elif item := _item(prompt, judgements.get(prompt.id, [])):
            try:
                exported += write(item)
            except UserError as error:
                raise UserError(f"prompt {prompt.id[:80]}: {error}") from error
    return exported


def _votes(database: Feedback, judgements: Mapping[str, Sequence[Ranking]]) -> list[Row]:
    """Returns a row for each vote of the compare page: the answers, their models and ranks. "All bad" has no ranks."""
    prompts = {prompt.id: prompt for prompt in database.prompts(prefix=COMPARED)}
    rows = []
    for name, votes in judgements.items():
        sides = sorted(prompts[name].completions, key=lambda side: side.index)
        rows += [
            {
                "prompt": prompts[name].messages,
                "completions": [side.text for side in sides],
                "models": [side.model for side in sides],
                "weights": [side.weights for side in sides],
                "ranks": [vote.ranks.get(str(side.id)) for side in sides] if vote.ranks else None,
                "annotator": vote.annotator,
            }
            for vote in votes
        ]
    return rows


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


def _item(prompt: FeedbackPrompt, judgements: Sequence[Ranking]) -> PreferenceItem | None:
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


def _known(kind: str) -> str:
    if kind not in FORMATS:
        raise UserError(f"{kind!r} is not a format of preferences: choose one of {', '.join(FORMATS)}")
    return kind

"""Prompts of live traffic, which people let a server store: added, read, and deleted when they expire or on request."""

import json
import re
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from sqlmodel import Session, delete, func, select, update

from cluster.errors import UserError
from cluster.feedback.store import Store, column, query_batches
from cluster.feedback.tables import LIVE, Completion, FeedbackPrompt, LivePrompt, Ranking, Repeat
from cluster.personal_data import replace
from cluster.recipe.corpus import PersonalData
from cluster.run.atomic import write_text
from cluster.run.folder import RunFolder
from cluster.run.rounds import kept_rounds, present_round, round_folder

# The live prompts of a round, in its `preferences`.
FILE = "live.jsonl"

KINDS: Sequence[PersonalData] = get_args(PersonalData)
_PLACEHOLDER = re.compile(rf"<({'|'.join(kind.upper() for kind in KINDS)})_[0-9]+>")


@dataclass(frozen=True)
class Deleted:
    """What was deleted.

    Attributes:
        prompts: the ids of the live prompts.
        judgements: the number of judgements of answers to them.
    """

    prompts: list[str]
    judgements: int = 0


class LiveQueries(Store):
    """The queries on prompts of live traffic. Deleting one also deletes the copy of it that a round asked, with its
    answers and their judgements."""

    def add_live(self, prompt: LivePrompt) -> None:
        """Stores a prompt. The caller has replaced its personal data."""
        with self._write() as session:
            session.add(prompt)

    def live_prompts(self) -> list[LivePrompt]:
        """Lists the prompts that have not expired, the newest first."""
        current = select(LivePrompt).where(column(LivePrompt.expires) > time.time())
        with self._read() as session:
            return list(session.exec(current.order_by(column(LivePrompt.created).desc(), column(LivePrompt.id))))

    def live_counts(self) -> dict[str, int]:
        """Counts the prompts that have not expired by what allowed them to be stored."""
        count = select(LivePrompt.consent, func.count()).where(column(LivePrompt.expires) > time.time())
        with self._read() as session:
            return dict(sorted(session.exec(count.group_by(LivePrompt.consent)).all()))

    def are_live(self, ids: set[str]) -> set[str]:
        """Returns those of the ids whose prompts are stored and have not expired."""
        current = select(LivePrompt.id).where(column(LivePrompt.expires) > time.time())
        with self._read() as session:
            found: list[str] = list(session.exec(current))
        return ids.intersection(found)

    def limit_live(self, seconds: float) -> None:
        """Lets every stored prompt expire `seconds` after it was stored, unless it expires before that."""
        latest = LivePrompt.created + seconds
        with self._write() as session:
            session.execute(update(LivePrompt).where(column(LivePrompt.expires) > latest).values(expires=latest))

    def delete_expired_live(self) -> Deleted:
        """Deletes the prompts that have expired."""
        gone = column(LivePrompt.expires) <= time.time()
        with self._read() as session:
            none = session.exec(select(LivePrompt.id).where(gone).limit(1)).first() is None
        if none:
            if self._journal_left:
                self._purge_journal()
            return Deleted([])
        with self._write() as session:
            deleted = _delete(session, set(session.exec(select(LivePrompt.id).where(gone))))
        self._purge_journal()
        return deleted

    def delete_live(self, key: str | None = None, request: str | None = None, text: str | None = None) -> Deleted:
        """Deletes prompts for good, by exactly one of three.

        Args:
            key: the name of the key that they were sent with.
            request: the id of their request.
            text: a text in any of their messages, regardless of case. Personal data in it stands for any of its kind,
                since it is not stored.

        Raises:
            UserError: not exactly one is given, or the text is empty, or nothing but personal data.
        """
        if sum(one is not None for one in (key, request, text)) != 1:
            raise UserError("name what to delete by exactly one of key, request and text")
        found = _pattern(text) if text is not None else None
        rows = select(LivePrompt)
        if key is not None:
            rows = rows.where(LivePrompt.caller == key)
        if request is not None:
            rows = rows.where(LivePrompt.request == request)
        with self._write() as session:
            chosen = {
                row.id
                for row in session.exec(rows)
                if found is None or any(found.search(message["content"]) for message in row.messages)
            }
            deleted = _delete(session, chosen)
        self._purge_journal()
        return deleted


def write_live(prompts: Sequence[tuple[str, list[dict[str, str]], str]], folder: Path) -> None:
    """Writes live.jsonl: the live prompts of a round, each as its id, messages and split."""
    rows = ({"id": name, "messages": messages, "split": split} for name, messages, split in prompts)
    write_text(folder / FILE, "".join(json.dumps(row, ensure_ascii=True) + "\n" for row in rows))


def read_live(folder: Path) -> list[dict[str, Any]]:
    """Reads the live.jsonl of a round's `preferences`; nothing where there is none.

    Raises:
        UserError: it is damaged.
    """
    path = folder / FILE
    try:
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        rows = [json.loads(line) for line in lines]
        return [{name: row[name] for name in ("id", "messages", "split")} for row in rows]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} is damaged: {error}; run collect again") from error


def rounds_with(run: RunFolder, ids: Sequence[str]) -> list[int]:
    """Lists the rounds of a run that were made with any of these live prompts.

    Raises:
        UserError: the file of a round is damaged.
    """
    folders = {number: round_folder(run.root, number) for number in kept_rounds(run.root)}
    if run.path("preferences").exists():
        folders[present_round(run.root)] = run.root
    return sorted(
        number
        for number, folder in folders.items()
        if any(row["id"] in ids for row in read_live(folder / "preferences"))
    )


def _pattern(text: str) -> re.Pattern[str]:
    plain = replace(text.strip(), KINDS)[0]
    words = [part for number, part in enumerate(_PLACEHOLDER.split(plain)) if number % 2 == 0]
    if not any(re.search(r"\w", part) for part in words):
        raise UserError("the text has no words besides personal data, which is not stored: name a key or a request")
    kinds = _PLACEHOLDER.findall(plain)
    parts = [re.escape(words[0])]
    for kind, part in zip(kinds, words[1:], strict=True):
        parts += [f"<{kind}_[0-9]+>", re.escape(part)]
    return re.compile("".join(parts), re.IGNORECASE)


def _delete(session: Session, ids: set[str]) -> Deleted:
    """Deletes live prompts, and what rounds made of them."""
    judgements: Counter[str] = Counter()
    copies = {
        row.id
        for row in session.exec(select(FeedbackPrompt).where(column(FeedbackPrompt.id).like(f"% {LIVE} %")))
        if row.details.get("kind") == LIVE and row.details.get("prompt", "").removeprefix(f"{LIVE} ") in ids
    }
    made_of_it: tuple[Any, ...] = (Ranking, Repeat, Completion)
    for names in query_batches(copies):
        for table in made_of_it:
            gone = session.execute(delete(table).where(table.prompt_id.in_(names)).returning(table.id)).all()
            judgements[table.__name__] += len(gone)
        session.execute(delete(FeedbackPrompt).where(column(FeedbackPrompt.id).in_(names)))
    for names in query_batches(ids):
        session.execute(delete(LivePrompt).where(column(LivePrompt.id).in_(names)))
    return Deleted(sorted(ids), judgements["Ranking"])

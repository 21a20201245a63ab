"""The judgements that a round used, recorded so that later rounds find the new and the deleted ones.

`preferences/judgements.jsonl` names every judgement of people that was there when the round was made: its table and
row number, who gave it, a digest of its content, and the number of training and test rows that it became.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from cluster.feedback.judgements import PeoplesJudgements
from cluster.feedback.queries import open_feedback
from cluster.feedback.tables import Ranking, Thumb
from cluster.run.atomic import write_text
from cluster.run.folder import RunFolder, fingerprint
from cluster.run.rounds import kept_rounds, present_round, round_folder

FILE = "judgements.jsonl"
Source = Literal["rankings", "votes", "thumbs"]
SOURCES: tuple[Source, ...] = ("rankings", "votes", "thumbs")
# A vote of the compare page is a row of the table of rankings too, which numbers them together.
JudgementKey = tuple[Source, int, str]


@dataclass(frozen=True)
class Judgement:
    """A judgement of a person.

    Attributes:
        source: the kind of judgement: rankings, votes or thumbs.
        id: its number in the database.
        digest: hash of its content; a changed judgement has another one.
        annotator: the name of the annotator who gave it.
        created: when it was given, in seconds since 1970.
        used: the number of training and test rows that it became; 0 for one that tells nothing or was left out.
    """

    source: Source
    id: int
    digest: str
    annotator: str
    created: float
    used: int = 0

    @property
    def key(self) -> JudgementKey:
        """Identifies a judgement with its content: after a change the key is another."""
        return self.source, self.id, self.digest


def records_of(judged: PeoplesJudgements, used: Mapping[tuple[Source, int], int] | None = None) -> list[Judgement]:
    """Makes a record of every judgement.

    Args:
        judged: the judgements.
        used: the number of training and test rows that a judgement became, by source and number; 0 where it is missing.
    """
    rows: list[tuple[Source, Any]] = [
        *(("rankings", row) for row in judged.rankings),
        *(("votes", row) for row in judged.votes),
        *(("thumbs", row) for row in judged.thumbs),
    ]
    return [
        Judgement(source, row.id, _digest(row), _who(row), row.created, (used or {}).get((source, row.id), 0))
        for source, row in rows
    ]


def write_records(judgements: Iterable[Judgement], folder: Path) -> str:
    """Writes judgements.jsonl to a folder, and returns its digest for the manifest."""
    rows = [asdict(row) for row in judgements]
    write_text(folder / FILE, "".join(json.dumps(row) + "\n" for row in rows))
    return judgements_digest(rows)


def judgements_digest(rows: Iterable[Mapping[str, Any]]) -> str:
    """Hashes the source, number and digest of each judgement."""
    return fingerprint([[row["source"], row["id"], row["digest"]] for row in rows])


def read_records(folder: Path) -> list[Judgement]:
    """Reads judgements.jsonl of a folder; empty without the file, as in runs of versions that had no rounds."""
    try:
        lines = (folder / FILE).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    return [Judgement(**json.loads(line)) for line in lines]


@dataclass(frozen=True)
class JudgementChanges:
    """The differences between a run's judgements and those that its rounds have used.

    Attributes:
        new: given or changed since, by source.
        gone: used by the present round, and deleted, changed or excluded since; unless a later round that was set aside
            was made without them already.
    """

    new: Mapping[Source, int]
    gone: int

    @property
    def total(self) -> int:
        """The number of new and deleted judgements."""
        return sum(self.new.values()) + self.gone

    def sentence(self) -> str:
        """Says how many judgements are new or gone, by source; empty if none is."""
        parts = [f"{count} {_words(name, count)}" for name, count in self.new.items() if count]
        count = sum(self.new.values())
        said = [f"{', '.join(parts)} {'is' if count == 1 else 'are'} newer"] if parts else []
        if self.gone:
            said.append(
                f"{self.gone} that the round used {'is' if self.gone == 1 else 'are'} gone, changed or excluded"
            )
        return "; ".join(said)


def judgement_changes(run: RunFolder, preferences: str) -> JudgementChanges:
    """Compares the judgements of a run's database with those that its rounds have seen.

    A judgement is new until one round, kept or present, has seen it, even if that round was set aside.

    Args:
        run: the run folder.
        preferences: the subfolder in which each round has its judgements.jsonl.

    Raises:
        UserError: the database cannot be opened.
    """
    if not _has_database(run):
        return JudgementChanges({}, 0)
    with open_feedback(run.feedback_url) as database:
        now = records_of(database.peoples_judgements())
    present = run.path(preferences)
    earlier = [round_folder(run.root, number) / preferences for number in kept_rounds(run.root)]
    seen = {row.key for folder in (present, *earlier) for row in read_records(folder)}
    # A round without judgements.jsonl saw every judgement that is older than its manifest.
    unnamed = [_written(folder) for folder in (present, *earlier) if not (folder / FILE).exists()]
    new = [row for row in now if row.key not in seen and row.created > max(unnamed, default=0.0)]
    keys = {row.key for row in now}
    gone = {row.key for row in read_records(present) if row.used > 0 and row.key not in keys}
    for number in kept_rounds(run.root):
        if number > present_round(run.root):
            gone.intersection_update(row.key for row in read_records(round_folder(run.root, number) / preferences))
    return JudgementChanges({name: sum(row.source == name for row in new) for name in SOURCES}, len(gone))


@dataclass(frozen=True)
class JudgementUse:
    """A judgement, and the rounds whose training it went into.

    Attributes:
        judgement: its record in the newest of these rounds.
        rounds: their numbers.
        is_there: whether it is still in the database as it was, and its annotator is not excluded.
    """

    judgement: Judgement
    rounds: list[int]
    is_there: bool


def trace_judgements(run: RunFolder, preferences: str) -> list[JudgementUse]:
    """Lists every judgement that some round used, the newest first, with the rounds that did.

    Args:
        run: the run folder.
        preferences: the subfolder in which each round has its judgements.jsonl.

    Raises:
        UserError: the database cannot be opened.
    """
    folders = {number: round_folder(run.root, number) for number in kept_rounds(run.root)}
    if run.path(preferences).exists():
        folders[present_round(run.root)] = run.root
    rounds: dict[JudgementKey, list[int]] = {}
    names: dict[JudgementKey, Judgement] = {}
    for number, folder in sorted(folders.items()):
        for row in read_records(folder / preferences):
            if row.used > 0:
                rounds.setdefault(row.key, []).append(number)
                names[row.key] = row
    if not rounds or not _has_database(run):
        return []
    with open_feedback(run.feedback_url) as database:
        there = {row.key for row in records_of(database.peoples_judgements())}
    traces = [JudgementUse(names[key], used_in, key in there) for key, used_in in rounds.items()]
    return sorted(traces, key=lambda one: one.judgement.created, reverse=True)


def _has_database(run: RunFolder) -> bool:
    return not run.feedback_url.startswith("sqlite:") or (run.root / "feedback.db").exists()


def _written(folder: Path) -> float:
    path = folder / "manifest.json"
    return path.stat().st_mtime if path.exists() else 0.0


def _digest(row: Ranking | Thumb) -> str:
    if isinstance(row, Thumb):
        return fingerprint([row.messages, row.answer, row.good])[:16]
    return fingerprint([row.prompt_id, row.ranks, row.all_bad, row.better])[:16]


def _who(row: Ranking | Thumb) -> str:
    return row.caller if isinstance(row, Thumb) else row.annotator


def _words(source: Source, count: int) -> str:
    return source.removesuffix("s") if count == 1 else source

"""Cuts large files that can only be read from their start, such as .jsonl.gz, into pieces of their records.

One task reads a file and writes its records piece by piece; a task that is started again passes over the records of the
pieces that are there without parsing them. Cleaning, which takes most of the time, then has a task a piece.
"""

import shutil
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

from rich.progress import Progress

from cluster.run.folder import fingerprint
from cluster.run.storage.files import file_info
from pipelines.corpus import heartbeat
from pipelines.corpus.read.files import is_read_from_its_start
from pipelines.corpus.read.pieces import Piece, describe_piece, write_piece
from pipelines.corpus.read.sources import InputSplit, read_places
from pipelines.corpus.tasks import Phase, Report, Task, run_tasks

# Smaller files are read by one task: 32 MB of packed text are about 100 MB, which take some 15 s to clean.
CUT_BYTES = 32 << 20
# Bytes of the records of a piece, in UTF-8.
PIECE_BYTES = 32 << 20


def cut_files(splits: Sequence[InputSplit], folder: Path, progress: Progress, deadline: float) -> list[InputSplit]:
    """Cuts the files of more than `CUT_BYTES` that a task cannot start within.

    Args:
        folder: the folder for the pieces.
        deadline: seconds without any task finishing or going on after which the phase is given up.

    Returns:
        the splits in order, those of the pieces in place of those cut.

    Raises:
        StorageError: the storage of a file does not answer.
        UserError: a file cannot be opened, or lacks the text field.
    """
    large = [split for split in splits if split.stored_bytes > CUT_BYTES and _can_be_cut(split)]
    if not large:
        return list(splits)
    phase = CutPhase(tuple(large), folder, PIECE_BYTES)
    tasks = [Task(split.name, phase.key(place), (phase.output(place),)) for place, split in enumerate(large)]
    reports = run_tasks("cut large files", folder / "done", tasks, phase, progress, deadline)
    pieces = {split.name: phase.pieces(place, reports[place]) for place, split in enumerate(large)}
    every = [piece for split in splits for piece in pieces.get(split.name, [split])]
    return [replace(split, name=f"part-{number:05d}") for number, split in enumerate(every)]


@dataclass(frozen=True)
class CutPhase(Phase):
    """Writes the records of the file of split `index` to pieces, in a folder of its own.

    Attributes:
        piece_bytes: after which a piece ends.
    """

    splits: tuple[InputSplit, ...]
    folder: Path
    piece_bytes: int

    def only(self, index: int) -> "CutPhase":
        return replace(self, splits=(self.splits[index],))

    def key(self, index: int) -> str:
        """Hashes all that the pieces depend on, of the file its size and time of change."""
        split = self.splits[index]
        file = file_info(split.files[0])
        return fingerprint([split.identity(), self.piece_bytes, file.size, file.changed])

    def output(self, index: int) -> Path:
        return self.folder / self.splits[index].name

    def __call__(self, index: int) -> Report:
        """Returns the number of records up to the end of each piece, and the bytes of each."""
        folder = self.output(index)
        pieces = _written(folder, self.key(index))
        if not pieces:
            shutil.rmtree(folder, ignore_errors=True)
        piece = pieces[-1] if pieces else Piece(self.key(index), 0, 0, False)
        with closing(read_places(self.splits[index], skip=piece.end)) as items:
            while not piece.last:
                piece = write_piece(_file(folder, len(pieces)), items, piece, self.piece_bytes)
                pieces.append(piece)
                heartbeat.progress()
        return {"ends": [piece.end for piece in pieces], "bytes": [piece.size for piece in pieces]}

    def pieces(self, index: int, report: Report) -> list[InputSplit]:
        """Makes the splits of the pieces of a file, which share its stored bytes."""
        split, ends, sizes = self.splits[index], [0, *report["ends"]], report["bytes"]
        before = [sum(sizes[:number]) for number in range(len(sizes) + 1)]
        shares = [split.stored_bytes * size // max(before[-1], 1) for size in before]
        return [
            replace(
                split,
                span=(ends[number], ends[number + 1]),
                piece=_file(self.output(index), number),
                stored_bytes=shares[number + 1] - shares[number],
                skipped_files=() if number else split.skipped_files,
            )
            for number in range(len(sizes))
        ]


def _can_be_cut(split: InputSplit) -> bool:
    (file, *more) = split.files or ("",)
    return not more and split.span is None and split.limit is None and is_read_from_its_start(file, split.text_lines)


def _written(folder: Path, key: str) -> list[Piece]:
    """Lists the pieces that an earlier attempt wrote under the same key."""
    found: list[Piece] = []
    for number in count():
        piece = describe_piece(_file(folder, number))
        if piece is None or piece.key != key:
            break
        found.append(piece)
    return found


def _file(folder: Path, number: int) -> Path:
    return folder / f"{number:05d}.parquet"

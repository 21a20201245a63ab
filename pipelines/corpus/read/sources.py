"""Cuts the recipe's sources into input splits, and reads the documents of a split."""

import re
from collections.abc import Generator, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import chain, count
from pathlib import Path
from typing import Any

from cluster.errors import UserError
from cluster.recipe.corpus import Source
from cluster.recipe.functions import SOURCE_SECONDS, failure_reason, items_within, load_function
from cluster.run.storage.files import find_files, glob_root, no_match, relative_name
from cluster.run.storage.remote import StoredFile, shown_name
from pipelines.corpus.read.extractor import Extractor
from pipelines.corpus.read.files import SUFFIXES, Reading, format_of, read_file, spans
from pipelines.corpus.read.hf_layout import files_of_split
from pipelines.corpus.read.lines import Span
from pipelines.corpus.read.pieces import read_piece
from pipelines.corpus.read.records import BadRecord, Document, Item, Skipped

# Enough work to outweigh the start of a task, and small enough to distribute a corpus over many.
SPLIT_BYTES = 8 << 20
# Hidden files, documentation of a folder, and the indexes of Hugging Face's datasets.
_COMPANION = re.compile(
    r"\..*|(README|LICEN[CS]E|CHANGELOG|CONTRIBUTING)(\.(md|markdown|rst))?"
    r"|dataset_infos?\.json|dataset_dict\.json|state\.json",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class InputSplit:
    """The input of one task: files of a source, a span of one file, or all texts of a function.

    Attributes:
        name: unique in the corpus; names the split's part files.
        source: name of the source.
        drop_near_duplicates: whether near-duplicates among the documents are dropped.
        folder: the folder to which file names in document ids are relative.
        span: the span to read of the only file; None reads all files as a whole.
        page_seconds: processor time after which a web page is given up.
        extractor: library that extracts the main text of web pages.
        stored_bytes: the bytes of the files, or of the span.
        skipped_files: files of the source in formats that are not read; its first split holds them.
        piece: the piece of the file with the records that `span` counts; None if the file is read itself.
        function: module:function of a source of kind function, called with the seed and `arguments`.

    The other fields are those of the source in the recipe.
    """

    name: str
    source: str
    kind: str
    files: tuple[str, ...]
    text_field: str
    limit: int | None
    drop_near_duplicates: bool
    seed: int
    license: str | None = None
    folder: str = ""
    span: Span | None = None
    text_lines: bool = False
    page_seconds: float = 10.0
    extractor: str = "resiliparse"
    stored_bytes: int = 0
    encoding: str = "utf-8"
    skipped_files: tuple[str, ...] = ()
    piece: Path | None = None
    function: str | None = None
    arguments: dict[str, Any] = field(default_factory=dict)

    def identity(self) -> dict[str, Any]:
        """Returns the fields, for a fingerprint. New credentials of a URI leave it as it is.

        The path of a piece is left out, since its span says what it holds.
        """
        given = {name: value for name, value in asdict(self).items() if name not in ("skipped_files", "piece")}
        return {**given, "files": [*map(shown_name, self.files)], "folder": shown_name(self.folder)}


def plan_splits(
    sources: Sequence[Source], seed: int, page_seconds: float = 10.0, extractor: str = "resiliparse"
) -> list[InputSplit]:
    """Cuts every source into splits, in the order of the recipe and of the file names.

    A file of lines or row groups that is larger than `SPLIT_BYTES` is cut. A source with a limit is one split, since a
    single reader has to count its documents.

    Args:
        seed: the seed for sources of kind function.
        page_seconds: processor time after which a web page is given up.
        extractor: library that extracts the main text of web pages.

    Raises:
        UserError: a path matches no file, or only files in unsupported formats.
    """
    splits: list[InputSplit] = []
    for source, name in zip(sources, source_names(sources), strict=True):
        found, skipped = _files_of(source)
        for files, span, size in _groups(found, source):
            splits.append(
                InputSplit(
                    name=f"part-{len(splits):05d}",
                    source=name,
                    kind=source.kind,
                    files=files,
                    text_field=source.text_field,
                    limit=source.limit,
                    drop_near_duplicates=source.near_duplicates == "drop",
                    seed=seed,
                    license=source.license,
                    folder=glob_root(source.path) if source.path else "",
                    span=span,
                    text_lines=source.text_lines,
                    page_seconds=page_seconds,
                    extractor=extractor,
                    stored_bytes=size,
                    encoding=source.encoding,
                    skipped_files=tuple(skipped),
                    function=source.function,
                    arguments=source.arguments,
                )
            )
            skipped = []
    return splits


def source_names(sources: Sequence[Source]) -> list[str]:
    """Names each source for ids and statistics by its name, path or function, and numbers names that are not unique.

    Names hold no credentials of a URI."""
    names: dict[str, None] = {}
    for source in sources:
        base = source.name or shown_name(source.path or source.function or source.kind)
        numbered = (f"{base}#{number}" for number in count(2))
        names[next(name for name in chain([base], numbered) if name not in names)] = None
    return list(names)


def read_split(split: InputSplit) -> Iterator[Document | BadRecord | Skipped]:
    """Reads the documents of a split in order; records that cannot be read become bad records.

    Records that hold no document, such as images in a capture, are skipped, each with its kind.

    Raises:
        UserError: a file cannot be opened, a Parquet file lacks the text field, or a function fails.
    """
    taken = 0
    for place, text in _places(split):
        if isinstance(text, BadRecord | Skipped):
            yield text
            continue
        if taken == split.limit:
            return
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            yield _surrogate(split, place, error)
            continue
        taken += 1
        yield Document(id=f"{split.source}:{place}", source=split.source, text=text)


def _surrogate(split: InputSplit, place: str, error: UnicodeEncodeError) -> BadRecord:
    """Refuses half of a surrogate pair, which JSON and Python can spell and UTF-8 cannot."""
    file, _, offset = place.rpartition(":")
    half = f"has half of a surrogate pair ({error.object[error.start]!a}), which is no character; fix or remove it"
    beginning = error.object[error.start : error.start + 100].encode("utf-8", "backslashreplace").decode()
    where = f"{split.source}:{place}"
    return BadRecord(file or split.source, int(offset) if offset.isdigit() else 0, f"{where} {half}", beginning)


def _places(split: InputSplit) -> Iterator[tuple[str, Item]]:
    if split.kind != "files":
        yield from _function_texts(split)
    elif split.piece:
        for place, text in read_piece(split.piece):
            yield _place(split, split.files[0], place), text
    else:
        with Extractor(split.page_seconds, split.extractor) as extract:
            for file in split.files:
                for place, text in read_file(file, _reading(split, extract), split.span):
                    yield _place(split, file, place), text


def read_places(split: InputSplit, skip: int) -> Generator[tuple[int, Item]]:
    """Reads the records of the only file of a split with their places, without the first `skip`.

    Raises:
        StorageError: the file's storage does not answer.
        UserError: the file cannot be opened, or lacks the text field.
    """
    with Extractor(split.page_seconds, split.extractor) as extract:
        yield from read_file(split.files[0], _reading(split, extract), split.span, skip)


def _reading(split: InputSplit, extract: Extractor) -> Reading:
    return Reading(split.text_field, split.text_lines, extract, split.encoding)


def _place(split: InputSplit, file: str, place: int) -> str:
    return f"{shown_name(relative_name(split.folder, file))}:{place}"


def _function_texts(split: InputSplit) -> Iterator[tuple[str, str]]:
    """Calls the function of a split; yields its texts with their numbers, or its pairs of a name and a text.

    Raises:
        UserError: the function does not exist, raises an exception, or yields something else.
    """
    function = load_function(str(split.function), "source")
    try:
        items = items_within(SOURCE_SECONDS, partial(function, seed=split.seed, **split.arguments))
        for number, item in enumerate(items):
            place, text = item if isinstance(item, tuple) else (str(number), item)
            if not isinstance(text, str):
                raise UserError(f"source {split.function} gave a {type(text).__name__} as text {number}, not a string")
            yield place, text
    except UserError:
        raise
    # The function is the user's code and may raise any exception.
    except Exception as error:
        raise UserError(f"source {split.function} {failure_reason(error)}") from error


def _files_of(source: Source) -> tuple[list[StoredFile], list[str]]:
    """Finds the files of a source that can be read, and the names of those beside them that cannot.

    Raises:
        UserError: there is none, or those that cannot be read are most of the bytes, and the recipe does not skip them.
    """
    if source.path is None:
        return [], []
    matching = find_files(source.path)
    # A path that names one file means that file.
    alone = len(matching) == 1 and matching[0].name.endswith(source.path)
    found = [file for file in matching if format_of(file.name) and (alone or not _is_companion(file.name))]
    if matching and not found:
        suffixes = ", ".join(SUFFIXES)
        raise UserError(f"cannot read {shown_name(matching[0].name)} as text: a corpus source takes {suffixes} files")
    if not found:
        raise UserError(f"{no_match(source.path)}; fix the path of this corpus source")
    if source.split or source.subset:
        return files_of_split(glob_root(source.path), found, source.split, source.subset), []
    skipped = [file for file in matching if file not in found]
    others = [file for file in skipped if not _is_companion(file.name)]
    left_out = sum(file.size for file in others)
    if left_out > sum(file.size for file in found) and not source.skip_other_files:
        raise UserError(
            f"{len(others):,} of the files of {shown_name(source.path)}, {left_out:,} bytes and most of it, are in no "
            f"format that is read, such as {shown_name(others[0].name)}: name the files to read in path, or set "
            f"skip_other_files of this source"
        )
    return found, [shown_name(file.name) for file in skipped]


def _is_companion(name: str) -> bool:
    """Tests for files that describe a folder and are none of its data."""
    return _COMPANION.fullmatch(name.partition("?")[0].rpartition("/")[2]) is not None


def _groups(files: Sequence[StoredFile], source: Source) -> list[tuple[tuple[str, ...], Span | None, int]]:
    """Groups small files up to `SPLIT_BYTES`, and cuts large ones into spans where their format allows it.

    Returns:
        (files, span, bytes) of each group; the bytes of a file that is cut are shared among its spans.
    """
    groups: list[tuple[tuple[str, ...], Span | None, int]] = []
    held: list[str] = []
    size = 0
    for file in files:
        cut = spans(file, source.text_lines, SPLIT_BYTES) if source.kind == "files" and not source.limit else []
        if held and not source.limit and (cut or size + file.size > SPLIT_BYTES):
            groups.append((tuple(held), None, size))
            held, size = [], 0
        if cut:
            ends = [file.size * number // len(cut) for number in range(len(cut) + 1)]
            groups += [
                ((file.name,), span, end - start) for span, start, end in zip(cut, ends[:-1], ends[1:], strict=True)
            ]
        else:
            held.append(file.name)
            size += file.size
    return [*groups, (tuple(held), None, size)] if held or not groups else groups

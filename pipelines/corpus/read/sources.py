"""Where the text comes from: the recipe's sources, cut into splits that tasks read one at a time."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from actors.rewards.function import load_function
from cluster.errors import UserError
from cluster.recipe.corpus import Source
from cluster.run.files import StoredFile, find_files, glob_root, relative_name
from pipelines.corpus.read.bad_record import BadRecord
from pipelines.corpus.read.extractor import Extractor
from pipelines.corpus.read.files import SUFFIXES, Reading, Span, read_file, spans, suffix_of
from pipelines.corpus.read.hf_layout import files_of_split

# Enough work to outweigh starting a task, little enough to share a corpus among many.
SPLIT_BYTES = 8 << 20


@dataclass(frozen=True)
class Document:
    """One text. `id` is "SOURCE:PLACE", the same in every run over the same input."""

    id: str
    source: str
    text: str


@dataclass(frozen=True)
class Split:
    """What one task reads: files of a source, a span of one file, or all that a function gives.

    `folder` is what the names of files in ids start from.
    """

    name: str
    source: str
    kind: str
    files: tuple[str, ...]
    text_field: str
    limit: int | None
    deduplicate: bool
    seed: int
    license: str | None = None
    folder: str = ""
    span: Span | None = None
    text_lines: bool = False
    page_seconds: float = 10.0
    extractor: str = "resiliparse"
    function: str | None = None
    arguments: dict[str, Any] = field(default_factory=dict)


def plan_splits(
    sources: Sequence[Source], seed: int, page_seconds: float = 10.0, extractor: str = "resiliparse"
) -> list[Split]:
    """Cuts every source into splits, in the order of the recipe and of the file names.

    A file of lines or row groups that is larger than a split is cut. A source with a limit is one split: only a single
    reader knows how many documents came before.

    Raises:
        UserError: a path matches no file, or a file of a kind that is not read.
    """
    splits: list[Split] = []
    for source, name in zip(sources, source_names(sources), strict=True):
        for files, span in _groups(_files_of(source), source):
            splits.append(
                Split(
                    name=f"part-{len(splits):05d}",
                    source=name,
                    kind=source.kind,
                    files=files,
                    text_field=source.text_field,
                    limit=source.limit,
                    deduplicate=source.near_duplicates == "drop",
                    seed=seed,
                    license=source.license,
                    folder=glob_root(source.path) if source.path else "",
                    span=span,
                    text_lines=source.text_lines,
                    page_seconds=page_seconds,
                    extractor=extractor,
                    function=source.function,
                    arguments=source.arguments,
                )
            )
    return splits


def source_names(sources: Sequence[Source]) -> list[str]:
    """A name for each source in ids and statistics: its own, path or function, numbered where that is not unique."""
    names: list[str] = []
    for source in sources:
        base = source.name or source.path or source.function or source.kind
        same = sum(name.split("#")[0] == base for name in names)
        names.append(f"{base}#{same + 1}" if same else base)
    return names


def read_split(split: Split) -> Iterator[Document | BadRecord]:
    """The documents of a split, in order, and what stands in place of those that cannot be read.

    Raises:
        UserError: a file cannot be opened, or none of its columns is the text field.
    """
    taken = 0
    for place, text in _places(split):
        if isinstance(text, BadRecord):
            yield text
            continue
        if taken == split.limit:
            return
        taken += 1
        yield Document(id=f"{split.source}:{place}", source=split.source, text=text)


def _places(split: Split) -> Iterator[tuple[str, str | BadRecord]]:
    if split.kind == "files":
        with Extractor(split.page_seconds, split.extractor) as extract:
            reading = Reading(split.text_field, split.text_lines, extract)
            for file in split.files:
                for place, text in read_file(file, reading, split.span):
                    yield f"{relative_name(split.folder, file)}:{place}", text
    else:
        yield from _function_texts(split)


def _function_texts(split: Split) -> Iterator[tuple[str, str]]:
    """What a function gives: texts, numbered, or pairs of a name and a text.

    Raises:
        UserError: there is no such function, it fails, or gives something else.
    """
    function = load_function(str(split.function), "source")
    try:
        for number, given in enumerate(function(seed=split.seed, **split.arguments)):
            place, text = given if isinstance(given, tuple) else (str(number), given)
            if not isinstance(text, str):
                raise UserError(f"source {split.function} gave a {type(text).__name__} as text {number}, not a string")
            yield place, text
    except UserError:
        raise
    # The function is the user's own, and may fail in any way.
    except Exception as error:
        raise UserError(f"source {split.function} raised {type(error).__name__}: {error}") from error


def _files_of(source: Source) -> list[StoredFile]:
    if source.path is None:
        return []
    matching = find_files(source.path)
    found = [file for file in matching if suffix_of(file.name)]
    if matching and not found:
        raise UserError(f"cannot read {matching[0].name} as text: a corpus source takes {', '.join(SUFFIXES)} files")
    if not found:
        raise UserError(f"no {', '.join(SUFFIXES)} file matches {source.path}; mend the path of this corpus source")
    if source.split or source.subset:
        return files_of_split(glob_root(source.path), found, source.split, source.subset)
    return found


def _groups(files: Sequence[StoredFile], source: Source) -> list[tuple[tuple[str, ...], Span | None]]:
    """Small files together, large ones alone and cut where that can be."""
    groups: list[tuple[tuple[str, ...], Span | None]] = []
    held: list[str] = []
    size = 0
    for file in files:
        cut = spans(file, source.text_lines, SPLIT_BYTES) if source.kind == "files" and not source.limit else []
        if held and not source.limit and (cut or size + file.size > SPLIT_BYTES):
            groups.append((tuple(held), None))
            held, size = [], 0
        if cut:
            groups += [((file.name,), span) for span in cut]
        else:
            held.append(file.name)
            size += file.size
    return [*groups, (tuple(held), None)] if held or not groups else groups

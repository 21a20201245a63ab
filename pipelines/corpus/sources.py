"""Where the text comes from: the recipe's sources, cut into splits that tasks read one at a time."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from glob import glob
from pathlib import Path

from cluster.corpus_recipe import Source
from cluster.failures import UserError
from pipelines.corpus.bad import Bad
from pipelines.corpus.files import SUFFIXES, read_file
from pipelines.corpus.packages import chatterbot_dialogues, docstrings, random_facts, standard_library

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
    """What one task reads: some files of a source, or the whole of a source that a package carries."""

    name: str
    source: str
    kind: str
    files: tuple[str, ...]
    text_field: str
    limit: int | None
    deduplicate: bool
    seed: int
    licence: str | None = None


def plan_splits(sources: Sequence[Source], seed: int) -> list[Split]:
    """Cuts every source into splits, in the order of the recipe and of the file names.

    A source with a limit is one split: only a single reader knows how many documents came before.

    Raises:
        UserError: a path matches no file, or a file of a kind that is not read.
    """
    splits: list[Split] = []
    for source, name in zip(sources, source_names(sources), strict=True):
        for files in _groups(_files_of(source), whole=source.limit is not None):
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
                    licence=source.licence,
                )
            )
    return splits


def source_names(sources: Sequence[Source]) -> list[str]:
    """A name a source for ids and statistics: its path or its kind, numbered where that is not unique."""
    names: list[str] = []
    for source in sources:
        base = source.path or source.kind
        same = sum(name.split("#")[0] == base for name in names)
        names.append(f"{base}#{same + 1}" if same else base)
    return names


def read_split(split: Split) -> Iterator[Document | Bad]:
    """The documents of a split, in order, and what stands in place of those that cannot be read.

    Raises:
        UserError: a file cannot be opened, or none of its columns is the text field.
    """
    taken = 0
    for place, text in _places(split):
        if isinstance(text, Bad):
            yield text
            continue
        if taken == split.limit:
            return
        taken += 1
        yield Document(id=f"{split.source}:{place}", source=split.source, text=text)


def _places(split: Split) -> Iterator[tuple[str, str | Bad]]:
    if split.kind == "files":
        for file in split.files:
            for index, text in enumerate(read_file(Path(file), split.text_field)):
                yield f"{Path(file).name}:{index}", text
    elif split.kind == "docstrings":
        yield from docstrings(split.files)
    else:
        yield from ((str(index), text) for index, text in enumerate(_packaged(split.kind, split.seed)))


def _packaged(kind: str, seed: int) -> Iterable[str]:
    if kind == "countries":
        from pipelines.guide.facts import country_documents

        return country_documents(seed)
    if kind == "randfacts":
        return random_facts(seed)
    return chatterbot_dialogues()


def _files_of(source: Source) -> list[Path]:
    if source.kind == "docstrings":
        return standard_library()
    if source.path is None:
        return []
    path = Path(source.path)
    if path.is_dir():
        found = sorted(file for file in path.rglob("*") if file.is_file() and file.name.endswith(SUFFIXES))
    else:
        found = sorted(Path(name) for name in glob(source.path, recursive=True) if Path(name).is_file())
    if not found:
        raise UserError(f"no {', '.join(SUFFIXES)} file matches {source.path}; mend the path of this corpus source")
    strange = next((file for file in found if not file.name.endswith(SUFFIXES)), None)
    if strange:
        raise UserError(f"cannot read {strange} as text: a corpus source takes {', '.join(SUFFIXES)} files")
    # Workers run in another folder than the command.
    return [file.absolute() for file in found]


def _groups(files: list[Path], whole: bool) -> list[tuple[str, ...]]:
    groups: list[list[str]] = [[]]
    size = 0
    for file in files:
        if groups[-1] and not whole and size + file.stat().st_size > SPLIT_BYTES:
            groups.append([])
            size = 0
        groups[-1].append(str(file))
        size += file.stat().st_size
    return [tuple(group) for group in groups]

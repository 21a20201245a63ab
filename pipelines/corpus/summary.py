"""Prints what the stage read, kept and dropped, in tables that fit 80 columns without a break inside a name."""

from collections.abc import Sequence
from pathlib import PurePath

from rich import box
from rich.console import Console
from rich.table import Table

from pipelines.corpus.dedup.split import SPLITS
from pipelines.corpus.report import FIRST_PHASE
from pipelines.corpus.tasks import Report

# Characters of a source's name in a table, and suffixes of files that are not read, at most.
_NAME, _SUFFIXES = 18, 5


def print_summary(stats: Report, console: Console) -> None:
    """Prints a table of the sources, tables of rules, mixture and time, and a summary of the rows."""
    console.print(_sources_table(stats))
    for optional in (_rules_table(stats), _mix_table(stats), _phases_table(stats)):
        if optional.rows:
            console.print(optional)
    if stats["personal_data"]:
        replaced = ", ".join(f"{count:,} {kind}" for kind, count in sorted(stats["personal_data"].items()))
        console.print(f"personal data replaced: {replaced}")
    if repeated := stats.get("repeated_sentences"):
        console.print(f"{repeated:,} sentences removed in spans that the corpus repeats")
    if stats["in_previous_corpora"]:
        console.print(f"{stats['in_previous_corpora']:,} documents dropped that a previous corpus has")
    if contamination := stats.get("contamination"):
        verb = "dropped" if contamination["action"] == "drop" else "counted"
        console.print(
            f"{contamination['documents']:,} documents {verb} that share {contamination['n']} words or more with "
            f"{len(contamination['items']):,} of {contamination['looked_for']:,} evaluation items "
            f"({contamination['too_short']:,} are too short to be found); contamination/ lists the passages"
        )
    if scored := stats.get("classifier"):
        console.print(
            f"quality classifier: trained on {scored['good']:,} good and {scored['bad']:,} bad texts; ranks a good one "
            f"above a bad one in {scored['auc']:.1%} of pairs that it was not trained on"
        )
    for name, source in stats["sources"].items():
        if files := source["skipped_files"]:
            suffixes = sorted({PurePath(file).suffix or "no suffix" for file in files})
            listed = ", ".join(suffixes[:_SUFFIXES]) + (", …" if len(suffixes) > _SUFFIXES else "")
            line = f"{len(files):,} files of {name} are not read, by format or name ({listed}), such as {files[0]}"
            console.print(line, soft_wrap=True, markup=False)
    if stats["not_judged"]:
        most, count = max(stats["not_judged"].items(), key=lambda item: item[1])
        console.print(
            f"{count:,} documents were not judged by the rule {most!r}, among others: no thresholds are published for "
            "their scripts or languages"
        )
    if stats["skipped"]:
        kinds = sorted(stats["skipped"].items(), key=lambda item: -item[1])
        console.print(f"skipped: {', '.join(f'{count:,} of {kind}' for kind, count in kinds)}")
    for line in _unread_lines([item for source in stats["sources"].values() for item in source["unread"]]):
        console.print(line, soft_wrap=True, markup=False)
    if stats["bad"]:
        console.print(f"{stats['bad']:,} records could not be read; quarantine/ lists them with the reasons")
    console.print(
        f"{stats['train_rows']:,} rows of {stats['context']} tokens to train on, {stats['held_out_rows']:,} held out; "
        f"{stats['padding_rate']['train']:.2%} padding, {stats['crop_rate']['train']:.2%} of the documents cut; "
        f"{stats['vocabulary']:,} tokens in the vocabulary; {sum(stats['seconds'].values()):.1f} s"
    )


def _sources_table(stats: Report) -> Table:
    names = ("read", "by rules", "exact", "near", "train", "held out", "tokens", "bytes a token")
    table = _table("Corpus: documents read, dropped and kept", "source", *names)
    for name, source in stats["sources"].items():
        counts = (
            source["gathered"]["documents"],
            sum(source["dropped"].values()),
            source["duplicates"]["exact"],
            source["duplicates"]["near"],
            source["train"]["documents"],
            source["held_out"]["documents"],
            sum(source[split]["tokens"] for split in SPLITS),
        )
        table.add_row(short_name(name), *map(short_count, counts), f"{source['train']['bytes_per_token']:.2f}")
    return table


def short_name(name: str) -> str:
    """Shortens a path or function's name to its last part, and that part, in its middle, to the width of a column."""
    last = name.rstrip("/").rsplit("/", 1)[-1]
    # Names that differ often do so at their ends.
    return last if len(last) <= _NAME else f"{last[: _NAME // 2 - 1]}…{last[-_NAME // 2 :]}"


def short_count(count: int) -> str:
    """Formats a number in at most six characters: whole below 100,000, else to three digits."""
    # 999,500 to three digits is 1M.
    units = ((10**12, 0.9995, "T"), (10**9, 0.9995, "G"), (10**6, 0.9995, "M"), (10**3, 100, "K"))
    size, unit = next(((size, unit) for size, share, unit in units if count >= share * size), (1, ""))
    return f"{count / size:.3g}{unit}" if unit else f"{count:,}"


def _unread_lines(lost: Sequence[Report]) -> list[str]:
    """Names the files that were not read whole; the bytes of several damaged places are added up."""
    lines = []
    for file, size in {item["file"]: item["bytes"] for item in lost}.items():
        unread = sum(item["unread_bytes"] for item in lost if item["file"] == file)
        lines.append(f"not read whole: {min(unread, size):,} of the {size:,} bytes of {file}")
    return lines


def _rules_table(stats: Report) -> Table:
    table = _table("Dropped by rules", "rule", "documents", "share", "bytes", "tokens")
    for reason, count in sorted(stats["dropped"].items(), key=lambda item: -item[1]):
        share = count / stats["gathered"]["documents"]
        lost = short_count(stats["dropped_bytes"][reason]), f"≈{short_count(stats['dropped_tokens'][reason])}"
        table.add_row(reason, short_count(count), f"{share:.2%}", *lost)
    return table


def _mix_table(stats: Report) -> Table:
    table = _table("Mixed by weight", "source", "tokens available", "times read", "tokens", "share", "wanted")
    for name, source in stats.get("mix", {}).items():
        table.add_row(
            short_name(name),
            short_count(source["tokens_available"]),
            f"{source['times_read']:.2f}",
            short_count(source["tokens"]),
            f"{source['share']:.2%}",
            f"{source['share_wanted']:.2%}",
        )
    return table


def _phases_table(stats: Report) -> Table:
    table = _table("Time", "phase", "seconds", "MB/s")
    for phase, value in stats["seconds"].items():
        table.add_row(phase, f"{value:.2f}", f"{stats['megabytes_per_second'][phase]:.2f}")
        if phase == FIRST_PHASE:
            for step, figures in stats["steps"].items():
                table.add_row(f"  {step}", f"{figures['seconds']:.2f}", f"{figures['megabytes_per_second']:.2f}")
    return table


def _table(title: str, first: str, *others: str) -> Table:
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column(first, no_wrap=True)
    for name in others:
        table.add_column(name, justify="right")
    return table

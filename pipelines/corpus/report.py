"""What went in, what came out and where the rest went: `stats.json`, the stage's key figures and a table."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from pipelines.corpus.duplicates import SIGNATURE_ALGORITHM
from pipelines.corpus.select import SPLITS, Selection

Report = dict[str, Any]


def statistics(
    prepared: Sequence[Report],
    tokenised: Sequence[Report],
    selection: Selection,
    context: int,
    vocabulary: int,
    seconds: dict[str, float],
) -> Report:
    """The content of `stats.json`. Token counts leave out end tokens and padding."""
    sources: dict[str, Report] = {}
    for before, after in zip(prepared, tokenised, strict=True):
        source = sources.setdefault(before["source"], _empty_source())
        for key in ("documents", "bytes"):
            source["gathered"][key] += before["found"][key]
        source["licence"] = before["licence"]
        source["bad"] += before["bad"]
        source["personal_data"] = dict(Counter(source["personal_data"]) + Counter(before["personal_data"]))
        source["dropped"] = dict(Counter(source["dropped"]) + Counter(before["dropped"]))
        for split in SPLITS:
            for key in ("documents", "bytes", "tokens"):
                source[split][key] += after[split][key]
    for name, source in sources.items():
        source["duplicates"] = {"exact": selection.exact.get(name, 0), "near": selection.near.get(name, 0)}
        source["known"] = selection.known.get(name, 0)
        for split in SPLITS:
            source[split]["bytes_per_token"] = _ratio(source[split]["bytes"], source[split]["tokens"])
    total = {split: _sum(tokenised, split) for split in SPLITS}
    return {
        "gathered": {
            key: sum(source["gathered"][key] for source in sources.values()) for key in ("documents", "bytes")
        },
        "dropped": dict(sum((Counter(source["dropped"]) for source in sources.values()), Counter())),
        "personal_data": dict(sum((Counter(source["personal_data"]) for source in sources.values()), Counter())),
        "bad": sum(source["bad"] for source in sources.values()),
        "duplicates": {"exact": sum(selection.exact.values()), "near": sum(selection.near.values())},
        "known": sum(selection.known.values()),
        **{f"{split}_{key}": total[split][key] for split in SPLITS for key in ("documents", "bytes", "tokens", "rows")},
        **{f"{split}_bytes_per_token": _ratio(total[split]["bytes"], total[split]["tokens"]) for split in SPLITS},
        "padding_rate": {split: _ratio(total[split]["padding"], total[split]["rows"] * context) for split in SPLITS},
        "crop_rate": {split: _ratio(total[split]["cut"], total[split]["documents"]) for split in SPLITS},
        "context": context,
        "vocabulary": vocabulary,
        "signatures": SIGNATURE_ALGORITHM,
        "sources": sources,
        "seconds": {phase: round(value, 2) for phase, value in seconds.items()},
    }


def key_figures(stats: Report) -> Report:
    """What the manifest keeps of `stats.json`."""
    figures = {f"{split}_{key}": stats[f"{split}_{key}"] for split in SPLITS for key in ("documents", "tokens", "rows")}
    return {
        **figures,
        "dropped": sum(stats["dropped"].values()),
        "exact_duplicates": stats["duplicates"]["exact"],
        "near_duplicates": stats["duplicates"]["near"],
        "held_out_bytes": stats["held_out_bytes"],
        "held_out_bytes_per_token": stats["held_out_bytes_per_token"],
        "padding_rate": stats["padding_rate"]["train"],
        "crop_rate": stats["crop_rate"]["train"],
        "vocabulary": stats["vocabulary"],
    }


def print_summary(stats: Report, console: Console) -> None:
    """A line a source, then what the rows look like."""
    table = Table(title="Corpus")
    table.add_column("source", overflow="fold")
    for name in ("gathered", "by rules", "exact", "near", "train", "held out", "tokens", "bytes/token"):
        table.add_column(name, justify="right")
    for name, source in stats["sources"].items():
        table.add_row(
            name.rsplit("/", 1)[-1],
            f"{source['gathered']['documents']:,}",
            f"{sum(source['dropped'].values()):,}",
            f"{source['duplicates']['exact']:,}",
            f"{source['duplicates']['near']:,}",
            f"{source['train']['documents']:,}",
            f"{source['held_out']['documents']:,}",
            f"{sum(source[split]['tokens'] for split in SPLITS):,}",
            f"{source['train']['bytes_per_token']:.2f}",
        )
    console.print(table)
    if stats["dropped"]:
        console.print(_rules_table(stats))
    if stats["personal_data"]:
        replaced = ", ".join(f"{count:,} {kind}" for kind, count in sorted(stats["personal_data"].items()))
        console.print(f"personal data replaced: {replaced}")
    if stats["known"]:
        console.print(f"{stats['known']:,} documents left out that an earlier corpus has")
    if contamination := stats.get("contamination"):
        verb = "left out" if contamination["action"] == "drop" else "counted"
        console.print(
            f"{contamination['documents']:,} documents {verb} that share {contamination['n']} words or more with "
            f"{len(contamination['items']):,} of {contamination['looked_for']:,} evaluation items "
            f"({contamination['too_short']:,} are too short to be found); contamination/ has the passages"
        )
    if stats["bad"]:
        console.print(f"{stats['bad']:,} records could not be read; quarantine/ says which and why")
    console.print(
        f"{stats['train_rows']:,} rows of {stats['context']} tokens to train on, {stats['held_out_rows']:,} held out; "
        f"{stats['padding_rate']['train']:.2%} padding, {stats['crop_rate']['train']:.2%} of the documents cut; "
        f"{stats['vocabulary']:,} tokens in the vocabulary; {sum(stats['seconds'].values()):.1f} s"
    )


def _rules_table(stats: Report) -> Table:
    table = Table(title="Dropped by rules")
    table.add_column("rule")
    table.add_column("documents", justify="right")
    table.add_column("share", justify="right")
    for reason, count in sorted(stats["dropped"].items(), key=lambda item: -item[1]):
        table.add_row(reason, f"{count:,}", f"{count / stats['gathered']['documents']:.2%}")
    return table


def _empty_source() -> Report:
    return {
        "gathered": {"documents": 0, "bytes": 0},
        "licence": None,
        "bad": 0,
        "personal_data": {},
        "dropped": {},
        **{split: {"documents": 0, "bytes": 0, "tokens": 0} for split in SPLITS},
    }


def _sum(reports: Sequence[Report], split: str) -> Report:
    return {key: sum(report[split][key] for report in reports) for key in reports[0][split]}


def _ratio(part: float, whole: float) -> float:
    return round(part / whole, 4) if whole else 0.0

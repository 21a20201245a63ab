"""What went in, what came out and where the rest went: `stats.json`, the stage's key figures and a table."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from pipelines.corpus.dedup.minhash import SIGNATURE_ALGORITHM
from pipelines.corpus.dedup.split import SPLITS, Selection
from pipelines.corpus.filter import histograms
from pipelines.corpus.tokens.mix import Mixture

Report = dict[str, Any]
# What the first phase reads is as it came; what later ones read is what it kept.
FIRST_PHASE = "prepare"


def statistics(
    prepared: Sequence[Report],
    tokenized: Sequence[Report],
    selection: Selection,
    mixed: Mixture,
    context: int,
    vocabulary: int,
    seconds: dict[str, float],
) -> Report:
    """The content of `stats.json`. Token counts leave out end tokens and padding.

    What was dropped is never encoded: `dropped_tokens` and the tokens of `gathered` are estimated from its bytes, by
    the bytes a token of the same source.

    `seconds` and `megabytes_per_second` of a phase are by the clock and over all workers; those in `steps` are summed
    over the tasks of the first phase, so that they are a core's.
    """
    sources: dict[str, Report] = {}
    spread: dict[str, list[int]] = {}
    for before in prepared:
        for name, counts in before["histograms"].items():
            spread[name] = [sum(pair) for pair in zip(spread.get(name, [0] * len(counts)), counts, strict=True)]
        source = sources.setdefault(before["source"], _empty_source())
        for key in ("documents", "bytes"):
            source["gathered"][key] += before["found"][key]
            source["kept"][key] += before["kept"][key]
        source["license"] = before["license"]
        source["bad"] += before["bad"]
        for key in ("personal_data", "dropped", "dropped_bytes"):
            source[key] = _added(source[key], before[key])
    for name, after in zip(mixed.sources, tokenized, strict=True):
        for split in SPLITS:
            for key in ("documents", "bytes", "tokens"):
                sources[name][split][key] += after[split][key]
    for name, source in sources.items():
        source["duplicates"] = {"exact": selection.exact.get(name, 0), "near": selection.near.get(name, 0)}
        source["known"] = selection.known.get(name, 0)
        for split in SPLITS:
            source[split]["bytes_per_token"] = _ratio(source[split]["bytes"], source[split]["tokens"])
        _estimate_tokens(source)
    total = {split: _sum(tokenized, split) for split in SPLITS}
    gathered, kept = (
        {key: _total(sources, name, key) for key in ("documents", "bytes")} for name in ("gathered", "kept")
    )
    gathered["tokens"] = _total(sources, "gathered", "tokens")
    return {
        "gathered": gathered,
        "kept": kept,
        "histograms": histograms.described(spread),
        **{
            key: _added(*(source[key] for source in sources.values()))
            for key in ("dropped", "dropped_bytes", "dropped_tokens")
        },
        "drop_examples": _examples(prepared),
        "personal_data": _added(*(source["personal_data"] for source in sources.values())),
        "bad": sum(source["bad"] for source in sources.values()),
        "duplicates": {"exact": sum(selection.exact.values()), "near": sum(selection.near.values())},
        **({"mix": mixed.account} if mixed.account else {}),
        "known": sum(selection.known.values()),
        "encoded_documents": mixed.encoded + sum(report["encoded"] for report in tokenized),
        **{f"{split}_{key}": total[split][key] for split in SPLITS for key in ("documents", "bytes", "tokens", "rows")},
        **{f"{split}_bytes_per_token": _ratio(total[split]["bytes"], total[split]["tokens"]) for split in SPLITS},
        "padding_rate": {split: _ratio(total[split]["padding"], total[split]["rows"] * context) for split in SPLITS},
        "crop_rate": {split: _ratio(total[split]["cut"], total[split]["documents"]) for split in SPLITS},
        "context": context,
        "vocabulary": vocabulary,
        "signatures": SIGNATURE_ALGORITHM,
        "sources": sources,
        "seconds": {phase: round(value, 2) for phase, value in seconds.items()},
        "megabytes_per_second": {
            phase: _ratio((gathered if phase == FIRST_PHASE else kept)["bytes"] / 1e6, value)
            for phase, value in seconds.items()
        },
        "steps": {
            step: {"seconds": round(value, 3), "megabytes_per_second": _ratio(gathered["bytes"] / 1e6, value)}
            for step, value in _added(*(report["seconds"] for report in prepared)).items()
        },
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
    for made in (_rules_table(stats), _mix_table(stats), _phases_table(stats)):
        if made.rows:
            console.print(made)
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
    table = _table("Dropped by rules", "rule", "documents", "share", "bytes", "tokens")
    for reason, count in sorted(stats["dropped"].items(), key=lambda item: -item[1]):
        share = count / stats["gathered"]["documents"]
        lost = f"{stats['dropped_bytes'][reason]:,}", f"≈{stats['dropped_tokens'][reason]:,}"
        table.add_row(reason, f"{count:,}", f"{share:.2%}", *lost)
    return table


def _mix_table(stats: Report) -> Table:
    table = _table("Mixed by weight", "source", "tokens available", "times read", "tokens", "share", "wanted")
    for name, source in stats.get("mix", {}).items():
        table.add_row(
            name.rsplit("/", 1)[-1],
            f"{source['tokens_available']:,}",
            f"{source['times_read']:.2f}",
            f"{source['tokens']:,}",
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
    table = Table(title=title)
    table.add_column(first)
    for name in others:
        table.add_column(name, justify="right")
    return table


def _examples(prepared: Sequence[Report]) -> Report:
    """Of every rule the first document that it dropped."""
    found: Report = {}
    for report in prepared:
        for reason, example in report["drop_examples"].items():
            found.setdefault(reason, example)
    return dict(sorted(found.items()))


def _added(*counts: Mapping[str, float]) -> Report:
    total: Report = {}
    for count in counts:
        for name, value in count.items():
            total[name] = total.get(name, 0) + value
    return total


def _total(sources: Mapping[str, Report], name: str, key: str) -> int:
    return sum(source[name][key] for source in sources.values())


def _empty_source() -> Report:
    return {
        "gathered": {"documents": 0, "bytes": 0},
        "kept": {"documents": 0, "bytes": 0},
        "license": None,
        "bad": 0,
        "personal_data": {},
        "dropped": {},
        "dropped_bytes": {},
        **{split: {"documents": 0, "bytes": 0, "tokens": 0} for split in SPLITS},
    }


def _sum(reports: Sequence[Report], split: str) -> Report:
    return {key: sum(report[split][key] for report in reports) for key in reports[0][split]}


def _estimate_tokens(source: Report) -> None:
    kept = {key: sum(source[split][key] for split in SPLITS) for key in ("bytes", "tokens")}
    tokens_a_byte = _ratio(kept["tokens"], kept["bytes"])
    source["gathered"]["tokens"] = round(source["gathered"]["bytes"] * tokens_a_byte)
    source["dropped_tokens"] = {rule: round(size * tokens_a_byte) for rule, size in source["dropped_bytes"].items()}


def _ratio(part: float, whole: float) -> float:
    return round(part / whole, 4) if whole else 0.0

"""Reports what the stage read, kept and dropped: `stats.json`, and the key figures of the manifest."""

from collections.abc import Mapping, Sequence

from pipelines.corpus.dedup.minhash import SIGNATURE_ALGORITHM
from pipelines.corpus.dedup.split import SPLITS, Dropped
from pipelines.corpus.filter import histograms
from pipelines.corpus.tasks import Report
from pipelines.corpus.tokens.mix import Mixture

# The throughput of this phase refers to the bytes read, that of later phases to the bytes kept.
FIRST_PHASE = "prepare"


def statistics(
    prepared: Sequence[Report],
    tokenized: Sequence[Report],
    dropped: Dropped,
    mixture: Mixture,
    context: int,
    vocabulary: int,
    seconds: dict[str, float],
) -> Report:
    """Builds the content of `stats.json`. Token counts exclude end tokens and padding.

    Dropped documents are never encoded: `dropped_tokens` and the tokens of `gathered` are estimated from their bytes
    and the bytes per token of the same source.

    `seconds` and `megabytes_per_second` of a phase are wall-clock figures of all workers together; those in `steps` are
    sums over the tasks of the first phase, hence figures per core.

    Args:
        prepared: reports of the first phase, a report per split.
        tokenized: reports of tokenization, a report per part of the mixture.
        context: tokens of a row.
        vocabulary: size of the tokenizer's vocabulary.
        seconds: the seconds of every phase.
    """
    sources: dict[str, Report] = {}
    bins: dict[str, list[int]] = {}
    for before in prepared:
        for name, counts in before["histograms"].items():
            bins[name] = [sum(pair) for pair in zip(bins.get(name, [0] * len(counts)), counts, strict=True)]
        source = sources.setdefault(before["source"], _empty_source())
        for key in ("documents", "bytes"):
            source["gathered"][key] += before["found"][key]
            source["kept"][key] += before["kept"][key]
        source["license"] = before["license"]
        source["bad"] += before["bad"]
        source["repeated_sentences"] += before.get("repeated_sentences", 0)
        source["unread"] += before["unread"]
        source["skipped_files"] += before["skipped_files"]
        for key in ("personal_data", "dropped", "dropped_bytes", "skipped", "not_judged"):
            source[key] = _added(source[key], before[key])
    for part, after in zip(mixture.parts, tokenized, strict=True):
        for split in SPLITS:
            for key in ("documents", "bytes", "tokens"):
                sources[part.source][split][key] += after[split][key]
    for name, source in sources.items():
        source["duplicates"] = {"exact": dropped.exact.get(name, 0), "near": dropped.near.get(name, 0)}
        source["in_previous_corpora"] = dropped.previous.get(name, 0)
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
        "histograms": histograms.described(bins),
        **{
            key: _added(*(source[key] for source in sources.values()))
            for key in ("dropped", "dropped_bytes", "dropped_tokens")
        },
        "drop_examples": _examples(prepared),
        "personal_data": _added(*(source["personal_data"] for source in sources.values())),
        "skipped": _added(*(source["skipped"] for source in sources.values())),
        "not_judged": _added(*(source["not_judged"] for source in sources.values())),
        "bad": sum(source["bad"] for source in sources.values()),
        "repeated_sentences": sum(source["repeated_sentences"] for source in sources.values()),
        "duplicates": {"exact": sum(dropped.exact.values()), "near": sum(dropped.near.values())},
        **({"mix": mixture.account} if mixture.account else {}),
        "in_previous_corpora": sum(dropped.previous.values()),
        "encoded_documents": mixture.encoded + sum(report["encoded"] for report in tokenized),
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
    """Selects the figures of `stats.json` for the manifest."""
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


def _examples(prepared: Sequence[Report]) -> Report:
    """Selects the first document that each rule dropped."""
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
        "repeated_sentences": 0,
        "unread": [],
        "skipped_files": [],
        "personal_data": {},
        "skipped": {},
        "not_judged": {},
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

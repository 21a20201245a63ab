"""Refuses sources of which too much cannot be read, and a corpus of which too little is left."""

from collections.abc import Iterator, Sequence

from cluster.errors import UserError
from cluster.recipe.corpus import Corpus
from pipelines.corpus.dedup.spans import REASON as REPEATED_SPANS
from pipelines.corpus.dedup.split import Dropped
from pipelines.corpus.filter.rules import recipe_bounds
from pipelines.corpus.tasks import Report, add_counts
from pipelines.data.balance import Loss, require_enough

# Files with bad records that an error names, at most.
_NAMED_FILES = 3


def require_readable(prepared: Sequence[Report], most: float) -> None:
    """Checks that no source has a larger share of bad records, or of unreadable bytes, than `most`.

    Raises:
        UserError: one has; the message quotes the first bad record of some of its files.
    """
    by_source: dict[str, list[Report]] = {}
    for report in prepared:
        by_source.setdefault(report["source"], []).append(report)
    for reports in by_source.values():
        bad = sum(report["bad"] for report in reports)
        records = bad + sum(report["found"]["documents"] for report in reports)
        _require_bytes(reports, most)
        if bad > most * records:
            first = {file: reason for report in reversed(reports) for file, reason in report["first_bad"].items()}
            reasons = [first[file] for file in sorted(first)]
            raise UserError(
                f"{'; '.join(reasons[:_NAMED_FILES])} ({bad:,} of {records:,} records of this source cannot be read, "
                f"in {len(first):,} files, and corpus.max_bad_share lets {most:g} of them be left out)"
            )


def _require_bytes(reports: Sequence[Report], most: float) -> None:
    """Raises a UserError if damage makes a larger share of a source's bytes unreadable than `most`."""
    lost = [item for report in reports for item in report["unread"]]
    there, unread = sum(report["stored_bytes"] for report in reports), sum(item["unread_bytes"] for item in lost)
    if unread > most * there:
        raise UserError(
            f"{lost[0]['reason']} ({unread:,} of {there:,} bytes of this source cannot be read, in {len(lost):,} "
            f"places, and corpus.max_bad_share lets {most:g} of them be left out)"
        )


def require_documents(corpus: Corpus, prepared: Sequence[Report], dropped: Dropped | None = None) -> None:
    """Requires a document to train on and one to hold out.

    Args:
        prepared: reports of the first phase.
        dropped: the documents that deduplication dropped; None before it.

    Raises:
        UserError: fewer are left; the message counts the documents that were read by their outcome.
    """
    left = sum(report["kept"]["documents"] for report in prepared) if dropped is None else dropped.left
    unread = sum(item["unread_bytes"] for report in prepared for item in report["unread"])
    others = sum(len(report["skipped_files"]) for report in prepared)
    besides = [
        *(f"{count:,} records skipped: {kind}" for kind, count in add_counts(prepared, "skipped").items()),
        *([f"{unread:,} bytes of damaged files not read"] if unread else []),
        *([f"{others:,} files in formats that are not read"] if others else []),
    ]
    add = "raise limit of the sources or add some" if any(source.limit for source in corpus.sources) else "add sources"
    losses = list(_losses(corpus, prepared, dropped))
    require_enough("documents of corpus.sources", left, losses, 2, "one to train on and one to hold out", add, besides)


def _losses(corpus: Corpus, prepared: Sequence[Report], dropped: Dropped | None) -> Iterator[Loss]:
    first = next((reason for report in prepared for reason in report["first_bad"].values()), None)
    yield Loss("cannot be read", sum(report["bad"] for report in prepared), f"fix what is wrong, first: {first}")
    by_rule, rules = add_counts(prepared, "dropped"), {rule.reason: rule for rule in recipe_bounds(corpus)}
    for reason, count in by_rule.items():
        remedy = "set corpus.rules.c4.repeated_spans=false" if reason == REPEATED_SPANS else rules[reason].remedy
        yield Loss(f"rule {reason}", count, remedy)
    if dropped:
        contaminated, previous = "change corpus.decontaminate", "change corpus.previous_corpora"
        similar = f"raise corpus.near_duplicate_similarity (now {corpus.near_duplicate_similarity:g})"
        yield Loss("evaluation items", dropped.contaminated, contaminated)
        yield Loss("in a previous corpus", sum(dropped.previous.values()), previous)
        yield Loss("exact duplicates", sum(dropped.exact.values()))
        yield Loss("near-duplicates", sum(dropped.near.values()), similar)

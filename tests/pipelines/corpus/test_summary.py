"""The stage's printed summary: at 80 columns no name or number is broken, and large numbers are short."""

import io
from typing import Any

import pytest
from rich.console import Console

from pipelines.corpus.summary import print_summary, short_count, short_name

LONG = "s3://bucket/folder-of-a-team/CC-MAIN-2026-30-segments-of-web-pages"


def source(documents: int, unread: list[dict[str, Any]]) -> dict[str, Any]:
    split = {"documents": documents, "bytes": 4 * documents, "tokens": 987 * documents, "bytes_per_token": 3.98}
    return {
        "gathered": split,
        "dropped": {"words per line": documents},
        "duplicates": {"exact": documents, "near": documents},
        "train": split,
        "held_out": split,
        "skipped_files": [f"{LONG}/notes about the segments.pdf"],
        "unread": unread,
    }


def printed(documents: int) -> str:
    unread = {"file": f"{LONG}/part-00000.jsonl.gz", "unread_bytes": 5_000, "bytes": 123_456_789}
    sources = {LONG: source(documents, [unread]), f"{LONG}-more": source(7, [])}
    share = {"tokens_available": documents, "times_read": 1.5, "tokens": documents, "share": 0.5, "share_wanted": 0.5}
    stats = {
        "sources": sources,
        "gathered": {"documents": documents, "bytes": 1},
        "dropped": {"fraction of words in stop words": documents},
        "dropped_bytes": {"fraction of words in stop words": 4000 * documents},
        "dropped_tokens": {"fraction of words in stop words": 1000 * documents},
        "mix": dict.fromkeys(sources, share),
        "seconds": {"prepare": 123_456.78, "train the tokenizer": 1.0},
        "megabytes_per_second": {"prepare": 1.0, "train the tokenizer": 1.0},
        "steps": {"replace personal data": {"seconds": 1.0, "megabytes_per_second": 123_456.78}},
        "personal_data": {},
        "in_previous_corpora": 0,
        "not_judged": {},
        "skipped": {},
        "bad": 0,
        **dict.fromkeys(("train_rows", "held_out_rows", "context", "vocabulary"), documents),
        **{name: {"train": 0.01} for name in ("padding_rate", "crop_rate")},
    }
    out = io.StringIO()
    print_summary(stats, Console(file=out, width=80))
    return out.getvalue()


@pytest.mark.parametrize("documents", [1, 512, 999_999, 12_345_678_901])
def test_at_80_columns_no_name_or_number_is_broken(documents: int) -> None:
    lines = printed(documents).splitlines()
    paths = [line for line in lines if LONG in line]
    assert [line for line in lines if len(line) > 80 and line not in paths] == []
    assert [line.rstrip() for line in paths][2:] == [
        f"not read whole: 5,000 of the 123,456,789 bytes of {LONG}/part-00000.jsonl.gz"
    ]
    assert sum(short_name(LONG) in line for line in lines) == 2
    assert sum(short_name(f"{LONG}-more") in line for line in lines) == 2
    assert "1 files of " in printed(documents)
    assert "are not read, by format or name (.pdf), such as " in printed(documents)
    (row,) = (line.split() for line in lines if line.strip().startswith("fraction of words in stop words"))
    assert row[6] == short_count(documents)
    assert not any("…" in line.replace(short_name(LONG), "").replace(short_name(f"{LONG}-more"), "") for line in lines)


def test_numbers_and_names_keep_what_tells_them_apart() -> None:
    counts = {0: "0", 99_999: "99,999", 100_000: "100K", 999_400: "999K", 999_500: "1M", 123_456_789: "123M"}
    counts |= {999_950_000: "1G", 2_500_000_000: "2.5G", 10**13: "10T"}
    assert {count: short_count(count) for count in counts} == counts
    assert short_name("/a/books") == "books"
    assert short_name(LONG) == "CC-MAIN-…web-pages"
    assert short_name("/data/gutenberg-english") == "gutenberg-english"

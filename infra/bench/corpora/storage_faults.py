"""Builds a corpus from an object store that fails at random, and compares it with the undisturbed one.

python -m infra.bench.corpora.storage_faults [--documents 2000] [--every 20] [--runs 3] [--seed 1] [--only …]

The documents are in JSON lines, packed and not, Parquet, captures and texts, of which all but one file are read by S3's
protocol and a large one by HTTP. One request of `--every` fails: with 403, 500, a closed connection, an answer that is
cut or shorter than asked for, or one that stops for a while; in a further run a third of all requests fail, and in the
last one a file is refused until the stage has ended. A run that ends with 0 must leave the bytes of the undisturbed
corpus. One that ends with 1 must say in one line what could not be read and leave no corpus, and the same command
finishes it. Anything else is wrong, and ends the bench with 1. It takes some ten minutes on two cores.
"""

import argparse
import gzip
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from infra.bench.corpora.documents import documents, page
from infra.bench.corpora.faulty_store import FaultyStore, serving
from infra.bench.corpora.stage_run import hashes, start, write_recipe
from infra.bench.corpora.steps import capture

DOCUMENTS, EVERY, RUNS, SLOW = 2000, 20, 3, 2.0
# Documents of a file, so that there are many requests; and commands after which a run counts as not finished.
_A_FILE, _ATTEMPTS = 8, 8
_REFUSED = "lines/00001"
# One of so many requests fails in the run with many faults.
_MANY = 3
# What a busy machine says before the stage begins, and how often it is asked again.
_NOT_STARTED, _STARTS = "did not start within", 5


def main(count: int, every: int, runs: int, seed: int, only: str | None = None) -> int:
    """Prints a line for each run; returns the number of wrong ones."""
    with tempfile.TemporaryDirectory(prefix="triptych-store-") as name:
        folder = Path(name)
        with serving(folder / "store", seed, SLOW) as store:
            recipe = _recipe(folder, store, count)
            said, _ = _run(recipe)
            expected = hashes(folder / "run")
            if said is not None or not expected:
                print(f"undisturbed: wrong, it ended with: {said}")
                return 1
            print(f"undisturbed: {store.requests:,} requests, {len(expected)} files", flush=True)
            wrong = 0
            if only in (None, "some"):
                wrong += sum(_disturbed(recipe, store, expected, every) for _ in range(runs))
            if only in (None, "many"):
                wrong += _disturbed(recipe, store, expected, _MANY)
            if only in (None, "refused"):
                wrong += _refused(recipe, store, expected)
            return wrong


def _disturbed(recipe: Path, store: FaultyStore, expected: dict[str, str], every: int) -> bool:
    """Builds the corpus with faults; returns whether anything is wrong."""
    store.every = every
    try:
        return _finished(f"1 of {every} fails", recipe, store, expected, [])
    finally:
        store.every = 0


def _refused(recipe: Path, store: FaultyStore, expected: dict[str, str]) -> bool:
    """Builds the corpus while a file is refused, and then without faults; returns whether anything is wrong."""
    shutil.rmtree(recipe.parent / "run")
    store.refused = _REFUSED
    said, problems = _run(recipe)
    store.refused = ""
    if said is None:
        problems.append(f"ended with 0 without {_REFUSED}")
    elif _REFUSED not in said:
        problems.append(f"did not name {_REFUSED}: {said}")
    return _finished("a file is refused, then given", recipe, store, expected, problems, remove=False)


def _finished(
    name: str,
    recipe: Path,
    store: FaultyStore,
    expected: dict[str, str],
    problems: list[str],
    remove: bool = True,
) -> bool:
    """Repeats the command until it ends with 0, prints what came of it, and returns whether anything is wrong."""
    if remove:
        shutil.rmtree(recipe.parent / "run")
    store.reset()
    begun, attempts, said = time.monotonic(), 0, ""
    while said is not None and attempts < _ATTEMPTS:
        attempts += 1
        said, found = _run(recipe)
        problems += found
        if said:
            print(f"  ended with 1: {said}", flush=True)
    different = _different(expected, hashes(recipe.parent / "run"))
    if said is not None:
        problems.append(f"not finished after {attempts} commands")
    elif different:
        problems.append(f"other bytes than undisturbed in {', '.join(different)}")
    faults = ", ".join(f"{count} {kind}" for kind, count in sorted(store.faults.items())) or "none"
    verdict = "; ".join(problems) or f"the same {len(expected)} files"
    print(
        f"{name}: {verdict}; {store.requests:,} requests, faults: {faults}; {attempts} commands, "
        f"{time.monotonic() - begun:.0f} s",
        flush=True,
    )
    return bool(problems)


def _run(recipe: Path) -> tuple[str | None, list[str]]:
    """Runs the stage; returns what it said if it ended with 1, else None, and what is wrong with how it ended."""
    log = recipe.with_name("log")
    for _ in range(_STARTS):
        log.write_bytes(b"")
        code = start(recipe, 2).wait()
        if code == 0:
            return None, []
        text = log.read_text(encoding="utf-8", errors="replace")
        if _NOT_STARTED not in text:
            break
    lines = [line for line in text.splitlines() if line.strip()]
    problems = [] if code == 1 else [f"ended with {code}"]
    if "Traceback" in text:
        problems.append("showed a traceback")
    said = " ".join(lines[-8:])
    if "the same command reads it again" not in " ".join(said.split()):
        problems.append(f"did not say that the same command reads the rest: {said}")
    if (recipe.parent / "run" / "corpus" / "manifest.json").exists():
        problems.append("left a finished corpus")
    return said, problems


def _different(expected: dict[str, str], found: dict[str, str]) -> list[str]:
    return sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))


def _recipe(folder: Path, store: FaultyStore, count: int) -> Path:
    """Fills the store, and writes the recipe of a corpus of all that is in it."""
    bucket = store.folder / "bucket"
    texts = documents(count)
    share = count // 6
    for kind, suffix in (("lines", "jsonl"), ("packed", "jsonl.gz"), ("tables", "parquet"), ("pages", "warc.gz")):
        _write(bucket / kind, suffix, islice(texts, share))
    _write(bucket / "texts", "txt", islice(texts, share), at_once=1)
    (bucket / "whole.jsonl").write_bytes(_lines(list(texts)))
    recipe = write_recipe(folder, bucket)
    given = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    kinds = ("lines", "packed", "tables", "pages", "texts")
    paths = [*(store.s3(f"bucket/{kind}") for kind in kinds), store.http("bucket/whole.jsonl")]
    given["corpus"]["sources"] = [{"kind": "files", "path": path} for path in paths]
    recipe.write_text(yaml.safe_dump(given), encoding="utf-8")
    return recipe


def _write(folder: Path, suffix: str, texts: Iterator[str], at_once: int = _A_FILE) -> None:
    folder.mkdir(parents=True)
    number = 0
    while some := list(islice(texts, at_once)):
        path = folder / f"{number:05d}.{suffix}"
        if suffix == "parquet":
            pq.write_table(pa.table({"text": some}), path, row_group_size=2)
        elif suffix == "txt":
            path.write_text(some[0], encoding="utf-8")
        elif suffix == "warc.gz":
            captures = (capture(place, page(text)) for place, text in enumerate(some))
            path.write_bytes(b"".join(map(gzip.compress, captures)))
        else:
            path.write_bytes(gzip.compress(_lines(some), mtime=0) if suffix.endswith("gz") else _lines(some))
        number += 1


def _lines(texts: Sequence[str]) -> bytes:
    return "".join(f"{json.dumps({'text': text})}\n" for text in texts).encode()


if __name__ == "__main__":
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--documents", type=int, default=DOCUMENTS, help="of 4 KB each")
    words.add_argument("--every", type=int, default=EVERY, help="one of so many requests fails")
    words.add_argument("--runs", type=int, default=RUNS, help="runs with one failing request of `--every`")
    words.add_argument("--seed", type=int, default=1, help="of the faults")
    words.add_argument("--only", choices=["some", "many", "refused"], help="one kind of run, all by default")
    given = words.parse_args()
    sys.exit(bool(main(given.documents, given.every, given.runs, given.seed, given.only)))

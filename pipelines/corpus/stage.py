"""The corpus stage: gather, clean, judge -> drop duplicates -> train the tokenizer -> mix -> tokenize, pack -> shard.

documents/part-*.parquet                 the text that is used: id, source, split, text
tokenizer/                               a Hugging Face tokenizer directory with the chat template
index/                                   hashes and signatures, for later corpora (corpus.previous_corpora)
duplicates/part-*.parquet                which document stands for which
contamination/part-*.parquet             with corpus.decontaminate: the passages that evaluation files have too
shards/{train,held_out}/shard-*.parquet  packed rows: row_id, input_ids, document_ids
stats.json                               what went in, what came out, where the rest went
tokens/part-*.parquet                    every document's token ids, for the next build of this corpus
measured/part-*.parquet                  with corpus.rules or languages: every document cleaned, with its signals
excluded/part-*.parquet                  with corpus.keep_excluded: what the rules dropped: id, source, reason, text
quarantine/part-*.jsonl                  records that cannot be read: file, offset, reason, excerpt
work/                                    what the phases hand on, until the last one is through
"""

import json
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from itertools import chain
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from cluster.errors import UserError
from cluster.recipe.recipe import Recipe
from cluster.run.folder import RunFolder, file_fingerprint, fingerprint, write_json
from cluster.run.stages import Result
from pipelines.corpus.clean.language import known_languages
from pipelines.corpus.dedup.split import TRAIN, document_position
from pipelines.corpus.dedup.stage import Prepared, check_readable, choose
from pipelines.corpus.filter.cache import Measuring
from pipelines.corpus.filter.stage import Preparation
from pipelines.corpus.read.sources import Split, plan_splits
from pipelines.corpus.report import FIRST_PHASE, Report, key_figures, print_summary, statistics
from pipelines.corpus.tasks import Task, run_tasks, written_to_the_side
from pipelines.corpus.tokens.cache import Tokens
from pipelines.corpus.tokens.mix import Mixture, weigh
from pipelines.corpus.tokens.shards import Sharding
from pipelines.corpus.tokens.stage import Tokenization, chosen_documents
from pipelines.corpus.tokens.train import (
    SAMPLE_BYTES,
    document_end,
    save_tokenizer,
    save_tokenizer_of,
    train_tokenizer,
)

MEASURED = "measured"
TOKENS = "tokens"


def run(recipe: Recipe, run: RunFolder, out: Path) -> Result:
    """Builds the corpus in `out`, going on from whatever an interrupted attempt left there.

    Raises:
        UserError: a source is missing or damaged, or nothing is left of it, and then `out` is removed; or what is said
            to be known, or evaluated with, cannot be read.
    """
    console = Console()
    stats_file = out / "stats.json"
    if not stats_file.exists():
        for name in (MEASURED, TOKENS):
            _take_over(run.path(out.name) / name, out / name)
        write_json(stats_file, _build(recipe, out, console))
    shutil.rmtree(out / "work", ignore_errors=True)
    stats = json.loads(stats_file.read_text(encoding="utf-8"))
    print_summary(stats, console)
    return Result(metrics=key_figures(stats))


def _take_over(finished: Path, folder: Path) -> None:
    """Links what a finished corpus measured or encoded into the one being built, which reads what still fits."""
    for file in finished.glob("*.parquet"):
        folder.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            (folder / file.name).hardlink_to(file)


def _build(recipe: Recipe, out: Path, console: Console) -> Report:
    seconds: dict[str, float] = {}
    corpus, work = recipe.corpus, out / "work"
    check_readable(corpus)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        with _of_no_use_if_wrong(out):
            _require_known(corpus.languages)
            splits = plan_splits(corpus.sources, recipe.seed, corpus.page_seconds, corpus.extractor)
            preparation = _preparation(recipe, splits, out)
            with _timed(FIRST_PHASE, seconds):
                prepared = _prepare(preparation, recipe, work, progress)
            _require_readable(prepared, corpus.max_bad_share)
            _require_documents(prepared, corpus.min_words)
        files = tuple(preparation.output(split) for split in splits)
        with _timed("duplicates", seconds):
            fingerprints = tuple(report["fingerprint"] for report in prepared)
            sources = tuple(split.source for split in splits)
            parts = [Prepared(*part) for part in zip(files, fingerprints, sources, strict=True)]
            selection, choices, contamination = choose(recipe, parts, out, progress)
        with _timed("tokenizer", seconds):
            vocabulary = _tokenizer(recipe, files, choices, selection.train_bytes, out / "tokenizer")
        tokenizer = out / "tokenizer" / "tokenizer.json"
        tokens = Tokens(out / TOKENS, tokenizer, file_fingerprint(tokenizer))
        mixed = Mixture(files, tuple(choices), sources, fingerprints)
        if any(source.weight for source in corpus.sources):
            with _timed("mix", seconds):
                mixed = weigh(mixed, recipe, tokens, work, progress)
        with _timed("tokenize", seconds):
            tokenization = Tokenization(
                mixed.prepared,
                mixed.choices,
                tokens,
                work / "rows",
                out / "documents",
                recipe.model.context,
                document_end(out / "tokenizer"),
            )
            tokenized = _tokenize(tokenization, mixed.fingerprints, recipe, work, progress)
        with _timed("shards", seconds):
            _shard(tokenization, tokenized, recipe, out, progress)
    stats = statistics(prepared, tokenized, selection, mixed, recipe.model.context, vocabulary, seconds)
    return {**stats, "contamination": contamination} if contamination else stats


def _preparation(recipe: Recipe, splits: Sequence[Split], out: Path) -> Preparation:
    corpus = recipe.corpus
    return Preparation(
        splits=tuple(splits),
        folder=out / "work" / "prepared",
        quarantine=out / "quarantine",
        min_words=corpus.min_words,
        measuring=Measuring(corpus.rules, tuple(corpus.personal_data), bool(corpus.languages)),
        languages=tuple(corpus.languages),
        language_probability=corpus.language_probability,
        measured=out / MEASURED if corpus.rules or corpus.languages else None,
        excluded=out / "excluded" if corpus.keep_excluded else None,
    )


def _prepare(preparation: Preparation, recipe: Recipe, work: Path, progress: Progress) -> list[Report]:
    fields = {"min_words", "rules", "languages", "language_probability", "personal_data", "keep_excluded"}
    judgement = recipe.corpus.model_dump(include=fields)
    parts = [
        Task(
            split.name,
            fingerprint([asdict(split), judgement]),
            preparation.outputs(split),
        )
        for split in preparation.splits
    ]
    return run_tasks("read and clean", work / "done" / "prepare", parts, preparation, progress, _deadline(recipe))


def _require_known(languages: Sequence[str]) -> None:
    unknown = next((language for language in languages if language not in known_languages()), None)
    if unknown:
        raise UserError(f"corpus.languages: {unknown!r} is none of {', '.join(known_languages())}")


def _require_readable(prepared: Sequence[Report], most: float) -> None:
    """Raises a UserError that names the first bad record of a source that has more than the share allowed."""
    for source in dict.fromkeys(report["source"] for report in prepared):
        reports = [report for report in prepared if report["source"] == source]
        bad = sum(report["bad"] for report in reports)
        records = bad + sum(report["found"]["documents"] for report in reports)
        if bad > most * records:
            first = next(report["first_bad"] for report in reports if report["bad"])
            raise UserError(
                f"{first} ({bad:,} of {records:,} records of this source cannot be read, "
                f"and corpus.max_bad_share lets {most:g} of them be left out)"
            )


def _require_documents(prepared: Sequence[Report], min_words: int) -> None:
    if any(report["kept"]["documents"] for report in prepared):
        return
    found = sum(report["found"]["documents"] for report in prepared)
    raise UserError(
        f"the corpus has no documents left: {found} were read and every one was dropped by the quality rules; "
        f"add sources or lower corpus.min_words (now {min_words})"
    )


def _tokenizer(recipe: Recipe, files: Sequence[Path], choices: Sequence[Path], train_bytes: int, folder: Path) -> int:
    """Trains the tokenizer unless it is there or the model to start from has one; returns how many tokens it knows."""
    model = recipe.model
    if not folder.exists():
        with written_to_the_side(folder) as side:
            shutil.rmtree(side, ignore_errors=True)
            if model.start_from:
                save_tokenizer_of(model.start_from, side, model.context)
            else:
                share = min(1.0, SAMPLE_BYTES / train_bytes)
                sample = _sample(files, choices, share, recipe.seed)
                tokenizer = train_tokenizer(sample, model.vocabulary, recipe.corpus.tokenizer)
                save_tokenizer(tokenizer, side, model.context)
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    return len(content["model"]["vocab"])


def _sample(files: Sequence[Path], choices: Sequence[Path], share: float, seed: int) -> Iterator[str]:
    parts = (chosen_documents(file, choice, TRAIN) for file, choice in zip(files, choices, strict=True))
    for batch in chain.from_iterable(parts):
        for text, digest in zip(batch["text"].to_pylist(), batch["digest"].to_pylist(), strict=True):
            # Another seed than the held-out split's: that one's positions below its share are not here.
            if document_position(digest, seed + 1) < share:
                yield text


def _tokenize(
    tokenization: Tokenization, prepared: Sequence[str], recipe: Recipe, work: Path, progress: Progress
) -> list[Report]:
    tokens = tokenization.tokens
    parts = [
        Task(
            file.stem,
            fingerprint([prepared[index], file_fingerprint(choices), tokens.fingerprint, tokenization.context]),
            (
                tokens.file(file),
                tokenization.documents_file(index),
                tokenization.rows_file(index, "train"),
                tokenization.rows_file(index, "held_out"),
            ),
        )
        for index, (file, choices) in enumerate(zip(tokenization.prepared, tokenization.choices, strict=True))
    ]
    return run_tasks("tokenize and pack", work / "done" / "tokenize", parts, tokenization, progress, _deadline(recipe))


def _shard(
    tokenization: Tokenization, tokenized: Sequence[Report], recipe: Recipe, out: Path, progress: Progress
) -> None:
    names = ("train", "held_out")
    every = range(len(tokenized))
    sharding = Sharding(
        folder=out / "shards",
        files={name: tuple(tokenization.rows_file(index, name) for index in every) for name in names},
        counts={name: tuple(report[name]["rows"] for report in tokenized) for name in names},
        context=recipe.model.context,
        seed=recipe.seed,
    )
    rows = [report["fingerprints"] for report in tokenized]
    parts = [
        Task(f"{split}-{number:05d}", fingerprint([rows, recipe.seed]), (sharding.path(index),))
        for index, (split, number) in enumerate(sharding.shards())
    ]
    run_tasks("shuffle and shard", out / "work" / "done" / "shards", parts, sharding, progress, _deadline(recipe))


@contextmanager
def _of_no_use_if_wrong(out: Path) -> Iterator[None]:
    """Removes what was made of sources that turn out to be wrong: mended, they are other sources."""
    try:
        yield
    except UserError:
        shutil.rmtree(out, ignore_errors=True)
        raise


def _deadline(recipe: Recipe) -> float:
    return recipe.cluster.deadline_seconds


@contextmanager
def _timed(phase: str, seconds: dict[str, float]) -> Iterator[None]:
    start = time.monotonic()
    yield
    seconds[phase] = time.monotonic() - start

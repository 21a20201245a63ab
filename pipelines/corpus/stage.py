"""Corpus stage: prepare -> deduplicate and split -> train the tokenizer -> mix -> tokenize and pack -> shard.

With C4's rules, repeated spans of sentences are removed before deduplication.

documents/part-*.parquet                 documents used: id, source, split, text
tokenizer/                               Hugging Face tokenizer directory with the chat template
index/                                   hashes and signatures, for later corpora (corpus.previous_corpora)
duplicates/part-*.parquet                documents in clusters of duplicates, each with the one that stays in its place
contamination/part-*.parquet             with corpus.decontaminate: passages shared with evaluation files
shards/{train,held_out}/shard-*.parquet  packed rows: row_id, input_ids, document_ids
stats.json                               counts of documents, bytes and tokens, by source and by reason
tokens/part-*.parquet                    token ids of every document, for the next build of this corpus
signals/part-*.parquet                   with corpus.rules or languages: cleaned documents with their signals
classifier/                              with corpus.classifier: its weights, and how well it tells examples apart
excluded/part-*.parquet                  with corpus.keep_excluded: documents dropped by rules: id, source, reason, text
quarantine/part-*.jsonl                  records that cannot be read: file, offset, reason, excerpt
work/                                    intermediate files, until the stage is finished
"""

import json
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from rich.console import Console

from cluster.errors import UserError
from cluster.recipe.recipe import Recipe
from cluster.run.atomic import write_json
from cluster.run.folder import RunFolder, file_fingerprint
from cluster.run.stages import Result
from pipelines.corpus.checks import require_documents, require_readable
from pipelines.corpus.clean.language import known_languages
from pipelines.corpus.cut import cut_files
from pipelines.corpus.dedup.span_stage import remove_repeated_spans
from pipelines.corpus.dedup.stage import check_inputs, deduplicate
from pipelines.corpus.examples import train_classifier
from pipelines.corpus.prepare import prepare
from pipelines.corpus.read.sources import plan_splits, source_names
from pipelines.corpus.report import FIRST_PHASE, key_figures, statistics
from pipelines.corpus.summary import print_summary
from pipelines.corpus.tables import Part
from pipelines.corpus.tasks import Report, phase_progress
from pipelines.corpus.tokens.cache import TokenCache
from pipelines.corpus.tokens.mix import Mixture, weigh
from pipelines.corpus.tokens.sample import sample
from pipelines.corpus.tokens.shards import write_shards
from pipelines.corpus.tokens.stage import tokenize
from pipelines.corpus.tokens.train import make_tokenizer

# Folders of a finished corpus whose files the next build reuses where they still fit.
SIGNALS = "signals"
TOKENS = "tokens"


def run(recipe: Recipe, run: RunFolder, out: Path) -> Result:
    """Builds the corpus in `out`, continuing from whatever an interrupted attempt left there.

    Raises:
        UserError: a source is missing or damaged, or fewer than two documents pass the filters, and then `out` is
            removed; or a previous corpus or an evaluation file cannot be read, or fewer than two documents are left
            without duplicates.
    """
    console = Console()
    stats_file = out / "stats.json"
    if not stats_file.exists():
        for name in (SIGNALS, TOKENS):
            _reuse(run.path(out.name) / name, out / name)
        write_json(stats_file, _build(recipe, out, console))
    shutil.rmtree(out / "work", ignore_errors=True)
    stats = json.loads(stats_file.read_text(encoding="utf-8"))
    print_summary(stats, console)
    return Result(metrics=key_figures(stats))


def _build(recipe: Recipe, out: Path, console: Console) -> Report:
    seconds: dict[str, float] = {}
    corpus, work = recipe.corpus, out / "work"
    check_inputs(corpus)
    with phase_progress(console) as progress:
        with _removed_on_error(out):
            _require_known(corpus.languages)
            splits = plan_splits(corpus.sources, recipe.seed, corpus.page_seconds, corpus.extractor)
            classifier: tuple[Path, str] | None = None
            scored: Report = {}
            if corpus.classifier:
                with _timed("train the classifier", seconds):
                    file, digest, scored = train_classifier(corpus.classifier, recipe.seed, out / "classifier")
                classifier = file, digest
            with _timed(FIRST_PHASE, seconds):
                splits = cut_files(splits, work / "cut", progress, recipe.cluster.deadline_seconds)
                prepared, files = prepare(recipe, splits, out, progress, classifier)
            require_readable(prepared, corpus.max_bad_share)
            require_documents(corpus, prepared)
        parts = [
            Part(file, report["fingerprint"], split.source, split.drop_near_duplicates)
            for file, report, split in zip(files, prepared, splits, strict=True)
        ]
        if corpus.rules and corpus.rules.c4 and corpus.rules.c4.repeated_spans:
            with _timed("remove repeated sentences", seconds):
                parts, prepared = remove_repeated_spans(recipe, parts, prepared, out, progress)
            require_documents(corpus, prepared)
        with _timed("deduplicate", seconds):
            dropped, assignments, contamination = deduplicate(recipe, parts, out, progress)
        require_documents(corpus, prepared, dropped)
        with _timed("train the tokenizer", seconds):
            texts = sample(recipe, parts, assignments, dropped.train_bytes, work, progress)
            vocabulary = make_tokenizer(recipe, texts, out / "tokenizer")
        tokenizer = out / "tokenizer" / "tokenizer.json"
        tokens = TokenCache(out / TOKENS, tokenizer, file_fingerprint(tokenizer))
        mixture = Mixture(tuple(parts), assignments)
        if any(source.weight for source in corpus.sources):
            weights = {
                name: source.weight or 0.0
                for name, source in zip(source_names(corpus.sources), corpus.sources, strict=True)
            }
            with _timed("mix", seconds):
                mixture = weigh(mixture, weights, recipe, tokens, work, progress)
        with _timed("tokenize", seconds):
            rows, tokenized = tokenize(recipe, mixture, tokens, out, progress)
        with _timed("shard", seconds):
            write_shards(recipe, rows, tokenized, out, progress)
    stats = statistics(prepared, tokenized, dropped, mixture, recipe.model.context, vocabulary, seconds)
    optional = {"contamination": contamination, "classifier": scored}
    return {**stats, **{name: found for name, found in optional.items() if found}}


def _reuse(finished: Path, folder: Path) -> None:
    """Links the files of a finished corpus's folder into that of the new build."""
    for file in finished.glob("*.parquet"):
        folder.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            (folder / file.name).hardlink_to(file)


def _require_known(languages: Sequence[str]) -> None:
    unknown = next((language for language in languages if language not in known_languages()), None)
    if unknown:
        raise UserError(f"corpus.languages: {unknown!r} is none of {', '.join(known_languages())}")


@contextmanager
def _removed_on_error(out: Path) -> Iterator[None]:
    """Removes the folder if the sources are wrong: corrected, they are other sources."""
    try:
        yield
    except UserError:
        shutil.rmtree(out, ignore_errors=True)
        raise


@contextmanager
def _timed(phase: str, seconds: dict[str, float]) -> Iterator[None]:
    start = time.monotonic()
    yield
    seconds[phase] = time.monotonic() - start

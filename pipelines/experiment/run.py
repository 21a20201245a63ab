"""Runs an experiment: a corpus for each variant, small models on each, and the comparison of their losses.

RUN/experiment/target.jsonl            the text to compare on
RUN/experiment/VARIANT/corpus/         the corpus stage's result, as in a run
RUN/experiment/models/                 a file for each small model: the bits of every document of the target
RUN/experiment/result.json             the comparisons
"""

import json
from dataclasses import asdict
from itertools import islice
from pathlib import Path

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from cluster.errors import UserError
from cluster.recipe.corpus import Corpus, Decontaminate
from cluster.recipe.experiment import AS_IT_IS, Experiment
from cluster.recipe.recipe import Recipe
from cluster.run.atomic import write_json, write_text
from cluster.run.folder import RunFolder, file_fingerprint, fingerprint
from cluster.run.layout import stage_named
from cluster.run.stages import check_sources
from pipelines.corpus.summary import short_name
from pipelines.corpus.tasks import Report, Task, phase_progress, run_tasks
from pipelines.corpus.texts import TextReader
from pipelines.data.balance import require_enough
from pipelines.experiment.compare import Comparison, compare
from pipelines.experiment.small_models import SmallModelPhase, model_of
from pipelines.stage_table import run_named_stage


def run_experiment(recipe: Recipe, folder: Path) -> dict[str, Comparison]:
    """Compares the variants with the recipe's corpus; what an interrupted attempt finished is not done again.

    Args:
        folder: the folder for all that is made.

    Returns:
        the comparison of each variant, by name.

    Raises:
        UserError: the recipe has no experiment, or a source or the target cannot be read.
        DeadlineError: no model was trained in time.
    """
    settings = recipe.experiment
    if settings is None:
        raise UserError("the recipe has no section experiment: name a target and variants of the corpus")
    reader = TextReader()
    texts = list(islice(reader.texts(settings.target, recipe.seed), settings.target_documents))
    what, add = "documents of experiment.target", "add documents"
    require_enough(what, len(texts), reader.losses(), 2, "for an interval", add, reader.besides())
    target = folder / "target.jsonl"
    write_text(target, "".join(f"{json.dumps({'text': text})}\n" for text in texts))
    names = [AS_IT_IS, *settings.variants]
    runs = [RunFolder(folder / name) for name in names]
    variants = [variant(recipe, name, target, run.root) for name, run in zip(names, runs, strict=True)]
    for own in variants:
        check_sources(own)
    for own, run in zip(variants, runs, strict=True):
        run_named_stage(stage_named("corpus"), own, run)
    reports = _train(recipe, settings, runs, target, folder)
    sizes = np.array([len(text.encode()) for text in texts])
    bits = [np.array([report["bits"] for report in own]) for own in reports]
    found = {
        name: compare(bits[0], own, sizes, len(settings.variants))
        for name, own in zip(names[1:], bits[1:], strict=True)
    }
    _print(settings, names, reports, float(bits[0].sum(axis=1).mean() / sizes.sum()), found)
    write_json(folder / "result.json", {name: asdict(comparison) for name, comparison in found.items()})
    return found


def variant(recipe: Recipe, name: str, target: Path, folder: Path) -> Recipe:
    """Makes the recipe of a variant's corpus, without the documents that share text with the target."""
    settings = recipe.experiment
    assert settings is not None
    corpus = Corpus.model_validate({**recipe.corpus.model_dump(), **settings.variants.get(name, {})})
    given = corpus.decontaminate or Decontaminate(files=[str(target)])
    files = [*dict.fromkeys([*given.files, str(target)])]
    corpus = corpus.model_copy(update={"decontaminate": given.model_copy(update={"files": files, "action": "drop"})})
    return recipe.model_copy(update={"corpus": corpus, "model": model_of(settings), "run": str(folder)})


def _train(
    recipe: Recipe, settings: Experiment, runs: list[RunFolder], target: Path, folder: Path
) -> list[list[Report]]:
    """Returns the reports of the models of each variant."""
    corpora = tuple(run.path("corpus") for run in runs)
    phase = SmallModelPhase(corpora, target, settings, recipe.seed)
    made_of = [run.require("corpus").fingerprint for run in runs]
    given = [settings.model_dump(exclude={"variants", "target", "seeds"}), file_fingerprint(target)]
    tasks = [
        Task(f"{run.root.name}-{seed}", fingerprint([corpus, given, recipe.seed + seed]), ())
        for run, corpus in zip(runs, made_of, strict=True)
        for seed in range(settings.seeds)
    ]
    with phase_progress(Console()) as bar:
        deadline = recipe.cluster.deadline_seconds
        reports = run_tasks("train small models", folder / "models", tasks, phase, bar, deadline)
    return [reports[start : start + settings.seeds] for start in range(0, len(reports), settings.seeds)]


def _print(
    settings: Experiment, names: list[str], reports: list[list[Report]], baseline: float, found: dict[str, Comparison]
) -> None:
    console = Console()
    title = f"Bits a byte on the target, {settings.seeds} models a variant"
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    table.add_column("variant", no_wrap=True)
    for name in ("times read", "bits", "change", "95% interval", "verdict"):
        table.add_column(name, justify="right")
    for name, own in zip(names, reports, strict=True):
        read = f"{own[0]['trained_rows'] / own[0]['rows']:.2f}"
        if one := found.get(name):
            interval = f"{one.low:+.3f} to {one.high:+.3f}"
            table.add_row(short_name(name), read, f"{one.bits:.3f}", f"{one.change:+.3f}", interval, one.verdict)
        else:
            table.add_row(name, read, f"{baseline:.3f}", "", "", "")
    console.print(table)
    console.print("better: fewer bits than the corpus as the recipe has it, with 95% for all variants together")

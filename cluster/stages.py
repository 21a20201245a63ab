"""The stages of a run, in order, and how one is skipped, resumed or run."""

import importlib
import time
from dataclasses import dataclass, field
from glob import glob
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from cluster.failures import UserError
from cluster.recipe import Recipe
from cluster.run import Manifest, RunFolder, file_fingerprint, fingerprint


@dataclass(frozen=True)
class Stage:
    """A step of the guide. Its module has `run(recipe, run, out) -> Result`, which builds the artefact in `out`."""

    name: str
    folder: str
    module: str
    sections: tuple[str, ...]
    after: tuple[str, ...]
    purpose: str


@dataclass(frozen=True)
class Result:
    """What a stage hands back for its manifest: figures, and the checksum of the weights if it made a model."""

    metrics: dict[str, Any] = field(default_factory=dict)
    weights: str | None = None


STAGES = (
    Stage("corpus", "corpus", "pipelines.corpus", ("model", "corpus"), (), "gather, clean, tokenise and pack text"),
    Stage("pretrain", "base", "pipelines.pretrain", ("model", "pretrain"), ("corpus",), "learn the next word"),
    Stage("sft", "sft", "pipelines.sft", ("model", "sft"), ("base",), "learn to answer"),
    Stage("collect", "preferences", "pipelines.collect", ("collect",), ("sft",), "sample answers and have them ranked"),
    Stage("reward", "reward", "pipelines.reward", ("reward",), ("sft", "preferences"), "learn the ranking"),
    Stage("rlhf", "policy", "pipelines.rlhf", ("rlhf", "collect", "sft"), ("sft", "reward"), "learn from the reward"),
    Stage(
        "evaluate", "report", "pipelines.evaluate", ("evaluate",), ("base", "sft", "reward", "policy"), "compare models"
    ),
)


def stage_named(name: str) -> Stage:
    """The stage of that name (as on the command line)."""
    return next(stage for stage in STAGES if stage.name == name)


def stage_of(folder: str) -> Stage:
    """The stage that fills that folder of the run."""
    return next(stage for stage in STAGES if stage.folder == folder)


def stage_config(stage: Stage, recipe: Recipe) -> dict[str, Any]:
    """The part of the recipe that decides what the stage makes, with a hash for every file that it names."""
    config = {"seed": recipe.seed, **{name: getattr(recipe, name).model_dump() for name in stage.sections}}
    paths = [path for name in stage.sections for path in _source_paths(getattr(recipe, name))]
    return {**config, "files": {path: _hash_files(path) for path in paths}}


def is_done(stage: Stage, recipe: Recipe, run: RunFolder) -> bool:
    """Whether the finished artefact was made from this configuration and these inputs."""
    manifest = run.manifest(stage.folder)
    inputs = {folder: run.manifest(folder) for folder in stage.after}
    if manifest is None or any(found is None for found in inputs.values()):
        return False
    return manifest.fingerprint == _mark(stage, recipe, run)


def run_stage(stage: Stage, recipe: Recipe, run: RunFolder) -> bool:
    """Runs or resumes one stage; Ray must be connected.

    Returns:
        False if it was done already.

    Raises:
        UserError: a stage that it builds on is missing, or its input is wrong.
    """
    for folder in stage.after:
        run.require(folder, stage_of(folder).name)
    mark = _mark(stage, recipe, run)
    partial_mark = run.partial(stage.folder) / "fingerprint"
    if partial_mark.exists() and partial_mark.read_text() == mark:
        run.recover(stage.folder)
    if is_done(stage, recipe, run):
        return False
    out = run.begin(stage.folder, mark)
    clock = out / "seconds"
    before = float(clock.read_text()) if clock.exists() else 0.0
    start = time.monotonic()
    try:
        result = importlib.import_module(stage.module).run(recipe, run, out)
    finally:
        if out.exists():
            clock.write_text(str(before + time.monotonic() - start))
    clock.unlink()
    run.commit(
        stage.folder,
        Manifest(
            stage=stage.name,
            fingerprint=mark,
            config=stage_config(stage, recipe),
            inputs={folder: run.require(folder, folder).fingerprint for folder in stage.after},
            version=version("triptych"),
            seconds=round(before + time.monotonic() - start, 1),
            metrics=result.metrics,
            weights=result.weights,
        ),
    )
    return True


def _mark(stage: Stage, recipe: Recipe, run: RunFolder) -> str:
    inputs = {folder: run.require(folder, stage_of(folder).name).fingerprint for folder in stage.after}
    return fingerprint({"stage": stage.name, "config": stage_config(stage, recipe), "inputs": inputs})


def _source_paths(section: BaseModel) -> list[str]:
    sources = getattr(section, "sources", [])
    start = getattr(section, "start_from", None)
    return [source.path for source in sources if source.path] + ([start] if start and Path(start).exists() else [])


def _hash_files(pattern: str) -> dict[str, str]:
    path = Path(pattern)
    found = sorted(path.rglob("*")) if path.is_dir() else sorted(Path(name) for name in glob(pattern, recursive=True))
    files = [file for file in found if file.is_file()]
    if not files:
        raise UserError(f"no file matches {pattern}")
    try:
        return {str(file): file_fingerprint(file) for file in files}
    except OSError as error:
        raise UserError(f"cannot read {error.filename}: {error.strerror}") from error

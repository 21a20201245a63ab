"""The state of a stage, and how it is skipped, resumed or run: by its recipe, its inputs and the run folder."""

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ValidationError

from cluster import __version__
from cluster.errors import UserError
from cluster.recipe.base import input_files, named_functions
from cluster.recipe.functions import check_function
from cluster.recipe.recipe import Recipe
from cluster.recipe.renamed import with_new_names
from cluster.run.atomic import write_text
from cluster.run.folder import JUDGEMENTS, Manifest, RunFolder, file_fingerprint, fingerprint
from cluster.run.layout import Stage, stage_of
from cluster.run.storage.files import find_files, glob_root, no_match, relative_name
from cluster.run.storage.remote import StoredFile, is_remote, shown_name

# Keys that decide how a stage runs and not its result. They are no part of its fingerprint: a run that loses a machine
# goes on with fewer workers, not from the start.
EXECUTION_KEYS: dict[str, Any] = {
    **dict.fromkeys(
        (
            "workers",
            "micro_batch_rows",
            "checkpoint_every",
            "recompute_activations",
            "reduce_once",
            "compile_layers",
            "promote_every",
            "max_failed_verdicts",
            "max_failed_gradings",
            "timeout_seconds",
            "at_once",
            "select",
            "samples",
            "sample_tokens",
            "trackers",
        ),
        True,
    ),
    "environment": {"timeout_seconds"},
    "rewards": {"__all__": {"timeout_seconds", "attempts", "at_once"}},
    "fleet": {
        "rollout_actors",
        "max_rollout_actors",
        "tensor_parallel",
        "learner_workers",
        "reward_actors",
        "max_reward_actors",
        "parity_every",
    },
}

# Files of a path that are larger than this together are identified by size and time of change, since every command
# would read them: a change that leaves both as they are goes unnoticed, and a copy with a new time counts as other
# data.
_MOST_HASHED_BYTES = 256 << 20

StageOutcome = Literal["skipped", "resumed", "done"]


@dataclass(frozen=True)
class Result:
    """A stage's entries for its manifest.

    Attributes:
        metrics: its figures.
        weights: the checksum of the weights if it made a model.
        judgements: the digest of the judgements that it took in; None for a stage that takes none.
    """

    metrics: dict[str, Any] = field(default_factory=dict)
    weights: str | None = None
    judgements: str | None = None


StageFunction = Callable[[Recipe, RunFolder, Path], Result]


@dataclass(frozen=True)
class State:
    """The state of a stage, and the reason: done, partial (resumable), stale (made from other inputs) or pending."""

    name: Literal["done", "partial", "stale", "pending"]
    why: str


def stage_config(stage: Stage, recipe: Recipe) -> dict[str, Any]:
    """Returns the part of the recipe that decides a stage's result, with a hash of every file that it names.

    Raises:
        UserError: a file that the recipe names is missing or cannot be read, or the recipe lacks a section.
    """
    sections: dict[str, BaseModel] = {name: getattr(recipe, name) for name in stage.sections}
    if missing := [name for name, section in sections.items() if section is None]:
        raise UserError(
            f"the recipe has no section {missing[0]}: add one, or set `{missing[0]}={{}}` on the command line"
        )
    # Manifests hold this text, so credentials are cut from the names of files; new credentials make no stage stale.
    config = {name: _shown(section.model_dump(exclude=EXECUTION_KEYS)) for name, section in sections.items()}
    paths = [path for section in sections.values() for path in input_files(section)]
    return {"seed": recipe.seed, **config, "files": {shown_name(path): _hash_files(path) for path in paths}}


def _shown(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _shown(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_shown(inner) for inner in value]
    return shown_name(value) if isinstance(value, str) and "://" in value else value


def check_sources(recipe: Recipe) -> None:
    """Checks that every file that the recipe names exists, without reading any.

    Raises:
        UserError: one is missing.
    """
    for path in input_files(recipe):
        _matching_files(path)
    start = recipe.model.start_from
    if start and not Path(start).exists() and (start.startswith(("/", ".", "~")) or start.endswith(".gguf")):
        raise UserError(f"model.start_from: there is no {start}")


def check_functions(recipe: Recipe) -> None:
    """Checks every function that the recipe names, as `check_function` does.

    Raises:
        UserError: one cannot be used.
    """
    for found in named_functions(recipe):
        check_function(found.name, found.form, found.arguments)


def stage_state(stage: Stage, recipe: Recipe, run: RunFolder, undone: Collection[str] = ()) -> State:
    """Compares a stage's recipe and inputs with the run folder.

    Args:
        stage: the stage.
        recipe: the recipe of the run.
        run: the run folder, as it is now.
        undone: the subfolders of stages that will be made again first.

    Raises:
        UserError: a file that the recipe names is missing, or a manifest is damaged.
    """
    missing = [folder for folder in stage.after if run.manifest(folder) is None]
    manifest = run.manifest(stage.folder)
    if missing:
        names = ", ".join(stage_of(folder).name for folder in missing)
        return State("pending" if manifest is None else "stale", f"needs {names}")
    config = stage_config(stage, recipe)
    digest = _stage_fingerprint(stage, config, run)
    changes = ""
    if manifest is not None and _is_made_from(manifest, stage, recipe, config, run):
        changes = _judgement_changes(stage, run)
        if not changes:
            remade = [stage_of(folder).name for folder in stage.after if folder in undone]
            if remade:
                return State("stale", f"{', '.join(remade)} will be made again first")
            return State("done", f"{manifest.seconds:.0f} s")
    if run.partial_fingerprint(stage.folder) == digest:
        return State("partial", "interrupted; the same command resumes it")
    if manifest is None:
        return State("pending", "not run yet")
    return State("stale", changes or _difference(manifest, config, run))


def is_made_from_now(stage: Stage, recipe: Recipe, run: RunFolder) -> bool:
    """Tells whether a stage has finished with this recipe and these inputs, whatever judgements came in since."""
    manifest = run.manifest(stage.folder)
    if manifest is None or any(run.manifest(folder) is None for folder in stage.after):
        return False
    return _is_made_from(manifest, stage, recipe, stage_config(stage, recipe), run)


def is_done(stage: Stage, recipe: Recipe, run: RunFolder) -> bool:
    """Tells whether a stage has finished with this recipe and these inputs."""
    return stage_state(stage, recipe, run).name == "done"


def run_stage(stage: Stage, function: StageFunction, recipe: Recipe, run: RunFolder) -> StageOutcome:
    """Runs or resumes a stage, unless it is done; Ray must be connected.

    Args:
        stage: the stage.
        function: its implementation, which writes to the folder that it is given.
        recipe: the recipe of the run.
        run: the run folder.

    Returns:
        skipped if it was done already, resumed if an interrupted attempt was finished, else done.

    Raises:
        UserError: a stage that it builds on is missing, or its input is invalid.
    """
    for folder in stage.after:
        run.require(folder)
    config = stage_config(stage, recipe)
    digest = _stage_fingerprint(stage, config, run)
    resumed = run.partial_fingerprint(stage.folder) == digest
    if resumed:
        run.recover(stage.folder)
    manifest = run.manifest(stage.folder)
    if (
        manifest is not None
        and _is_made_from(manifest, stage, recipe, config, run)
        and not _judgement_changes(stage, run)
    ):
        return "skipped"
    out = run.begin(stage.folder, digest)
    clock = out / "seconds"
    before = float(clock.read_text()) if clock.exists() else 0.0
    start = time.monotonic()
    try:
        result = function(recipe, run, out)
    finally:
        seconds = before + time.monotonic() - start
        if out.exists():
            write_text(clock, str(seconds))
    clock.unlink()
    inputs = _inputs(stage, run) | ({JUDGEMENTS: result.judgements} if result.judgements else {})
    run.commit(
        stage.folder,
        Manifest(
            stage=stage.name,
            fingerprint=_fingerprint(stage, config, inputs),
            config=config,
            inputs=inputs,
            version=__version__,
            seconds=round(seconds, 1),
            metrics=result.metrics,
            weights=result.weights,
        ),
    )
    return "resumed" if resumed else "done"


def _inputs(stage: Stage, run: RunFolder) -> dict[str, str]:
    return {folder: run.require(folder).fingerprint for folder in stage.after}


def _stage_fingerprint(stage: Stage, config: dict[str, Any], run: RunFolder) -> str:
    return _fingerprint(stage, config, _inputs(stage, run))


def _fingerprint(stage: Stage, config: dict[str, Any], inputs: dict[str, str]) -> str:
    return fingerprint({"stage": stage.name, "config": config, "inputs": inputs})


def _judgement_changes(stage: Stage, run: RunFolder) -> str:
    """Says which judgements are newer than a finished stage, or gone since; empty where there are none."""
    if not stage.judged:
        return ""
    # Imported late: the database's libraries take a second, and most stages do not use it.
    from cluster.feedback.judged import judgement_changes

    return judgement_changes(run, stage.folder).sentence()


def _is_made_from(manifest: Manifest, stage: Stage, recipe: Recipe, config: dict[str, Any], run: RunFolder) -> bool:
    """Tells whether a finished stage has this configuration and these inputs, whatever judgements it took in.

    Renamed keys of its configuration count under their present names, and keys that it lacks have their defaults.
    """
    taken = {name: made for name, made in manifest.inputs.items() if name == JUDGEMENTS}
    if manifest.fingerprint == (digest := _fingerprint(stage, config, _inputs(stage, run) | taken)):
        return True
    found, _ = with_new_names(manifest.config)
    try:
        sections = {
            name: type(getattr(recipe, name)).model_validate(found[name]).model_dump(exclude=EXECUTION_KEYS)
            for name in stage.sections
        }
    except (ValidationError, KeyError):
        return False
    current = {name: sections.get(name, found[name]) for name in manifest.config}
    return digest == _fingerprint(stage, current, manifest.inputs)


def _difference(manifest: Manifest, config: dict[str, Any], run: RunFolder) -> str:
    for folder, made_from in manifest.made_from.items():
        found = run.manifest(folder)
        if found is None or found.fingerprint != made_from:
            return f"{folder} was made again since"
    changed = _changed(manifest.config, config)
    return f"{', '.join(changed)} changed since" if changed else "made by another version of this stage"


def _changed(old: Any, new: Any, name: str = "") -> list[str]:
    """Lists the dotted names of values that differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted(old.keys() | new.keys())
        return [found for key in keys for found in _changed(old.get(key), new.get(key), f"{name}.{key}".strip("."))]
    return [] if old == new else [name]


def _matching_files(pattern: str) -> list[StoredFile]:
    files = find_files(pattern)
    if not files:
        raise UserError(no_match(pattern))
    return files


def _hash_files(pattern: str) -> dict[str, str]:
    try:
        root, files = glob_root(pattern), _matching_files(pattern)
        hashed = sum(file.size for file in files) <= _MOST_HASHED_BYTES
        return {
            shown_name(relative_name(root, file.name)): _hash_file(file) if hashed else _file_state(file)
            for file in files
        }
    except OSError as error:
        raise UserError(f"cannot read {error.filename}: {error.strerror}") from error


@cache
def _hash_file(file: StoredFile) -> str:
    """Hashes a file once a process, as several stages name the same ones; of a remote file, only size and time."""
    return _file_state(file) if is_remote(file.name) else file_fingerprint(Path(file.name))


def _file_state(file: StoredFile) -> str:
    return fingerprint([file.size, file.changed])

"""Exports a model of a run, or of any folder, for other programs: rounded, cut into files, or as one GGUF file."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from actors.model.causal_lm import load, save
from actors.model.tokenizer import load_tokenizer
from actors.objectives.lm import LanguageObjective, PackedBatch
from actors.trainer.data import shards_in
from actors.trainer.proof import mean_loss, proof_rows, prove_copy, vocabulary_row
from cluster.errors import StageError, UserError
from cluster.recipe.base import Precision
from cluster.run.atomic import atomic_write
from cluster.run.storage.files import require_writable
from pipelines.gguf_format import write_gguf

Format = Literal["safetensors", "gguf"]
# The language models of a run, the last one trained first, and the stage whose held-out rows prove the export.
MODELS = {"policy": "sft", "dpo": "sft", "sft": "sft", "base": "corpus"}


@dataclass(frozen=True)
class ExportedModel:
    """The result of an export.

    Attributes:
        source: the folder of the model.
        files: the files that were written, by name.
        size: their bytes.
        loss: the loss of the model, in nats a token.
        exported_loss: the loss of the exported files, in nats a token.
        held_out: whether these are of held-out rows of the run; else they are of a row of the vocabulary.
    """

    source: Path
    files: list[str]
    size: int
    loss: float
    exported_loss: float
    held_out: bool


def export(
    source: Path, out: Path, form: Format, precision: Precision, shard_bytes: int, model: str | None = None
) -> ExportedModel:
    """Writes a model to `out`, and proves it: loaded afresh, it has the loss of the original, rounded, to 1e-5 of it.

    Args:
        source: a run folder, or a model's folder.
        out: a folder that is not there.
        form: safetensors with the tokenizer, as stages leave models, or one GGUF file.
        precision: the precision of the weights.
        shard_bytes: the most bytes of a file of safetensors; with several there is an index.
        model: the model of a run: policy, dpo, sft or base; None for the last one trained.

    Raises:
        UserError: there is no such model, `out` is there, or the model cannot be written in this format.
        StageError: the exported files differ from the model.
    """
    folder = _model_folder(source, model)
    if out.exists():
        raise UserError(f"{out} is there already: name a folder that is not")
    require_writable(out, parents=True)
    loaded, tokenizer = load(folder), load_tokenizer(folder)
    held_out = _held_out(folder) if (source / "recipe.yaml").exists() else None
    batch = held_out or vocabulary_row(loaded)
    loss = mean_loss(loaded, batch)
    with atomic_write(out) as side:
        shutil.rmtree(side, ignore_errors=True)
        side.mkdir()
        try:
            if form == "gguf":
                written = side / f"{folder.name}-{'BF16' if precision == 'bfloat16' else 'F32'}.gguf"
                write_gguf(loaded, tokenizer, written, precision)
            else:
                written = side
                save(loaded, tokenizer, side, precision=precision, shard_bytes=shard_bytes)
            if precision != "float32":
                _round(loaded, vectors=form == "safetensors")
            prove_copy(loaded, written, batch=batch)
        except (UserError, StageError):
            shutil.rmtree(side)
            raise
    files = sorted(out.iterdir())
    size = sum(file.stat().st_size for file in files)
    return ExportedModel(
        folder, [file.name for file in files], size, loss, mean_loss(loaded, batch), held_out is not None
    )


@torch.no_grad()
def _round(model: Any, vectors: bool) -> None:
    """Rounds the weights of a model in memory to bfloat16, as those of its file are; with or without vectors."""
    for value in model.state_dict().values():
        if value.is_floating_point() and (vectors or value.ndim > 1):
            value.copy_(value.to(torch.bfloat16))


def _model_folder(source: Path, model: str | None) -> Path:
    """Finds the folder of the model to export."""
    if (source / "recipe.yaml").exists():
        found = next((name for name in MODELS if (source / name / "manifest.json").exists()), None)
        name = model or found
        if name is None or not (source / name / "manifest.json").exists():
            raise UserError(f"{source} has no {name or 'model'} yet: run `triptych run RECIPE` first")
        return source / name
    if model:
        raise UserError(f"--model names a model of a run, and {source} is no run folder: it has no recipe.yaml")
    if not (source / "config.json").exists():
        raise UserError(f"{source} is neither a run folder nor a model: it has no recipe.yaml and no config.json")
    return source


def _held_out(folder: Path) -> PackedBatch | None:
    """Reads held-out rows of the run that the model was made in."""
    shards = folder.parent / MODELS[folder.name] / "shards" / "held_out"
    return LanguageObjective().collate(proof_rows(shards_in(shards))) if shards.exists() else None

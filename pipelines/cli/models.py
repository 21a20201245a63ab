"""The commands on one model: `triptych export` writes it for other programs, `triptych score` scores answers by it."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from cluster.errors import UserError
from cluster.recipe.base import Precision
from cluster.recipe.loading import load_recipe
from cluster.run.folder import RunFolder
from cluster.run.storage.files import require_writable
from cluster.runtime.machine_memory import object_store_gb
from cluster.runtime.session import connect

GIGABYTE = 1_000_000_000


def export(
    source: Annotated[Path, typer.Argument(metavar="RUN|FOLDER", help="a run folder, or the folder of a model")],
    out: Annotated[Path, typer.Option("--to", metavar="DIR", help="the folder to write, which is not there yet")],
    model: Annotated[
        Literal["policy", "dpo", "sft", "base"] | None, typer.Option(help="of a run; default: the last one trained")
    ] = None,
    dtype: Annotated[Precision, typer.Option(help="precision of the weights")] = "bfloat16",
    form: Annotated[
        Literal["safetensors", "gguf"],
        typer.Option("--format", help="safetensors, for transformers and vLLM; gguf, for llama.cpp and Ollama"),
    ] = "safetensors",
    shard_gb: Annotated[float, typer.Option(help="gigabytes of a file of safetensors, at most", min=0.001)] = 5.0,
) -> None:
    """Write a model for other programs, and prove that it is the same model."""
    # Imported late: it brings torch, and every command of the console script imports this module.
    from pipelines.export import export as export_model

    found = export_model(source, out, form, dtype, int(shard_gb * GIGABYTE), model)
    rows = "held-out rows" if found.held_out else "a row of the vocabulary"
    print(
        f"{found.source} in {dtype}: {len(found.files)} files of {found.size / 1e6:,.1f} MB in {out}; "
        f"the loss on {rows} is {found.exported_loss:.5f}, and was {found.loss:.5f}"
    )


def score(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="the run folder with the reward model")],
    source: Annotated[Path, typer.Argument(metavar="FILE", help="JSONL or Parquet: prompts, each with completions")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="the JSONL to write")],
    kind: Annotated[
        Literal["rewards", "best", "pairs"],
        typer.Option("--as", help="all rewards; the best answers, to fine-tune on; or best and worst, for DPO"),
    ] = "rewards",
    at_least: Annotated[float | None, typer.Option(help="for best: the lowest reward to keep")] = None,
    actors: Annotated[int, typer.Option(help="number of copies of the reward model that score in parallel", min=1)] = 1,
    max_failed: Annotated[
        float, typer.Option(help="largest share of answers that may have no finite score", min=0, max=1)
    ] = 0.01,
) -> None:
    """Score every answer of a file, normalized as in RLHF; or keep the best answers, or make pairs for DPO."""
    run = RunFolder(folder)
    if not run.recipe_path.exists():
        raise UserError(f"{folder} is not a run folder: it has no recipe.yaml")
    if at_least is not None and kind != "best":
        raise UserError("--at-least goes with --as best")
    require_writable(out)
    # Imported late: it brings pyarrow.
    from pipelines.data.row_files import matching_files

    matching_files(str(source))
    recipe = load_recipe(run.recipe_path)
    run.require("reward")
    with connect(recipe.cluster, object_store_gb(recipe)):
        # Imported late: it brings torch, and every command of the console script imports this module.
        from pipelines.score import score_file

        found = score_file(recipe, run, source, out, kind, at_least, actors, max_failed)
    print(
        f"{found.written} rows in {out}: {found.answers} answers to {found.prompts} prompts have a mean reward of "
        f"{found.mean:.3f}, the best of each prompt {found.best:.3f}"
    )
    if found.too_long:
        print(f"{found.too_long} answers are longer than the {recipe.model.context} tokens of the model: no reward")
    if found.failures:
        print(f"{len(found.failures)} answers have no finite score, so that their reward is null: {found.failures[0]}")

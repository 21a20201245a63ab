"""`triptych export`: writes a model for other programs."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from cluster.recipe.base import Precision

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

"""Memory of a GPU that training holds, beside what the plan says of it."""

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pyarrow as pa
import pytest
import torch

from actors.model.batches import Part, accumulate
from actors.model.language import build
from actors.model.objectives.language import LanguageObjective
from actors.model.optimiser import adamw
from actors.model.sharding import WithLoss
from actors.model.speed import peak_memory_gb
from cluster.plan import training_memory
from cluster.recipe import Model, load_recipe

DEMO = Path(__file__).parents[2] / "infra" / "recipes" / "demo.yaml"


def most_held(model: Model, rows: int, precision: str, recompute: bool) -> float:
    """GB of the GPU that two steps of AdamW took at most, of two micro-batches each."""
    device = torch.device("cuda")
    plain, objective = build(model, 0, end_of_turn=4, padding=0).to(device), LanguageObjective()
    if recompute:
        plain.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    both, stepper = WithLoss(plain, objective).train(), adamw(list(plain.parameters()), 1e-3, 0.1)
    ids = torch.randint(5, model.vocabulary, (2 * rows, model.context)).numpy()
    batch = pa.table({"input_ids": list(ids), "document_ids": list(ids * 0)})
    for _ in range(2):
        accumulate(both, objective, batch, batch.num_rows * model.context, Part(0, 1, rows, precision, device))
        torch.nn.utils.clip_grad_norm_(both.parameters(), 1.0)
        stepper.step()
        stepper.zero_grad(set_to_none=True)
    return peak_memory_gb(device)


@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize(
    ("size", "context", "rows", "precision", "recompute"),
    [
        ("135M", 2048, 8, "bfloat16", False),
        ("135M", 2048, 4, "float32", False),
        ("1B", 2048, 4, "bfloat16", False),
        ("1B", 2048, 4, "bfloat16", True),
    ],
)
def test_adamw_holds_what_the_plan_says(size: str, context: int, rows: int, precision: str, recompute: bool) -> None:
    overrides = [f"size={size}", f"context={context}", "vocabulary=49152"]
    training = [f"micro_batch_rows={rows}", f"precision={precision}", f"recompute_activations={recompute}"]
    recipe = load_recipe(
        DEMO, [*(f"model.{field}" for field in overrides), *(f"pretrain.{field}" for field in training)]
    )
    said = training_memory(recipe, recipe.pretrain, "cuda").total
    # The most a process ever held is its own: each case has one.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        held = process.submit(most_held, recipe.model, rows, precision, recompute).result(timeout=300)
    assert 0.9 * said < held < 1.02 * said

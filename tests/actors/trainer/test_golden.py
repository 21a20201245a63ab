"""Loss curves of a few steps of each trained stage, in float32, as they have always been.

A change that moves one of them on purpose writes it again: `python -m tests.actors.trainer.test_golden`.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from actors.model.causal_lm import build, load
from actors.model.microbatch import DataParallelRank, accumulate
from actors.model.optim import learning_rate_factor, make_optimizers
from actors.model.reward_head import with_new_head
from actors.model.sharding.fsdp import WithLoss
from actors.objectives.bradley_terry import BradleyTerryObjective
from actors.objectives.lm import LanguageObjective
from cluster.recipe.model import Model
from tests.tiny import write_tiny_model

CURVES = Path(__file__).parent / "golden_losses.json"
STEPS, ROWS, CONTEXT = 6, 4, 32


def packed(chance: np.random.Generator, trained_share: float | None) -> pa.Table:
    columns: dict[str, list] = {"input_ids": [], "document_ids": []}
    for _ in range(ROWS):
        used, cut = int(chance.integers(12, CONTEXT + 1)), int(chance.integers(3, 9))
        # Few distinct tokens, so that there is something to learn in six steps.
        columns["input_ids"].append(np.array([*chance.integers(5, 25, used), *[0] * (CONTEXT - used)]))
        columns["document_ids"].append(np.array([*[0] * cut, *[1] * (used - cut), *[-1] * (CONTEXT - used)]))
    if trained_share is not None:
        columns["loss_mask"] = [chance.random(CONTEXT) < trained_share for _ in range(ROWS)]
    return pa.table({name: pa.array(rows) for name, rows in columns.items()})


def ranked(chance: np.random.Generator) -> pa.Table:
    lengths = [[int(n) for n in chance.integers(4, 12, 3)] for _ in range(ROWS)]
    ids = [[int(token) for token in chance.integers(5, 300, sum(row))] for row in lengths]
    ranks = [[1, 2, 2], [3, 1, 2], [2, 1, 3], [1, 2, 3]]
    return pa.table({"input_ids": ids, "lengths": lengths, "ranks": ranks, "weight": [1.0] * ROWS})


def curve(model: Any, objective: Any, batches: Callable[[np.random.Generator], pa.Table], kind: str) -> list[float]:
    torch.set_num_threads(1)
    both, chance, losses = WithLoss(model, objective), np.random.default_rng(7), []
    optimizers = make_optimizers(both, kind, 1e-3, 0.1)
    for step in range(STEPS):
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            group["lr"] = 1e-3 * learning_rate_factor(step, STEPS, 0.2, 0.5)
        rows = batches(chance)
        total = objective.count(objective.collate(rows))
        loss, _ = accumulate(both, objective, rows, total, DataParallelRank(0, 1, 3, "float32", torch.device("cpu")))
        torch.nn.utils.clip_grad_norm_(both.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss)
    return losses


def curves(folder: Path) -> dict[str, list[float]]:
    write_tiny_model(folder, seed=1, end_id=4)
    fresh = build(Model(hidden=64, layers=2, heads=2, vocabulary=300, context=CONTEXT), 1, end_of_turn=0, padding=0)
    return {
        "pretrain": curve(fresh, LanguageObjective(), lambda chance: packed(chance, None), "muon"),
        "sft": curve(load(folder), LanguageObjective(), lambda chance: packed(chance, 0.4), "adamw"),
        "reward": curve(with_new_head(folder), BradleyTerryObjective(0), ranked, "adamw"),
    }


@pytest.mark.parametrize("stage", ["pretrain", "sft", "reward"])
def test_loss_curves_equal_the_golden_ones(stage: str, found: dict[str, list[float]]):
    kept = json.loads(CURVES.read_text())[stage]
    assert len(kept) == STEPS
    # Another processor adds up in another order; Muon's iteration is in bfloat16.
    assert found[stage] == pytest.approx(kept, rel=1e-3)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[float]]:
    return curves(tmp_path_factory.mktemp("golden"))


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as scratch:
        CURVES.write_text(json.dumps(curves(Path(scratch)), indent=1) + "\n")

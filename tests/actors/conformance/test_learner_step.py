"""Whole steps of the learner against the papers' equations in float64: the loss and the gradient of every optimizer
step, in micro-batches of 1 and of 64. `infra/bench/equations` has the equations and the answers."""

import pytest

from actors.algorithms.registry import ALGORITHMS
from infra.bench.equations.steps import ANSWERS, compared
from tests.actors.learner.hand_made import Folders, model_folders


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    return model_folders(tmp_path_factory.mktemp("conformance"))


@pytest.mark.parametrize("micro_batch_rows", [1, 64])
@pytest.mark.parametrize("stale", [False, True])
@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_optimizer_step_has_the_loss_and_gradient_of_its_paper(
    folders: Folders, name: str, stale: bool, micro_batch_rows: int
):
    found = compared(name, stale, micro_batch_rows, *folders)
    assert found.loss < 1e-6
    assert found.gradient.keys() == ({"policy", "critic"} if name == "ppo" else {"policy"})
    assert max(found.gradient.values()) < 1e-6
    assert found.metrics["masked"] == pytest.approx(1 / sum(map(len, ANSWERS)))

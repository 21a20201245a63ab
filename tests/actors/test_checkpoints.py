"""Checkpoints of a training job."""

from pathlib import Path

import torch
from torch.optim import Optimizer

from actors.checkpoints import Checkpoints, read
from actors.model.language import build
from actors.model.objectives.language import LanguageObjective
from actors.model.optimiser import optimisers
from actors.model.sharding import WithLoss
from actors.training_job import checkpoints_in
from cluster.recipe import Model


def test_a_checkpoint_that_is_written_beside_training_has_the_state_of_its_step(tmp_path: Path):
    def made() -> tuple[WithLoss, list[Optimizer]]:
        shape = Model(vocabulary=300, hidden=64, layers=2, heads=2, context=32)
        model = WithLoss(build(shape, 0, end_of_turn=4, padding=0), LanguageObjective())
        return model, optimisers(model, "adamw", 1e-3, 0.0)

    model, steppers = made()
    checkpoints = Checkpoints(tmp_path, 0, 1, asynchronous=True)
    saved = {}
    for step in (1, 2, 3):
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        steppers[0].step()
        saved[step] = [parameter.detach().clone() for parameter in model.parameters()]
        checkpoints.save(model, steppers, step)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    checkpoints.wait()
    assert [step for step, _ in checkpoints_in(tmp_path)] == [2, 3]
    for step, folder in checkpoints_in(tmp_path):
        other, others = made()
        read(other, others, folder)
        assert all(torch.equal(one, two) for one, two in zip(saved[step], other.parameters(), strict=True))
        assert {int(state["step"]) for state in others[0].state.values()} == {step}

"""Checkpoints of a training job."""

import resource
from pathlib import Path

import pytest
import torch
from torch.optim import Optimizer

from actors.model.causal_lm import build
from actors.model.optim import make_optimizers
from actors.model.sharding.fsdp import WithLoss
from actors.objectives.lm import LanguageObjective
from actors.trainer.checkpoint import Checkpoints, load_training_state, read, training_state
from actors.trainer.job import checkpoints_in
from cluster.errors import StageError, UserError
from cluster.recipe.model import Model
from cluster.run.folder import SCRATCH


def made() -> tuple[WithLoss, list[Optimizer]]:
    shape = Model(vocabulary=300, hidden=64, layers=2, heads=2, context=32)
    model = WithLoss(build(shape, 0, end_of_turn=4, padding=0), LanguageObjective())
    return model, make_optimizers(model, "adamw", 1e-3, 0.0)


def save_whole(checkpoints: Checkpoints, step: int) -> None:
    checkpoints.save(training_state(*made()), step)
    checkpoints.wait()


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_checkpoint_that_does_not_fit_is_named_and_the_one_before_stays(tmp_path: Path, asynchronous: bool):
    checkpoints = Checkpoints(tmp_path, 0, 1, asynchronous)
    save_whole(checkpoints, 1)
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, most))
    try:
        with pytest.raises(StageError, match=r"cannot write the checkpoint .*side_2: .* GB are free there"):
            save_whole(checkpoints, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    assert [step for step, _ in checkpoints_in(tmp_path)] == [1]


def test_a_checkpoint_that_is_written_beside_training_has_the_state_of_its_step(tmp_path: Path):
    model, optimizers = made()
    checkpoints = Checkpoints(tmp_path, 0, 1, asynchronous=True)
    saved = {}
    for step in (1, 2, 3):
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizers[0].step()
        saved[step] = [parameter.detach().clone() for parameter in model.parameters()]
        checkpoints.save(training_state(model, optimizers), step)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    checkpoints.wait()
    assert [step for step, _ in checkpoints_in(tmp_path)] == [2, 3]
    for step, folder in checkpoints_in(tmp_path):
        other, others = made()
        state = training_state(other, others)
        read(state, folder)
        load_training_state(other, others, state)
        assert all(torch.equal(one, two) for one, two in zip(saved[step], other.parameters(), strict=True))
        assert {int(own["step"]) for own in others[0].state.values()} == {step}


def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    checkpoints = Checkpoints(tmp_path, rank=0, world_size=1, asynchronous=False)
    for step in (2, 4):
        checkpoints.save({"weight": torch.full((3,), float(step))}, step)
    newest, older = (tmp_path / SCRATCH / f"checkpoint_{step}" for step in (4, 2))

    def damage(folder: Path) -> None:
        for file in folder.glob("*.distcp"):
            file.write_bytes(file.read_bytes()[:20])

    damage(newest)
    state = {"weight": torch.zeros(3)}
    assert checkpoints.read_newest(state) == 2
    assert state["weight"].tolist() == [2, 2, 2]
    assert not newest.exists()
    assert f"{newest} is damaged and removed: training goes on from step 2" in capsys.readouterr().out
    damage(older)
    with pytest.raises(UserError, match=r"checkpoint_2 is damaged"):
        checkpoints.read_newest(state)
    assert older.exists()

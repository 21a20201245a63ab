"""The actor behind the story page: one training at a time, which outlives a tab, a failure and the actor itself."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.errors import StageError
from cluster.recipe.loading import load_recipe
from cluster.recipe.recipe import Recipe
from cluster.run.folder import RunFolder
from pipelines.story.actor import VisitorTraining
from serve.pages.story import TrainingRequest, VisitorRanking
from tests.helpers import DEMO, wait_until

RANKINGS = [VisitorRanking(prompt=f"p{number}", answers=[1, 2], ranks=[1, 2]) for number in range(4)]
ANN, BOB = (
    TrainingRequest(visitor="ann-12345", rankings=RANKINGS),
    TrainingRequest(visitor="bob-12345", rankings=RANKINGS),
)


class Training:
    """Stands for minutes of training: it goes on until the test ends it, with success or a failure."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.end, self.error = threading.Event(), ""

    def __call__(self, _recipe: Recipe, _run: RunFolder, _branch: RunFolder, request: TrainingRequest) -> None:
        self.begun.append(request.visitor)
        assert self.end.wait(20)
        if self.error:
            raise StageError(self.error)


@pytest.fixture
def training(monkeypatch: pytest.MonkeyPatch) -> Iterator[Training]:
    training = Training()
    monkeypatch.setattr("pipelines.story.actor.train", training)
    monkeypatch.setattr("pipelines.story.actor.story_training_gb", lambda _: 0.0)
    yield training
    training.end.set()


def actor_of(folder: Path) -> VisitorTraining:
    return VisitorTraining(load_recipe(DEMO, []), folder)


def wait_for(actor: VisitorTraining, outcome: str) -> dict:
    wait_until(lambda: actor.state("ann-12345")["outcome"] == outcome, 20, outcome)
    return actor.state("ann-12345")


def test_one_visitor_trains_at_a_time_and_the_others_are_told_how_long(training: Training, tmp_path: Path):
    actor = actor_of(tmp_path)
    assert actor.state("ann-12345") == {"outcome": None}
    few = TrainingRequest(visitor="ann-12345", rankings=RANKINGS[:3])
    assert actor.start(few) == "3 rankings are too few to train on: rank at least 4 prompts"
    assert actor.start(ANN) == ""
    assert (actor.state("ann-12345")["mine"], actor.state("bob-12345")["mine"]) == (True, False)
    assert actor.start(BOB).startswith("another visitor's training is at work, for about ")
    assert actor.start(ANN).startswith("your training is at work, for about ")
    training.end.set()
    wait_for(actor, "done")
    assert actor.start(BOB) == ""
    wait_until(lambda: training.begun == ["ann-12345", "bob-12345"], 20, "the second training")


def test_a_training_that_fails_says_why_in_one_line(training: Training, tmp_path: Path):
    actor = actor_of(tmp_path)
    training.error = "the engine\ndied"
    training.end.set()
    assert actor.start(ANN) == ""
    assert wait_for(actor, "failed")["error"] == "the engine died"


def test_a_training_goes_on_after_the_death_of_its_actor(training: Training, tmp_path: Path):
    assert actor_of(tmp_path).start(ANN) == ""
    again = actor_of(tmp_path)
    assert (again.state("ann-12345")["outcome"], again.state("ann-12345")["mine"]) == ("running", True)
    wait_until(lambda: training.begun == ["ann-12345"] * 2, 20, "the training to go on")


def test_a_training_that_memory_is_short_for_is_refused(
    training: Training, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("pipelines.story.actor.story_training_gb", lambda _: 1e6)
    assert actor_of(tmp_path).start(ANN).startswith("a training needs about 1000000.0 GB of memory, and ")
    assert training.begun == []

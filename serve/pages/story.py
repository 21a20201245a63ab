"""The story page: the three training steps to try out, for a person who has never trained a model.

The visitor sees the next-word probabilities of the run's models, the tokens that fine-tuning learned from, and ranks
answers. A `StoryTrainer`, an actor of its own, trains a reward model and a policy on these rankings in a run folder
inside the run's, so that the run's own artifacts are never touched.
"""

import shutil
from pathlib import Path
from typing import Annotated, Any, Protocol

from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import HTMLResponse, JSONResponse
from pydantic import BaseModel, ConfigDict, Field, model_validator

from cluster.run.folder import RunFolder
from cluster.run.versions import Versions, differing_files
from serve.pages.label import MAX_ANSWERS
from serve.pages.render import page, routes_of

# A visitor's id is made by the page at random, so that it finds its own training again after a reload.
VisitorId = Annotated[str, Field(pattern=r"^[\w.-]{8,64}$")]
MAX_RANKINGS = 200


class VisitorRanking(BaseModel):
    """A visitor's ranking of the answers to one prompt.

    Attributes:
        prompt: the prompt's id.
        answers: the ids of the answers in the presented order.
        ranks: the rank of each answer, 1 is best; equal ranks are ties.
    """

    model_config = ConfigDict(extra="forbid")

    prompt: Annotated[str, Field(max_length=100_000)]
    answers: Annotated[list[int], Field(min_length=2, max_length=MAX_ANSWERS)]
    ranks: Annotated[list[Annotated[int, Field(ge=1, le=MAX_ANSWERS)]], Field(max_length=MAX_ANSWERS)]

    @model_validator(mode="after")
    def _every_answer_has_a_rank(self) -> "VisitorRanking":
        if len(self.ranks) != len(self.answers) or len(set(self.answers)) != len(self.answers):
            raise ValueError("give every answer one rank")
        return self


class TrainingRequest(BaseModel):
    """A visitor's request to train a reward model and a policy.

    Attributes:
        visitor: the visitor's id.
        rankings: the visitor's rankings.
        gameable: whether to train with the story's gameable reward in place of a reward model.
    """

    model_config = ConfigDict(extra="forbid")

    visitor: VisitorId
    rankings: Annotated[list[VisitorRanking], Field(max_length=MAX_RANKINGS)]
    gameable: bool = False

    @model_validator(mode="after")
    def _every_prompt_is_ranked_once(self) -> "TrainingRequest":
        if len({ranking.prompt for ranking in self.rankings}) < len(self.rankings):
            raise ValueError("a prompt is ranked twice")
        return self


class StoryTrainer(Protocol):
    """Trains the models of visitors, one visitor at a time."""

    async def data(self) -> dict[str, Any]:
        """Returns the content of the page that does not change while the run is served."""

    async def state(self, visitor: str) -> dict[str, Any]:
        """Returns the progress of the latest training, and whether it is this visitor's."""

    async def start(self, request: TrainingRequest) -> str:
        """Starts a training; returns an empty text, or the reason why it cannot be started now."""


def story_router(trainer: StoryTrainer) -> APIRouter:
    """Returns the page at /story and the routes under it.

    Args:
        trainer: the trainer of the visitors' models.
    """
    router = APIRouter(prefix="/story")

    @router.get("")
    def story_page(request: Request) -> HTMLResponse:
        return page("story.html", routes_of(request.app))

    @router.get("/data")
    async def data() -> dict[str, Any]:
        return await trainer.data()

    @router.get("/state")
    async def state(visitor: VisitorId) -> dict[str, Any]:
        return await trainer.state(visitor)

    @router.post("/training")
    async def train(request: TrainingRequest) -> JSONResponse:
        if refusal := await trainer.start(request):
            raise HTTPException(409, refusal)
        return JSONResponse(await trainer.state(request.visitor), 202)

    return router


def visitor_run(run: RunFolder) -> RunFolder:
    """Returns the run folder of the visitors' trainings, inside the run that is served."""
    return RunFolder(run.root / "story")


def visitor_versions(run: RunFolder) -> Versions:
    """Returns the versions of the policy that the latest visitor trained."""
    return Versions(visitor_run(run), "policy")


def start_visitor(run: RunFolder) -> Versions:
    """Returns the versions of the visitor's policy, of which one is live: the last visitor's, or the fine-tuned model
    where there is none yet or where it is another model by now."""
    versions, sft = visitor_versions(run), run.path("sft")

    def copy(folder: Path) -> None:
        for file in sft.iterdir():
            if file.is_file():
                shutil.copy2(file, folder)

    if not versions.kept() or differing_files(versions.live().folder, sft):
        versions.make_live(versions.keep(copy).weights)
    return versions

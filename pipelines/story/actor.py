"""The Ray actor behind the story page: it keeps the latest request, trains in a thread and reports the progress."""

import asyncio
import json
import logging
import shutil
from collections.abc import Awaitable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import ray

from cluster.errors import UserError, known_failure
from cluster.recipe.recipe import Recipe
from cluster.run.atomic import write_json
from cluster.run.folder import RunFolder
from cluster.runtime.machine_memory import story_training_gb
from cluster.runtime.memory import GB
from pipelines.story.content import TrainingStatus, describe, story_data
from pipelines.story.training import MIN_RANKINGS, OWN_STAGES, story_of, train
from serve.errors import RequestError
from serve.pages.story import StoryTrainer, TrainingRequest, visitor_run

logger = logging.getLogger(__name__)

# The longest wait of a page for the actor, whose first reply reads the conversations of fine-tuning.
REPLY_SECONDS = 60.0


class VisitorTraining:
    """The Ray actor behind the story page. It trains in a thread, so that it can answer meanwhile.

    Args:
        recipe: the recipe of the run.
        root: the run folder.
    """

    def __init__(self, recipe: Recipe, root: Path) -> None:
        self._recipe, self._run = recipe, RunFolder(root)
        self._branch = visitor_run(self._run)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="training")
        self._data: dict[str, Any] | None = None
        self._training = self._read()
        if self._training and self._training.outcome == "running":
            self._submit()

    def data(self) -> dict[str, Any]:
        """Returns the content of the page that does not change while the run is served."""
        if self._data is None:
            self._data = story_data(self._recipe, self._run)
        return self._data

    def state(self, visitor: str) -> dict[str, Any]:
        """Returns the progress of the latest training, and whether it is this visitor's."""
        if self._training is None:
            return {"outcome": None}
        return describe(self._recipe, self._branch, self._training) | {
            "mine": self._training.request.visitor == visitor
        }

    def start(self, request: TrainingRequest) -> str:
        """Starts a training; returns an empty text, or the reason why it cannot be started now."""
        if self._training and self._training.outcome == "running":
            left = describe(self._recipe, self._branch, self._training)["left"]
            whose = "your" if self._training.request.visitor == request.visitor else "another visitor's"
            return f"{whose} training is at work, for about {left:.0f} s more: one at a time"
        if request.gameable and not story_of(self._recipe).gameable:
            return "the recipe names no serve.story.gameable"
        if not request.gameable and len(request.rankings) < MIN_RANKINGS:
            return f"{len(request.rankings)} rankings are too few to train on: rank at least {MIN_RANKINGS} prompts"
        needed, free = story_training_gb(self._recipe), psutil.virtual_memory().available / GB
        if needed > free:
            return f"a training needs about {needed:.1f} GB of memory, and {free:.1f} GB are free"
        # The page reads the progress of a training from these folders.
        for folder in ("preferences", *OWN_STAGES, ".partial"):
            shutil.rmtree(self._branch.root / folder, ignore_errors=True)
        self._set(TrainingStatus(request))
        self._submit()
        return ""

    def _submit(self) -> None:
        self._thread.submit(self._train).add_done_callback(self._finish)

    def _train(self) -> None:
        assert self._training is not None
        train(self._recipe, self._run, self._branch, self._training.request)

    def _finish(self, work: Future[None]) -> None:
        assert self._training is not None
        error = work.exception()
        if error is None:
            self._set(TrainingStatus(self._training.request, "done"))
            return
        logger.error("a visitor's training failed", exc_info=error)
        failure = known_failure(error)
        reason = " ".join(str(failure).split()) if failure else "it ended unexpectedly; the Ray logs say why"
        self._set(TrainingStatus(self._training.request, "failed", reason))

    def _set(self, training: TrainingStatus) -> None:
        self._training = training
        self._branch.create()
        request = training.request.model_dump()
        write_json(_record(self._branch), {"request": request, "outcome": training.outcome, "error": training.error})

    def _read(self) -> TrainingStatus | None:
        if not _record(self._branch).exists():
            return None
        try:
            found = json.loads(_record(self._branch).read_text(encoding="utf-8"))
            return TrainingStatus(TrainingRequest(**found["request"]), found["outcome"], found["error"])
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{_record(self._branch)} is damaged: remove {self._branch.root}") from error


class RemoteTraining(StoryTrainer):
    """The `VisitorTraining` in its actor."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    async def data(self) -> dict[str, Any]:
        """See `VisitorTraining`."""
        return await self._asked(self._actor.data.remote())

    async def state(self, visitor: str) -> dict[str, Any]:
        """See `VisitorTraining`."""
        return await self._asked(self._actor.state.remote(visitor))

    async def start(self, request: TrainingRequest) -> str:
        """See `VisitorTraining`."""
        return await self._asked(self._actor.start.remote(request))

    async def _asked(self, reply: Awaitable[Any]) -> Any:
        try:
            return await asyncio.wait_for(reply, REPLY_SECONDS)
        except TimeoutError as error:
            raise RequestError(503, "the trainer of the story page does not answer; try again in a minute") from error


def start_trainer(recipe: Recipe, run: RunFolder) -> StoryTrainer | None:
    """Starts the story page's actor on the connected Ray; None if the recipe has no such page.

    The actor dies with this process. After a death of its own it is restarted and goes on.

    Raises:
        UserError: the cluster has a single core.
    """
    if recipe.serve.story is None:
        return None
    if ray.cluster_resources().get("CPU", 1) < 2:
        raise UserError("serve.story trains beside the served models and needs two cores: leave it out on one")
    kind: Any = ray.remote(VisitorTraining).options(num_cpus=0, max_restarts=-1, max_task_retries=-1)
    return RemoteTraining(kind.remote(recipe, run.root))


def _record(branch: RunFolder) -> Path:
    return branch.root / "training.json"

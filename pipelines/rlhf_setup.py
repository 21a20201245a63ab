"""What RLHF and its evaluation share: the prompts, the rollout fleet and the actors that give rewards."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from actors.model.chat import Chat
from actors.orchestrator.fleet import Fleet
from actors.rewards.function import FunctionReward
from actors.rewards.http import HttpReward
from actors.rewards.model import ModelReward
from actors.rewards.pool import RewardWorkerPool, restartable
from actors.rollout.environment import MultiTurnSettings
from actors.types import Prompt, RewardInput, prompt_id
from cluster.errors import StageError, UserError
from cluster.recipe.recipe import Recipe
from cluster.recipe.rlhf import Reward
from cluster.run.folder import RunFolder
from cluster.run.server_client import NotServedError, ask_server
from cluster.run.versions import Versions
from cluster.runtime.plan import Allocation, make_plan
from pipelines.data.chat_formats import PromptText
from pipelines.data.rankings import chosen_prompts, every_prompt

# In a run: a machine that is short of memory kills more than once.
REWARD_RESTARTS = 3
HTTP_GRACE_SECONDS = 5.0
# A reward function computes little beside the models.
FUNCTION_SHARE = Allocation(cpus=0, gpus=0, threads=1)


@dataclass(frozen=True)
class TrainingPrompts:
    """Prompts by their id: as engines take them, and as people and reward functions read them."""

    rendered: dict[str, Prompt]
    inputs: dict[str, RewardInput]


def prompts_to_train_on(recipe: Recipe, chat: Chat, most: int | None = None) -> TrainingPrompts:
    """The prompts that answers were ranked for: the reward model knows those best, and no kind drowns the others.

    Raises:
        UserError: none leaves room for an answer.
    """
    found = _with_room(recipe, chosen_prompts(recipe, chat, every_prompt(recipe)), most)
    if not found.rendered:
        raise UserError(
            "no prompt of collect.sources leaves room for an answer: rlhf.sampling.max_tokens is "
            f"{recipe.rlhf.sampling.max_tokens} of the {recipe.model.context} tokens of model.context"
        )
    return found


def prompts_kept_back(recipe: Recipe, chat: Chat) -> TrainingPrompts:
    """Those of `collect.sources` that RLHF does not train on, at most `evaluate.prompts`."""
    every = every_prompt(recipe)
    chosen = {text.id for text, _ in chosen_prompts(recipe, chat, every)}
    others = ((text, chat.prompt(text.messages)) for text in every if text.id not in chosen)
    return _with_room(recipe, others, recipe.evaluate.prompts)


def _with_room(recipe: Recipe, texts: Iterable[tuple[PromptText, list[int]]], most: int | None) -> TrainingPrompts:
    """The first of those that leave room for an answer."""
    room = recipe.model.context - recipe.rlhf.sampling.max_tokens
    found = list(islice(((text, ids) for text, ids in texts if len(ids) <= room), most))
    return TrainingPrompts(
        {prompt.id: prompt for prompt in (Prompt(prompt_id(text.id), ids, text.id) for text, ids in found)},
        {prompt_id(text.id): RewardInput(text.messages, text.metadata) for text, _ in found},
    )


def rollout_fleet(recipe: Recipe, model: Path, actors: int, inputs: Mapping[str, RewardInput]) -> Fleet:
    """Engines that begin with that model, and go on with answers as `rlhf.environment` says. To be started."""
    settings = recipe.rlhf
    around = settings.environment
    return Fleet(
        model,
        actors,
        make_plan(recipe).rollout,
        recipe.model.context,
        recipe.seed,
        recipe.cluster.deadline_seconds,
        multi_turn=MultiTurnSettings(around.function, inputs, around.turns) if around else None,
        swap_in_flight=settings.fleet.swap_in_flight,
    )


@contextmanager
def reward_actors(
    recipe: Recipe, run: RunFolder, inputs: Mapping[str, RewardInput]
) -> Iterator[list[RewardWorkerPool]]:
    """The actors of each of `rlhf.rewards`, gone at the end. They may still be starting: see `wait_ready`."""
    scorers = [_scorer(source, recipe, run, inputs) for source in recipe.rlhf.rewards]
    try:
        yield scorers
    finally:
        for scorer in scorers:
            scorer.close()


def wait_ready(scorers: list[RewardWorkerPool], deadline: float) -> None:
    """Raises as `wait_for` if one does not start."""
    for scorer in scorers:
        scorer.wait_ready(deadline)


def _scorer(source: Reward, recipe: Recipe, run: RunFolder, inputs: Mapping[str, RewardInput]) -> RewardWorkerPool:
    seconds, share, count = source.timeout_seconds, make_plan(recipe).reward, recipe.rlhf.fleet.reward_actors
    if source.function:
        launch = partial(_launch, FunctionReward, FUNCTION_SHARE, source.function)
        return RewardWorkerPool(f"the function {source.function}", launch, source.weight, seconds, inputs, count)
    if source.url:
        launch = partial(_launch, HttpReward, FUNCTION_SHARE, source.url, seconds)
        # The actor ends first, and says more.
        name = f"the endpoint {source.url}"
        return RewardWorkerPool(name, launch, source.weight, seconds + HTTP_GRACE_SECONDS, inputs, count)
    launch = partial(_launch, ModelReward, share, run.path("reward"), share.threads)
    return RewardWorkerPool("the reward model", launch, source.weight, recipe.cluster.deadline_seconds, actors=count)


def _launch(kind: type, share: Allocation, *words: object) -> Any:
    return restartable(kind, share, REWARD_RESTARTS).remote(*words)


# The policy in training, given to the run's server while training goes on.
POLICY = "policy"
logger = logging.getLogger(__name__)


def promote_unfinished(run: RunFolder, step: int, export: Callable[[Path], object]) -> None:
    """Has the run's server answer with the policy as it is after a step; where none runs, the next one starts with it.

    What keeps the server from it is logged and does not end the training.

    Args:
        export: writes the policy as a Hugging Face directory.
    """
    versions = Versions(run, POLICY)
    version = versions.keep(export)
    try:
        ask_server(run.root, "promote", {"model": POLICY, "version": version.weights})
    except NotServedError:
        versions.make_live(version.weights)
    except (UserError, StageError) as error:
        logger.warning("the policy of step %d was not promoted: %s", step, error)
        versions.drop(version)

"""Prompts, rollout fleet and reward actors, as RLHF and the evaluation set them up, and promotion during training.

A new kind of reward is a class in actors/rewards, a kind of `Reward` in cluster/recipe/rlhf/rewards.py, and a branch of
`_reward_pool`.
"""

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from actors.functions.caller import CallLimits
from actors.model.chat import Chat
from actors.model.tokenizer import load_tokenizer
from actors.orchestrator.fleet import Fleet
from actors.rewards.function import FunctionReward
from actors.rewards.http import HttpReward, http_seconds
from actors.rewards.model import ModelReward
from actors.rewards.pool import RewardWorkerPool, restartable
from actors.rollout.environment import MultiTurnSettings
from actors.types import Prompt, RewardInput, prompt_id
from cluster.errors import StageError, UserError
from cluster.recipe.functions import load_function
from cluster.recipe.recipe import Recipe
from cluster.recipe.rlhf.rewards import Reward
from cluster.run.folder import RunFolder
from cluster.run.server_client import NotServedError, ask_server
from cluster.run.versions import Versions
from cluster.runtime.plan import Allocation, make_plan
from pipelines.data.balance import Loss, require_enough
from pipelines.data.live_prompts import live_prompts_of_round
from pipelines.data.prompts import PromptText, all_prompts, prompt_losses, rlhf_prompts, select_prompts

# Per run: a machine short of memory kills an actor more than once.
REWARD_RESTARTS = 3
# A reward function computes little compared to the models.
FUNCTION_SHARE = Allocation(cpus=0, gpus=0, threads=1)


@dataclass(frozen=True)
class RlhfPrompts:
    """Prompts by id.

    Attributes:
        rendered: the prompts as token ids, for the engines.
        inputs: the prompts as messages and metadata, for reward functions and environments.
    """

    rendered: dict[str, Prompt]
    inputs: dict[str, RewardInput]


def training_prompts(recipe: Recipe, chat: Chat, limit: int | None = None) -> RlhfPrompts:
    """Chooses the prompts that RLHF trains on: those of `rlhf.sources`, else those whose answers are ranked, which the
    reward model knows best.

    Args:
        recipe: names the sources and the number of prompts.
        chat: renders prompts.
        limit: the most prompts to return; None for all.

    Raises:
        UserError: no prompt leaves room for an answer.
    """
    own = rlhf_prompts(recipe)
    if own:
        selected = list(_rendered(chat, own))
    else:
        selected = select_prompts(recipe, chat, all_prompts(recipe)) + live_prompts_of_round(recipe, chat)
    prompts = _with_room(recipe, selected, limit)
    if not prompts.rendered:
        before, section = ([], "rlhf") if own else (prompt_losses(recipe, chat), "collect")
        losses = [*before, _without_room(recipe, len(selected))]
        require_enough(f"prompts of {section}.sources", 0, losses, 1, "to train on", "add prompts")
    return prompts


def held_out_prompts(recipe: Recipe, chat: Chat, limit: int | None) -> RlhfPrompts:
    """Chooses prompts of `collect.sources` that are not ranked and that RLHF does not train on, at most `limit`;
    perhaps none."""
    return _with_room(recipe, _rendered(chat, _unused_prompts(recipe, chat)), limit)


def _unused_prompts(recipe: Recipe, chat: Chat) -> list[PromptText]:
    """Lists the prompts of `collect.sources` that are not ranked and that RLHF does not train on.

    A prompt of `rlhf.sources` may be in another file, under another id, or under its id in other words: ids and
    conversations are compared.
    """
    prompts = all_prompts(recipe)
    ranked = {text.id for text, _ in select_prompts(recipe, chat, prompts)}
    trained = rlhf_prompts(recipe)
    used, contents = ranked | {text.id for text in trained}, {_content(text) for text in trained}
    return [text for text in prompts if text.id not in used and _content(text) not in contents]


def _content(text: PromptText) -> str:
    return json.dumps(text.messages, sort_keys=True)


def _rendered(chat: Chat, texts: Sequence[PromptText]) -> Iterator[tuple[PromptText, list[int]]]:
    return ((text, chat.prompt(text.messages)) for text in texts)


def require_held_out(recipe: Recipe, chat: Chat, left: int) -> None:
    """Requires a prompt that RLHF does not train on.

    Args:
        left: number of the prompts of `held_out_prompts`.

    Raises:
        UserError: there is none.
    """
    if left:
        return
    unused = len(_unused_prompts(recipe, chat))
    duplicates, _, _ = prompt_losses(recipe, chat)
    used, name = len(all_prompts(recipe)) - unused, "ranked or trained on" if recipe.rlhf.sources else "trained on"
    losses = [
        duplicates,
        Loss(name, used, f"lower collect.prompts (now {recipe.collect.prompts})"),
        _without_room(recipe, unused),
    ]
    purpose = "that RLHF does not train on (rlhf.evaluate_every)"
    require_enough("prompts of collect.sources", left, losses, 1, purpose, "add prompts")


def _without_room(recipe: Recipe, count: int) -> Loss:
    answer = f"lower rlhf.sampling.max_tokens (now {recipe.rlhf.sampling.max_tokens})"
    return Loss("no room for an answer", count, f"{answer} or raise model.context (now {recipe.model.context})")


def _with_room(recipe: Recipe, texts: Iterable[tuple[PromptText, list[int]]], limit: int | None) -> RlhfPrompts:
    """Takes the first prompts, up to `limit`, that leave room for an answer."""
    room = recipe.model.context - recipe.rlhf.sampling.max_tokens
    fitting = list(islice(((text, ids) for text, ids in texts if len(ids) <= room), limit))
    return RlhfPrompts(
        {prompt.id: prompt for prompt in (Prompt(prompt_id(text.id), ids, text.id) for text, ids in fitting)},
        {prompt_id(text.id): RewardInput(text.messages, text.metadata) for text, _ in fitting},
    )


def rollout_fleet(recipe: Recipe, model: Path, actors: int, inputs: Mapping[str, RewardInput]) -> Fleet:
    """Makes a fleet of rollout actors, which is started by entering it.

    Args:
        recipe: its `rlhf` section decides on conversations of several turns and on swaps in flight.
        model: the folder of the model to start with.
        actors: how many to start.
        inputs: the prompts as messages, by id, for the environment.
    """
    settings = recipe.rlhf
    environment = settings.environment
    return Fleet(
        model,
        actors,
        make_plan(recipe).rollout,
        recipe.model.context,
        recipe.seed,
        recipe.cluster.deadline_seconds,
        settings.fleet.stall_seconds,
        multi_turn=MultiTurnSettings(environment.function, inputs, environment.turns, environment.timeout_seconds)
        if environment
        else None,
        swap_in_flight=settings.fleet.swap_in_flight,
    )


def prompt_chat(recipe: Recipe, model: Path) -> Chat:
    """Loads a model's template, whose prompts show the tools of `rlhf.environment`, if it declares any.

    Raises:
        UserError: the environment cannot be imported.
    """
    environment = recipe.rlhf.environment
    found = load_function(environment.function, "environment") if environment else None
    return Chat(load_tokenizer(model), getattr(found, "tools", ()))


@contextmanager
def reward_pools(recipe: Recipe, run: RunFolder, inputs: Mapping[str, RewardInput]) -> Iterator[list[RewardWorkerPool]]:
    """Starts a pool of actors for each of `rlhf.rewards` but the environment's, and closes the pools at the end.

    It does not wait until the actors have started; `wait_ready` does.
    """
    sources = [source for source in recipe.rlhf.rewards if source.kind != "environment"]
    pools = [_reward_pool(source, recipe, run, inputs) for source in sources]
    try:
        yield pools
    finally:
        for pool in pools:
            pool.close()


def wait_ready(pools: list[RewardWorkerPool], deadline: float) -> None:
    """Waits until the actors of all pools have started.

    Raises:
        DeadlineError: one had not started after `deadline` seconds.
    """
    for pool in pools:
        pool.wait_ready(deadline)


def _reward_pool(source: Reward, recipe: Recipe, run: RunFolder, inputs: Mapping[str, RewardInput]) -> RewardWorkerPool:
    share, count = make_plan(recipe).reward, recipe.rlhf.fleet.reward_actors
    if source.function:
        limits = CallLimits(source.timeout_seconds, source.attempts, source.at_once)
        launch = partial(_launch, FunctionReward, FUNCTION_SHARE, source.function, limits)
        return RewardWorkerPool(f"the function {source.function}", launch, source.weight, limits.longest, inputs, count)
    if source.url:
        longest = http_seconds(source.timeout_seconds, source.attempts)
        launch = partial(_launch, HttpReward, FUNCTION_SHARE, source.url, source.timeout_seconds, source.attempts)
        return RewardWorkerPool(f"the endpoint {source.url}", launch, source.weight, longest, inputs, count)
    deadline = recipe.cluster.deadline_seconds
    launch = partial(_launch, ModelReward, share, run.path("reward"), share.threads)
    return RewardWorkerPool("the reward model", launch, source.weight, lambda _: deadline, actors=count)


def _launch(kind: type, share: Allocation, *arguments: object) -> Any:
    return restartable(kind, share, REWARD_RESTARTS).remote(*arguments)


POLICY = "policy"
logger = logging.getLogger(__name__)


def promote_unfinished(run: RunFolder, step: int, export: Callable[[Path], object]) -> None:
    """Promotes the policy in training to the run's server; where none runs, the next one starts with it.

    A failure of the promotion is logged and does not end the training.

    Args:
        run: the run, whose server it is.
        step: the step of the training, for the log.
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
